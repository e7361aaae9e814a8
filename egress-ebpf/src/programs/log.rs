//! The programs' own debug lines, by aya-log: `egress run --log-programs`.
//!
//! Which level is on is a constant that the loader sets before the programs are verified, so that without `--log-programs` the
//! verifier takes what is behind it for dead code and removes it (decision 0043). Hooks, reasons and counts are numbers here, as
//! strings that differ in length do not pass the verifier; the daemon writes their names.

use aya_log_ebpf::{
    debug,
    macro_support::{Level, level_enabled},
};
use egress_ebpf::{
    abi::{Address, LearnCount},
    packet::Packet,
};

/// Tells how a packet, or a system call, was judged.
#[inline(always)]
pub fn judged(hook: u8, packet: &Packet, reason: u32, grant: u32) {
    if level_enabled(Level::Debug) {
        egress_log_judged(packet, u32::from(hook), reason, grant);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_log_judged(packet: *const Packet, hook: u32, reason: u32, grant: u32) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return 0 };
    debug!(
        (),
        "hook={} reason={} protocol={} from={:i} from-port={} to={:i} to-port={} item={}",
        hook,
        reason,
        packet.proto,
        bytes(&packet.source),
        packet.source_port,
        bytes(&packet.destination),
        packet.destination_port,
        grant
    );
    0
}

/// Tells what became of a resolver's answer, or of a query. What is learned of its addresses an event tells: where they are learned
/// there is no stack left.
#[inline(always)]
pub fn counted(what: LearnCount) {
    if level_enabled(Level::Debug) {
        egress_log_counted(what as u32);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_log_counted(what: u32) -> u32 {
    debug!((), "answer={}", what);
    0
}

#[inline(always)]
fn bytes(address: &Address) -> [u8; 16] {
    let words = [address.high.to_ne_bytes(), address.low.to_ne_bytes()];
    // SAFETY: two words of eight bytes are sixteen bytes.
    unsafe { core::mem::transmute(words) }
}
