//! The uplinks: the net below the sockets. Forwarded packets, AF_PACKET's, tunnels', the kernel's own.

use aya_ebpf::{
    bindings::__sk_buff, helpers::generated::bpf_skb_ancestor_cgroup_id, macros::classifier, programs::TcContext,
};
use egress_ebpf::{
    abi::{
        Config, Flow, HOOK_UPLINK_EGRESS, LEARN_AT_UPLINK, ORIGIN_IN, ORIGIN_NONE, PROTO_TCP, PROTO_UDP, Process,
        ResolverKey, ZONE_UPLINK,
    },
    decision::{self, Tables, Verdict},
    packet::{ETHERNET_HEADER, EtherType, Fragment, Packet, TCP_RST, link, plain},
    reason::Reason,
};

use super::{
    clock::now,
    dns::{self, denial::Back},
    global, log, maps, rehearsal,
    report::{self, Refused},
    skb::{Direct, socket},
    tables::{Kernel, live},
};

/// TC_ACT_UNSPEC: the next program or filter decides, so that others at the same interface go on working.
pub const NEXT: i32 = -1;
/// TC_ACT_SHOT.
pub const SHOT: i32 = 2;

/// The mark of a query that the cgroup's hook refused and left to be answered here: it must not leave, whatever another
/// generation of the policy says by now. Where a packet of somebody else has this mark, it is dropped in vain.
pub const LEFT_TO_UPLINK: u32 = 0xe6e5_0053;

/// PACKET_LOOPBACK, `include/uapi/linux/if_packet.h`: the kernel gives back by an interface what left by it for a group, or for everybody
/// (`dev_loopback_xmit` in net/core/dev.c).
pub const PACKET_LOOPBACK: u32 = 5;

pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;

/// Egress of an uplink with an Ethernet header.
#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    egress(ctx.skb.skb, true)
}

/// Egress of an uplink without a link header: a TUN or WireGuard interface.
#[classifier]
pub fn uplink_egress_l3(ctx: TcContext) -> i32 {
    egress(ctx.skb.skb, false)
}

/// Ingress of an uplink with an Ethernet header. It never drops.
#[classifier]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    ingress(ctx.skb.skb, true)
}

/// Ingress of an uplink without a link header.
#[classifier]
pub fn uplink_ingress_l3(ctx: TcContext) -> i32 {
    ingress(ctx.skb.skb, false)
}

#[inline(always)]
fn egress(skb: *mut __sk_buff, ethernet: bool) -> i32 {
    let Some(config) = live() else { return SHOT };
    let rehearsed = rehearsal::is_on(skb, config);
    let headers = Direct(skb);
    let ethertype = if ethernet { link(headers) } else { EtherType::Ip(0) };
    let EtherType::Ip(offset) = ethertype else {
        return not_ip(skb, config, ethertype);
    };
    let known = if offset == bare(ethernet) { established(skb, config, bare(ethernet)) } else { 0 };
    if known != 0 {
        let verdict = Verdict::unpack(known);
        if rehearsed {
            return rehearsal::end(skb, config, &verdict, NEXT, SHOT);
        }
        // SAFETY: the context is valid.
        report::count(&verdict, unsafe { (*skb).len });
        return NEXT;
    }
    let offset = offset as u32;
    let mut packet = Packet::UNKNOWN;
    if let Err(reason) = global::parse(skb, offset, &mut packet) {
        if rehearsed {
            return rehearsal::end(skb, config, &Verdict::plain(reason), NEXT, SHOT);
        }
        return refuse(skb, config, &report::unknown(), &Refused::plain(reason));
    }
    let mut verdict = Verdict::unpack(global::egress_judge_uplink(skb, config, &raw const packet, offset));
    let mut refused = Refused::plain(verdict.reason);
    // A query that the cgroup's hook let pass is asked again, to remember it here, where its answer arrives.
    let learns = match verdict.reason {
        Reason::Dns => verdict.trust() & LEARN_AT_UPLINK != 0,
        Reason::Judged => trusts(config, &packet.destination, packet.destination_port, &packet),
        _ => false,
    };
    if matches!(verdict.reason, Reason::Dns) || learns {
        let asked = dns::Asked { network_offset: offset, cookie: 0, trust_here: learns && !rehearsed };
        if let Err(bad) = dns::query(skb, config, &packet, &asked) {
            refused = bad;
        }
    } else if matches!(verdict.reason, Reason::Judged) && was_left(skb, &packet) {
        // The resolver was believed here a moment ago.
        refused = Refused::plain(Reason::NameNotAllowed);
    }
    if rehearsed {
        let verdict = if refused.reason.passes() { verdict } else { Verdict::plain(refused.reason) };
        return rehearsal::end(skb, config, &verdict, NEXT, SHOT);
    }
    if refused.reason.passes() {
        log::judged(HOOK_UPLINK_EGRESS, &packet, verdict.reason as u32, verdict.grant);
        // SAFETY: the context is valid.
        report::count(&verdict, unsafe { (*skb).len });
        return NEXT;
    }
    let unnamed = matches!(refused.reason, Reason::NameNotAllowed);
    let verdict = if unnamed && matches!(verdict.reason, Reason::Judged) {
        // The cgroup's hook has told of it, and left it to be answered here.
        if config.has(Config::ENFORCE) { SHOT } else { NEXT }
    } else {
        refuse(skb, config, &packet, &refused)
    };
    if verdict == SHOT
        && unnamed
        && packet.proto == PROTO_UDP
        && let Some(answered) = dns::denial::answer(skb, &packet, offset, Back::In)
    {
        return answered;
    }
    verdict
}

#[inline(always)]
fn was_left(skb: *mut __sk_buff, packet: &Packet) -> bool {
    // SAFETY: the context is valid.
    packet.proto == PROTO_UDP && unsafe { (*skb).mark } == LEFT_TO_UPLINK
}

/// The short way, for a plain packet that the cgroup's hook has judged, or of a flow that is known. What may be DNS goes the
/// long way. The verdict is packed; 0 for none.
// Not inlined, for the stack's sake.
#[inline(never)]
fn established(skb: *mut __sk_buff, config: &Config, offset: usize) -> u64 {
    let Some(packet) = plain(Direct(skb), offset) else { return 0 };
    // A refused query has its mark, whatever the policy of this moment says of its port.
    // SAFETY: the context is valid.
    let is_left = unsafe { (*skb).mark } == LEFT_TO_UPLINK;
    if packet.destination_port == 53 || config.has(Config::RESOLVER_PORTS) || is_left {
        return 0;
    }
    if judged_by_cgroup(skb, config, &packet) {
        return Verdict::plain(Reason::Judged).pack();
    }
    if packet.opens_tcp() {
        return 0;
    }
    let Some(flow) = Kernel.flow(&decision::outward_key(&packet, ZONE_UPLINK)) else { return 0 };
    decision::established_at_uplink(config, &packet, flow, now).map_or(0, Verdict::pack)
}

/// Where a packet's network header is which has no VLAN tags in its bytes. Behind such there is only the long way, or the verifier would
/// walk the short one for each number of them.
#[inline(always)]
const fn bare(ethernet: bool) -> usize {
    if ethernet { ETHERNET_HEADER } else { 0 }
}

#[inline(never)]
fn not_ip(skb: *mut __sk_buff, config: &Config, ethertype: EtherType) -> i32 {
    // What a process sends has its socket, a packet socket's too; what is forwarded came in by an interface.
    // SAFETY: the context is valid.
    let kernels = unsafe { (*skb).__bindgen_anon_2.sk.is_null() && (*skb).ingress_ifindex == 0 };
    let verdict = Verdict::plain(decision::ethertype(config, ethertype, kernels));
    if verdict.reason.passes() {
        // SAFETY: the context is valid.
        report::count(&verdict, unsafe { (*skb).len });
        return NEXT;
    }
    let mut packet = Packet::UNKNOWN;
    if let EtherType::Other(number) = ethertype {
        // Where there is no port the number tells a person what it was.
        packet.destination_port = number;
    }
    refuse(skb, config, &packet, &Refused::plain(verdict.reason))
}

/// Decides, and writes down what the decision asks to be remembered.
#[inline(always)]
pub fn judge(skb: *mut __sk_buff, config: &Config, packet: &Packet, offset: u32) -> Verdict {
    let now = now();
    let has_headers = packet.has_ports() && matches!(packet.fragment, Fragment::Whole | Fragment::First);
    let verdict = if has_headers && judged_by_cgroup(skb, config, packet) {
        Verdict::plain(Reason::Judged)
    } else {
        let about = |error: &Packet| global::quoted_origin(skb, config, offset, error);
        // SAFETY: the context is valid.
        let own = unsafe { (*skb).ingress_ifindex } == 0;
        decision::leaves_uplink(&Kernel, config, about, packet, own, now)
    };
    if verdict.reason.passes() && !rehearsal::is_on(skb, config) {
        maps::remember_fragment(packet, &verdict, ZONE_UPLINK, now);
        if verdict.remember != ORIGIN_NONE {
            remember(packet, &verdict, config.generation, now);
        }
    }
    verdict
}

#[inline(never)]
fn remember(packet: &Packet, verdict: &Verdict, generation: u32, now: u32) {
    let key = decision::outward_key(packet, ZONE_UPLINK);
    // A connection does not age, and a time that never changes spares its packets the write, and the clock.
    let seen = if packet.proto == PROTO_TCP { 0 } else { now };
    let flow = Flow { seen, generation, grant: verdict.grant, origin: verdict.remember };
    if let Some(known) = maps::FLOWS.get_ptr_mut(&key) {
        // SAFETY: an entry of a map; concurrent packets of one flow write the same verdict.
        unsafe {
            if *known != flow {
                *known = flow;
            }
        }
    } else {
        let _ = maps::FLOWS.insert(&key, &flow, 0);
    }
}

/// Whether the governed cgroup's hook has let this very packet pass.
///
/// A tunnel's outer packet still carries the inner one's socket, so the headers must be the socket's own. Raw and packet
/// sockets write what they like and are judged here again.
#[inline(always)]
fn judged_by_cgroup(skb: *mut __sk_buff, config: &Config, packet: &Packet) -> bool {
    // What is forwarded has no socket: that is seen without a call.
    // SAFETY: the context is valid.
    let has_socket = unsafe { !(*skb).__bindgen_anon_2.sk.is_null() };
    // A function takes five arguments.
    let kind = u32::from(packet.proto) | u32::from(packet.tcp_flags) << 8;
    has_socket
        && config.cgroup_id != 0
        && is_sockets_own(skb, config, kind, packet.source_port, packet.destination_port)
}

#[inline(never)]
fn is_sockets_own(skb: *mut __sk_buff, config: &Config, kind: u32, near: u16, remote: u16) -> bool {
    let Some(sk) = socket(skb) else { return false };
    let (proto, flags) = (kind & 0xff, kind >> 8);
    // SAFETY: `sk` is a full socket, the context is valid, and helper 83 takes it.
    unsafe {
        let family = (*sk).family;
        let (from, far) = ((*sk).src_port, u16::from_be((*sk).dst_port));
        // A TCP socket has given its port back before it resets its connection (`tcp_disconnect` and `__tcp_close` in net/ipv4/tcp.c).
        let resets = from == 0 && proto == u32::from(PROTO_TCP) && flags & u32::from(TCP_RST) != 0;
        (family == AF_INET || family == AF_INET6)
            && (*sk).protocol == proto
            && (from == u32::from(near) || resets)
            && (far == 0 || far == remote)
            && bpf_skb_ancestor_cgroup_id(skb, config.cgroup_level as i32) == config.cgroup_id
    }
}

/// Whether this far end is a resolver whose answers are believed at the uplinks.
#[inline(never)]
fn trusts(config: &Config, address: &egress_ebpf::abi::Address, port: u16, packet: &Packet) -> bool {
    if !packet.has_ports() || (port != 53 && !config.has(Config::RESOLVER_PORTS)) {
        return false;
    }
    let key = ResolverKey { generation: config.generation, address: *address, port, pad: 0 };
    Kernel.resolver(&key).is_some_and(|trust| trust & LEARN_AT_UPLINK != 0)
}

#[inline(always)]
fn refuse(skb: *mut __sk_buff, config: &Config, packet: &Packet, refused: &Refused) -> i32 {
    global::egress_refuse_uplink(skb, config, packet, refused.pack());
    if config.has(Config::ENFORCE) { SHOT } else { NEXT }
}

/// Counts and tells of a refusal.
#[inline(always)]
pub fn refused(skb: *mut __sk_buff, config: &Config, packet: &Packet, what: u32) {
    // SAFETY: the context is valid.
    let (bytes, ifindex) = unsafe { ((*skb).len, (*skb).ifindex) };
    report::count_refused(what, bytes);
    let process = Process { pid: 0, uid: 0, comm: [0; 16] };
    let sender = report::Sender { hook: HOOK_UPLINK_EGRESS, bytes, ifindex, cgroup: 0, netns: 0, process };
    report::refused(config, packet, what, &sender);
}

#[inline(always)]
fn ingress(skb: *mut __sk_buff, ethernet: bool) -> i32 {
    // What a socket of this host sends to a group comes back without a link header, and its sender could have it look like one.
    // SAFETY: the context is valid.
    if unsafe { (*skb).pkt_type } == PACKET_LOOPBACK {
        return NEXT;
    }
    if let Some(config) = live() {
        let headers = Direct(skb);
        let ethertype = if ethernet { link(headers) } else { EtherType::Ip(0) };
        let EtherType::Ip(offset) = ethertype else { return NEXT };
        let bare = bare(ethernet);
        if offset == bare && plain(headers, bare).is_some_and(|packet| decision::tells_nothing(config, &packet, false))
        {
            return NEXT;
        }
        let offset = offset as u32;
        let mut packet = Packet::UNKNOWN;
        if global::parse(skb, offset, &mut packet).is_ok() {
            arrive(skb, config, offset, &packet);
        }
    }
    NEXT
}

#[inline(always)]
fn arrive(skb: *mut __sk_buff, config: &'static Config, offset: u32, packet: &Packet) {
    if trusts(config, &packet.source, packet.source_port, packet) {
        dns::answer(skb, config, packet, offset, 0);
    }
    remember_arrival(config, packet);
}

#[inline(never)]
fn remember_arrival(config: &Config, packet: &Packet) {
    if decision::arrives_at_uplink(&Kernel, config, packet, now) == ORIGIN_IN {
        let key = decision::inward_key(packet, ZONE_UPLINK);
        let seen = if packet.proto == PROTO_TCP { 0 } else { now() };
        let flow = Flow { seen, generation: config.generation, grant: 0, origin: ORIGIN_IN };
        let _ = maps::FLOWS.insert(&key, &flow, 0);
    }
}
