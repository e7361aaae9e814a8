//! The kernel's jiffies in terms of `CLOCK_MONOTONIC`: the programs read the time from them without a call (decision 0059).

use std::io;
use std::os::fd::AsFd as _;

use nix::time::{ClockId, clock_getres, clock_gettime};

use super::sys;

/// How jiffies run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Jiffies {
    /// Nanoseconds of one; 0 where they do not keep up with the clock, or cannot be read: then the programs read the coarse clock.
    pub length: u64,
    /// The clock, in nanoseconds, when there had been none, modulo 2^64: they do not begin at 0.
    pub began: u64,
}

impl Jiffies {
    /// Reads them, by a program of a few instructions.
    pub fn read() -> Self {
        Self::measure().unwrap_or_default()
    }

    fn measure() -> io::Result<Self> {
        // Where the kernel has high-resolution timers it makes jiffies of the clock's own reading (`tick_do_update_jiffies64` in
        // kernel/time/tick-sched.c). Elsewhere it counts its interrupts, and some may be lost.
        if nanoseconds(clock_getres(ClockId::CLOCK_MONOTONIC)?) != 1 {
            return Ok(Self::default());
        }
        // TICK_NSEC, the length of a jiffy (`hrtimer_get_res` in kernel/time/posix-timers.c).
        let length = nanoseconds(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?);
        let program = sys::bare_program(sys::CLASSIFIER, &JIFFIES)?;
        let read =
            |shift| sys::test_run_marked(program.as_fd(), &[0; 14], 0, shift, 0).map(|(half, ..)| u64::from(half));
        for _ in 0..TRIES {
            // The coarse clock goes on with the jiffies, once for each.
            let (before, above) = (coarse()?, read(32)?);
            let below = read(0)?;
            if (before, above) == (coarse()?, read(32)?) {
                let jiffies = above << 32 | below;
                return Ok(Self { length, began: before.wrapping_sub(jiffies.wrapping_mul(length)) });
            }
        }
        Ok(Self::default())
    }

    /// The clock by these, in nanoseconds, at a number of jiffies: as the programs reckon.
    #[cfg(test)]
    fn clock(self, jiffies: u64) -> u64 {
        jiffies.wrapping_mul(self.length).wrapping_add(self.began)
    }
}

/// Each fails only if a jiffy ended meanwhile: one in hundreds.
const TRIES: u32 = 100;

/// A classifier that returns jiffies, without as many low bits as the packet's mark says.
const JIFFIES: [u64; 4] = [
    // r6 = skb->mark
    0x0000_0000_0008_1661,
    // call bpf_jiffies64
    0x0000_0076_0000_0085,
    // r0 >>= r6
    0x0000_0000_0000_607f,
    // exit
    0x0000_0000_0000_0095,
];

fn coarse() -> io::Result<u64> {
    Ok(nanoseconds(clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?))
}

fn nanoseconds(time: nix::sys::time::TimeSpec) -> u64 {
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As root. The programs date by jiffies what userspace dates by the clock.
    #[test]
    fn jiffies_tell_the_clock() {
        let jiffies = Jiffies::measure().expect("needs root");
        assert!(jiffies.length >= 1_000_000 && 1_000_000_000 / jiffies.length <= 1000, "{jiffies:?}");
        let program = sys::bare_program(sys::CLASSIFIER, &JIFFIES).expect("needs root");
        let read =
            |shift| sys::test_run_marked(program.as_fd(), &[0; 14], 0, shift, 0).map(|(half, ..)| u64::from(half));
        for _ in 0..20 {
            std::thread::sleep(std::time::Duration::from_millis(7));
            let now = || nanoseconds(clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock"));
            let before = coarse().expect("a clock");
            let told = jiffies.clock(read(32).expect("runs") << 32 | read(0).expect("runs"));
            let after = now();
            assert!(told + jiffies.length >= before && told <= after, "{before} {told} {after}");
        }
    }
}
