//! Rehearsals: `egress explain --packet` runs an attached program on a packet of its own making. The way to the verdict is
//! every packet's; only what is written down is left out.

use aya_ebpf::bindings::__sk_buff;
use egress_ebpf::{abi::Config, decision::Verdict};

use super::maps;

/// Whether this run is a rehearsal.
#[inline(always)]
pub fn is_on(skb: *mut __sk_buff, config: &Config) -> bool {
    // The one word that packets pay for, which is in the cache.
    config.has(Config::REHEARSAL) && egress_rehearsal(skb) != 0
}

/// The type of socket that a rehearsal stands for (`REHEARSED_*`); 0 for a packet on its way.
#[inline(always)]
pub fn kind_of(skb: *mut __sk_buff, config: &Config) -> u32 {
    if config.has(Config::REHEARSAL) { egress_rehearsal(skb) } else { 0 }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_rehearsal(skb: *mut __sk_buff) -> u32 {
    let Some(rehearsal) = maps::REHEARSAL.get(0) else { return 0 };
    // SAFETY: the context is valid.
    let token = unsafe { u64::from((*skb).mark) << 32 | u64::from((*skb).priority) };
    if rehearsal.token == 0 || rehearsal.token != token { 0 } else { rehearsal.kind }
}

/// Tells the verdict to who rehearses, and gives what the program returns.
#[inline(always)]
pub fn end(skb: *mut __sk_buff, config: &Config, verdict: &Verdict, pass: i32, drop: i32) -> i32 {
    // SAFETY: the context is valid, and the packet is nobody's.
    unsafe {
        (*skb).mark = verdict.grant;
        (*skb).priority = verdict.reason as u32;
    }
    if verdict.reason.passes() || !config.has(Config::ENFORCE) { pass } else { drop }
}
