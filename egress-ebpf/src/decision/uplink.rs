//! The uplinks: packets without a governed socket. Forwarded ones, AF_PACKET's, tunnels', the kernel's own.

use super::{
    Destination, Tables, Verdict, datagram_arrives, forges_resolver, fragment, fresh, from_resolver, goes_on,
    inward_key, is_odd_fragment, outward_key, to_resolver,
};
use crate::{
    abi::{Config, Flow, ORIGIN_IN, ORIGIN_NONE, ORIGIN_OUT, PROTO_TCP, PROTO_UDP, Ticks, ZONE_UPLINK},
    packet::{Fragment, Packet},
    reason::Reason,
};

/// The verdict for an IP packet that leaves by an uplink. `own` says whether this node made it, and does not forward it; `about` answers for an ICMP error whose
/// flow it is about ([`super::quoted_origin`]).
#[inline(always)]
pub fn leaves_uplink<T: Tables>(
    tables: &T,
    config: &Config,
    about: impl FnOnce(&Packet) -> u32,
    packet: &Packet,
    own: bool,
    now: Ticks,
) -> Verdict {
    if own && forges_resolver(tables, config, packet) {
        return Verdict::plain(Reason::ForgedResolver);
    }
    if is_odd_fragment(packet) {
        return Verdict::plain(fragment(tables, packet, ZONE_UPLINK, now));
    }
    if let Some(query) = to_resolver(tables, config, &Destination::of(packet), now) {
        return query;
    }
    // What opens a connection is judged anew, whatever is known of an earlier one.
    let known = if packet.opens_tcp() { None } else { known_flow(tables, packet) };
    let known = fresh(known, packet.proto, now);
    // Of ICMP only replies answer: an echo request in the same flow is the node's own question.
    if known.origin == ORIGIN_IN && (packet.has_ports() || packet.is_echo_reply()) {
        return Verdict::by(Reason::Reply, 0, ORIGIN_IN);
    }
    if known.origin == ORIGIN_OUT && known.generation == config.generation {
        return Verdict::by(Reason::Established, known.grant, ORIGIN_OUT);
    }
    // None of them is TCP, and that is seen without a call.
    if packet.proto != PROTO_TCP && tables.builtin(config, packet, own) {
        return Verdict::plain(Reason::Builtin);
    }
    let verdict = tables.policy(config, &Destination::of(packet), now);
    if verdict.reason.passes() {
        return verdict;
    }
    if goes_on(tables, config, &known, &verdict) {
        return Verdict::by(Reason::Established, known.grant, ORIGIN_OUT);
    }
    if packet.is_icmp_error() {
        // Who answers the node, and sends more than a link takes, is to hear of it.
        let origin = about(packet);
        if origin == ORIGIN_IN || (origin == ORIGIN_OUT && !matches!(verdict.reason, Reason::Denied)) {
            return Verdict::plain(Reason::Reply);
        }
    }
    verdict
}

// Not inlined, for the stack's sake.
#[inline(never)]
fn known_flow<'a, T: Tables>(tables: &'a T, packet: &Packet) -> Option<&'a Flow> {
    tables.flow(&outward_key(packet, ZONE_UPLINK))
}

/// What to remember of a packet that arrives on an uplink: the origin to write, or [`ORIGIN_NONE`].
#[inline(always)]
pub fn arrives_at_uplink<T: Tables>(tables: &T, config: &Config, packet: &Packet, now: impl FnOnce() -> Ticks) -> u32 {
    if matches!(packet.fragment, Fragment::Later) {
        return ORIGIN_NONE;
    }
    match packet.proto {
        PROTO_TCP if packet.opens_tcp() => ORIGIN_IN,
        PROTO_UDP if from_resolver(tables, config, packet) => ORIGIN_NONE,
        PROTO_UDP => datagram_arrives(config, tables.flow(&inward_key(packet, ZONE_UPLINK)), now),
        _ if packet.is_echo_request() => ORIGIN_IN,
        _ => ORIGIN_NONE,
    }
}
