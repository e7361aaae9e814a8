//! Buffers too large for the stack.

use egress_ebpf::{
    atomic,
    dns::Work,
    repeat::{Step, repeat},
};

use crate::programs::maps_names::{WORK, WORKS};

/// Claims a buffer of this processor. A program that is preempted keeps its own: kernels with preemption run another
/// program on the same processor meanwhile, and a softirq can come at any time.
#[inline(always)]
pub fn claim() -> Option<&'static mut Work> {
    let mut claim = Claim { index: NONE };
    // The first one is free nearly always: no loop for it.
    if claim.step(0) {
        repeat(WORKS, &mut claim);
    }
    // SAFETY: an entry of an array lives as long as the program; whoever turned `busy` from 0 to 1 has it alone.
    let work = WORK.get_ptr_mut(claim.index).map(|work| unsafe { &mut *work })?;
    work.index = u64::from(claim.index);
    Some(work)
}

/// The buffer that the caller's caller has claimed, for a global function: what such a function is handed as a pointer may
/// be no helper's key or value on kernel 6.1, what it looks up itself may. `index` is [`Work::index`].
#[inline(always)]
pub fn claimed(index: u32) -> Option<*mut Work> {
    WORK.get_ptr_mut(index)
}

/// No index of [`WORK`].
const NONE: u32 = u32::MAX;

struct Claim {
    index: u32,
}

impl Step for Claim {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let Some(work) = WORK.get_ptr_mut(index) else { return false };
        // SAFETY: an entry of an array; the flag is only ever turned to 1 by this.
        if unsafe { atomic::replace(&raw mut (*work).busy, 0, 1) } {
            self.index = index;
            return false;
        }
        true
    }
}

/// Gives a buffer back.
#[inline(always)]
pub fn release(work: &mut Work) {
    // SAFETY: the flag lives in the buffer, which the caller has; volatile, so that it comes last.
    unsafe { (&raw mut work.busy).write_volatile(0) };
}
