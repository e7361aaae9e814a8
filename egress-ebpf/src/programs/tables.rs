//! The live policy and the clock.

use egress_ebpf::abi::{Config, TICK_SHIFT, Ticks};

use super::maps;

/// The live policy's scalars, or `None` before the first policy is in: fail closed.
#[inline(always)]
pub fn live() -> Option<&'static Config> {
    let generation = *maps::LIVE.get(0)?;
    let config = maps::CONFIG.get(generation & 1)?;
    (generation != 0 && config.generation == generation).then_some(config)
}

/// The time, by the coarse clock.
#[inline(always)]
pub fn now() -> Ticks {
    // SAFETY: helper 160 takes nothing and reads a clock.
    (unsafe { aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as Ticks
}
