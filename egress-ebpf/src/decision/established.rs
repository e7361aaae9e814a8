//! The short way: packets of a flow that needs nothing but its verdict. What these functions say, the whole decision says
//! too; where they say nothing it is to be asked.

use super::{Verdict, policy::PORT_DNS};
use crate::{
    abi::{Address, Config, Flow, ORIGIN_IN, ORIGIN_OUT, PROTO_TCP, SocketState, Ticks},
    packet::Packet,
    reason::Reason,
};

/// Whether a packet that arrives, at a socket or on an uplink, is of a TCP connection that is under way, and no resolver's: nothing is
/// learned or to be remembered of it.
#[inline(always)]
pub fn tells_nothing(config: &Config, packet: &Packet) -> bool {
    packet.proto == PROTO_TCP
        && !packet.opens_tcp()
        && packet.source_port != PORT_DNS
        && !config.has(Config::RESOLVER_PORTS)
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
