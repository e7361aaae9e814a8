//! Global functions (kernel 5.12): the verifier checks each of them once, for any arguments, where it would walk a static
//! one again for every state of its callers.

use aya_ebpf::bindings::__sk_buff;
use egress_ebpf::{
    abi::{Address, Config, ORIGIN_NONE, Ticks},
    decision::{self, Destination, Route, Verdict},
    packet::{Packet, Parsed, ipv4, ipv6, parse_into},
    reason::Reason,
};

use super::{
    cgroup_skb,
    clock::now,
    skb::{Copied, Direct},
    tables::Kernel,
    uplink, workload,
};

/// Parses the IP packet whose network header is at `offset` into `packet`, which was [`Packet::UNKNOWN`]: given back by value it would
/// be copied from one place of the stack to another.
#[inline(always)]
pub fn parse(skb: *mut __sk_buff, offset: u32, packet: &mut Packet) -> Result<(), Reason> {
    let mut parsed = egress_parse(skb, offset, packet);
    if parsed == Parsed::Malformed as u32 {
        // Perhaps only the buffer's linear part was too short.
        parsed = egress_parse_copied(skb, offset, packet, 0);
    }
    ended(parsed).reason().map_or(Ok(()), Err)
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
extern "C" fn egress_parse_copied(skb: *mut __sk_buff, offset: u32, packet: *mut Packet, quoted: u32) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return Parsed::Malformed as u32 };
    parse_into(Copied { skb, quoted: quoted != 0 }, offset as usize, packet) as u32
}

/// [`ipv4::options`].
#[inline(always)]
pub fn options(skb: *mut __sk_buff, offset: u32, length: u32) -> Parsed {
    ended(egress_options(skb, offset, length))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_options(skb: *mut __sk_buff, offset: u32, length: u32) -> u32 {
    ipv4::options(Copied { skb, quoted: false }, offset as usize, length as usize) as u32
}

/// [`ipv6::extensions`].
#[inline(always)]
pub fn extensions(skb: *mut __sk_buff, offset: u32, packet: &mut Packet) -> Result<u16, Parsed> {
    let walked = egress_extensions(skb, offset, packet);
    match ended(walked >> 16) {
        Parsed::Good => Ok(walked as u16),
        bad => Err(bad),
    }
}

/// How the walk ended, and below it the fragment's offset.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_extensions(skb: *mut __sk_buff, offset: u32, packet: *mut Packet) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(packet) = (unsafe { packet.as_mut() }) else { return (Parsed::Malformed as u32) << 16 };
    match ipv6::extensions(Copied { skb, quoted: false }, offset as usize, packet) {
        Ok(fragment) => u32::from(fragment),
        Err(bad) => (bad as u32) << 16,
    }
}

/// What a function of this object gave as its number.
#[inline(always)]
fn ended(number: u32) -> Parsed {
    match number {
        0 => Parsed::Good,
        2 => Parsed::SourceRoute,
        _ => Parsed::Malformed,
    }
}

/// Parses the packet that an ICMP error quotes at `offset`: [`egress_ebpf::packet::quoted`].
#[inline(always)]
pub fn parse_quoted(skb: *mut __sk_buff, offset: u32, packet: &mut Packet) -> Parsed {
    ended(egress_parse_copied(skb, offset, packet, 1))
}

/// [`decision::quoted_origin`].
#[inline(always)]
pub fn quoted_origin(skb: *mut __sk_buff, config: &Config, offset: u32, error: &Packet) -> u32 {
    egress_quoted_origin(skb, config, offset, error)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_quoted_origin(
    skb: *mut __sk_buff,
    config: *const Config,
    offset: u32,
    error: *const Packet,
) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let (Some(config), Some(error)) = (unsafe { config.as_ref() }, unsafe { error.as_ref() }) else {
        return ORIGIN_NONE;
    };
    decision::quoted_origin(&Kernel, config, Copied { skb, quoted: false }, offset as usize, error, now())
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
pub extern "C" fn egress_builtin(config: *const Config, packet: *const Packet, own: u32) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let (Some(config), Some(packet)) = (unsafe { config.as_ref() }, unsafe { packet.as_ref() }) else { return 0 };
    u32::from(decision::builtin(config, packet, own != 0))
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
pub extern "C" fn egress_judge_socket(
    skb: *mut __sk_buff,
    config: *const Config,
    packet: *const Packet,
    rehearsed: u32,
) -> u64 {
    // SAFETY: null or valid, as the verifier makes sure; a null is refused.
    let (Some(config), Some(packet)) = (unsafe { config.as_ref() }, unsafe { packet.as_ref() }) else {
        return Verdict::plain(Reason::NoPolicy).pack();
    };
    cgroup_skb::judge(skb, config, packet, rehearsed).pack()
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

/// [`cgroup_skb::refused`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn egress_refuse_socket(
    skb: *mut __sk_buff,
    config: *const Config,
    packet: *const Packet,
    what: u32,
) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure; nothing is counted then.
    let (Some(config), Some(packet)) = (unsafe { config.as_ref() }, unsafe { packet.as_ref() }) else {
        return 0;
    };
    cgroup_skb::refused(skb, config, packet, what);
    0
}

/// [`uplink::refused`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn egress_refuse_uplink(
    skb: *mut __sk_buff,
    config: *const Config,
    packet: *const Packet,
    what: u32,
) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure; nothing is counted then.
    let (Some(config), Some(packet)) = (unsafe { config.as_ref() }, unsafe { packet.as_ref() }) else {
        return 0;
    };
    uplink::refused(skb, config, packet, what);
    0
}

/// [`workload::route`], as its number.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn egress_route(skb: *mut __sk_buff, ways: u64, version: u32, address: *const Address) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure; what is not known leads outside.
    let Some(address) = (unsafe { address.as_ref() }) else { return Route::Unjudged as u32 };
    workload::route(skb, ways, version, address) as u32
}
