//! Global functions (kernel 5.12): the verifier checks each of them once, for any arguments, where it would walk a static
//! one again for every state of its callers.

use aya_ebpf::bindings::__sk_buff;
use egress_ebpf::{
    abi::{Config, Ticks},
    decision::{self, Destination, Verdict},
    packet::{Packet, Parsed, parse_into},
    reason::Reason,
};

use super::{
    cgroup_skb,
    skb::{Copied, Direct},
    tables::Kernel,
    uplink,
};

/// Parses the IP packet whose network header is at `offset` into `packet`, which was [`Packet::UNKNOWN`]: given back by value it would
/// be copied from one place of the stack to another.
#[inline(always)]
pub fn parse(skb: *mut __sk_buff, offset: u32, packet: &mut Packet) -> Result<(), Reason> {
    let mut parsed = egress_parse(skb, offset, packet);
    if parsed == Parsed::Malformed as u32 {
        // Perhaps only the buffer's linear part was too short.
        parsed = egress_parse_copied(skb, offset, packet);
    }
    match parsed {
        0 => Ok(()),
        2 => Err(Reason::SourceRoute),
        _ => Err(Reason::Malformed),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_parse(skb: *mut __sk_buff, offset: u32, packet: *mut Packet) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Parsed::Malformed as u32 };
    parse_into(Direct(skb), offset as usize, packet) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_parse_copied(skb: *mut __sk_buff, offset: u32, packet: *mut Packet) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Parsed::Malformed as u32 };
    parse_into(Copied(skb), offset as usize, packet) as u32
}

/// [`decision::is_about_arrival`].
#[inline(always)]
pub fn is_about_arrival(skb: *mut __sk_buff, offset: u32, error: &Packet) -> bool {
    egress_about_arrival(skb, offset, error) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_about_arrival(skb: *mut __sk_buff, offset: u32, error: *const Packet) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(error) = (unsafe { error.as_ref() }) else { return 0 };
    u32::from(decision::is_about_arrival(&Kernel, Copied(skb), offset as usize, error))
}

/// [`decision::opens`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn egress_opens(class: u32, key: u32, generation: u32) -> u32 {
    decision::opens(&Kernel, class, key, generation)
}

/// [`decision::builtin`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn egress_builtin(config: *const Config, packet: *const Packet) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let (Some(config), Some(packet)) = (unsafe { config.as_ref() }, unsafe { packet.as_ref() }) else { return 0 };
    u32::from(decision::builtin(config, packet))
}

/// [`decision::policy`], packed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn egress_policy(config: *const Config, destination: *const Destination, now: Ticks) -> u64 {
    // SAFETY: null or valid, as the verifier makes sure; a null is refused.
    let (Some(config), Some(destination)) = (unsafe { config.as_ref() }, unsafe { destination.as_ref() }) else {
        return Verdict::plain(Reason::NoPolicy).pack();
    };
    decision::policy(&Kernel, config, destination, now).pack()
}

/// [`cgroup_skb::judge`], packed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn egress_judge_socket(skb: *mut __sk_buff, config: *const Config, packet: *const Packet) -> u64 {
    // SAFETY: null or valid, as the verifier makes sure; a null is refused.
    let (Some(config), Some(packet)) = (unsafe { config.as_ref() }, unsafe { packet.as_ref() }) else {
        return Verdict::plain(Reason::NoPolicy).pack();
    };
    cgroup_skb::judge(skb, config, packet).pack()
}

/// [`uplink::judge`], packed.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn egress_judge_uplink(
    skb: *mut __sk_buff,
    config: *const Config,
    packet: *const Packet,
    offset: u32,
) -> u64 {
    // SAFETY: null or valid, as the verifier makes sure; a null is refused.
    let (Some(config), Some(packet)) = (unsafe { config.as_ref() }, unsafe { packet.as_ref() }) else {
        return Verdict::plain(Reason::NoPolicy).pack();
    };
    uplink::judge(skb, config, packet, offset).pack()
}
