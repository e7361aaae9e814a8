//! Buffers too large for the stack.

use egress_ebpf::{atomic, dns::Work};

use crate::programs::maps_names::{WORK, WORKS};

/// Claims a buffer of this processor. A program that is preempted keeps its own: kernels with preemption run another
/// program on the same processor meanwhile, and a softirq can come at any time.
#[inline(always)]
pub fn claim() -> Option<&'static mut Work> {
    let mut index = 0;
    while index < WORKS {
        let work = WORK.get_ptr_mut(index)?;
        // SAFETY: an entry of an array lives as long as the program; whoever turns `busy` from 0 to 1 has it alone.
        unsafe {
            if atomic::replace(&raw mut (*work).busy, 0, 1) {
                return Some(&mut *work);
            }
        }
        index += 1;
    }
    None
}

/// Gives a buffer back.
#[inline(always)]
pub fn release(work: &mut Work) {
    // SAFETY: the flag lives in the buffer, which the caller has; volatile, so that it comes last.
    unsafe { (&raw mut work.busy).write_volatile(0) };
}
