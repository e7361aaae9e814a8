//! The short way: packets of a flow that needs nothing but its verdict. What these functions say, the whole decision says
//! too; where they say nothing it is to be asked.

use super::{Verdict, policy::PORT_DNS, socket::is_asked};
use crate::{
    abi::{Address, BUILTIN_LOOPBACK, Config, Flow, ORIGIN_IN, ORIGIN_OUT, PROTO_TCP, SocketState, Ticks},
    packet::Packet,
    reason::Reason,
};

/// Whether nothing is learned of a packet that arrives, at a socket or on an uplink, and nothing remembered: it is no resolver's, and of a
/// TCP connection that is under way, or arrives by a loopback interface.
#[inline(always)]
pub fn tells_nothing(config: &Config, packet: &Packet, loopback: bool) -> bool {
    ((packet.proto == PROTO_TCP && !packet.opens_tcp()) || loopback)
        && packet.source_port != PORT_DNS
        && !config.has(Config::RESOLVER_PORTS)
}

/// The same of a datagram that arrives at a socket, by what is known of the socket.
#[inline(always)]
pub fn tells_nothing_to(config: &Config, packet: &Packet, state: &SocketState) -> bool {
    packet.source_port != PORT_DNS && !config.has(Config::RESOLVER_PORTS) && is_asked(state, packet)
}

/// The verdict for a packet that leaves a governed socket by a loopback interface and asks no stub: see [`super::leaves_socket`].
#[inline(always)]
pub fn by_loopback(config: &Config, packet: &Packet) -> Option<Verdict> {
    let stays = config.builtins & BUILTIN_LOOPBACK != 0
        && packet.destination_port != PORT_DNS
        && !config.has(Config::RESOLVER_PORTS)
        && !config.has(Config::REHEARSAL);
    stays.then_some(Verdict::plain(Reason::Loopback))
}

/// The verdict for a packet of the flow that a socket carries, not by a loopback interface, where there is nothing new to
/// write down: see [`super::leaves_socket`].
#[inline(always)]
pub fn established_at_socket(
    config: &Config,
    packet: &Packet,
    state: &SocketState,
    now: impl FnOnce() -> Ticks,
) -> Option<Verdict> {
    let Address { high, low } = state.remote;
    if state.proto != packet.proto
        || state.remote_port != packet.destination_port
        || low != packet.destination.low
        || high != packet.destination.high
    {
        return None;
    }
    verdict(config, packet, &state.flow, now)
}

/// The verdict for a packet of a flow of map `FLOWS` by an uplink, where there is nothing new to write down: see
/// [`super::leaves_uplink`].
#[inline(always)]
pub fn established_at_uplink(
    config: &Config,
    packet: &Packet,
    flow: &Flow,
    now: impl FnOnce() -> Ticks,
) -> Option<Verdict> {
    verdict(config, packet, flow, now)
}

#[inline(always)]
fn verdict(config: &Config, packet: &Packet, flow: &Flow, now: impl FnOnce() -> Ticks) -> Option<Verdict> {
    if flow.generation != config.generation {
        return None;
    }
    if packet.proto == PROTO_TCP {
        if packet.opens_tcp() {
            return None;
        }
    } else if flow.seen != now() {
        // Once in a tick a datagram goes the long way, which looks at the flow's age and makes it young again.
        return None;
    }
    match flow.origin {
        ORIGIN_IN => Some(Verdict::by(Reason::Reply, 0, ORIGIN_IN)),
        ORIGIN_OUT => Some(Verdict::by(Reason::Established, flow.grant, ORIGIN_OUT)),
        _ => None,
    }
}
