//! The clock that addresses and flows age by.

use core::ptr;

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use egress_ebpf::abi::{TICK_SHIFT, Ticks};

/// Nanoseconds of a jiffy; 0 where jiffies may fall behind `CLOCK_MONOTONIC`. The loader sets it before the programs are verified,
/// to which it is a constant: what is not chosen is not there (decision 0059).
#[unsafe(no_mangle)]
static JIFFY_LENGTH: u64 = 0;

/// `CLOCK_MONOTONIC`, in nanoseconds, when there had been no jiffy: modulo 2^64, as jiffies do not begin at 0.
#[unsafe(no_mangle)]
static JIFFIES_BEGAN: u64 = 0;

/// The time, to a jiffy: read without a call where jiffies keep up, else by the coarse clock.
#[inline(always)]
pub fn now() -> Ticks {
    // SAFETY: constants of the object. Volatile, since the loader writes others than the compiler sees.
    let (length, began) =
        unsafe { (ptr::from_ref(&JIFFY_LENGTH).read_volatile(), ptr::from_ref(&JIFFIES_BEGAN).read_volatile()) };
    let nanoseconds = if length == 0 {
        // SAFETY: helper 160 takes nothing and reads a clock.
        unsafe { bpf_ktime_get_coarse_ns() }
    } else {
        // SAFETY: helper 118 takes nothing; on x86-64 the verifier puts the one load of jiffies in its place.
        unsafe { bpf_jiffies64() }.wrapping_mul(length).wrapping_add(began)
    };
    (nanoseconds >> TICK_SHIFT) as Ticks
}

/// The time, by the exact clock: the kernel gives LSM programs no coarse one.
#[inline(always)]
pub fn exact() -> Ticks {
    // SAFETY: helper 5 takes nothing and reads a clock.
    (unsafe { bpf_ktime_get_ns() } >> TICK_SHIFT) as Ticks
}
