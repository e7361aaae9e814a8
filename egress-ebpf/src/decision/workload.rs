//! The host side of a workload's veth: what the workload injects below its sockets.

use super::{Tables, from_resolver};
use crate::{
    abi::{Address, Config, PROTO_UDP},
    packet::Packet,
};

/// Where the host's routes lead: a plain number, which a BPF function can return in a register.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Back to the interface that the packet came from.
    Back,
    /// To the host itself, to another workload, or nowhere.
    Local,
    /// To the link of the bridge that the interface is a port of, and that leads out: to the workload, or to a neighbour of the node's.
    Link,
    /// To an uplink, whose program judges what leaves by it.
    Uplink,
    /// To an interface that is neither a workload's nor an uplink: a tunnel.
    Unjudged,
    /// The host forwards nothing by this family, and its routes do not tell.
    Untold,
}

impl Route {
    /// The route of a number; one that is none leads outside.
    #[inline(always)]
    pub const fn of(number: u32) -> Self {
        match number {
            number if number == Self::Back as u32 => Self::Back,
            number if number == Self::Local as u32 => Self::Local,
            number if number == Self::Link as u32 => Self::Link,
            number if number == Self::Uplink as u32 => Self::Uplink,
            number if number == Self::Untold as u32 => Self::Untold,
            _ => Self::Unjudged,
        }
    }

    #[inline(always)]
    const fn is_outside(self) -> bool {
        matches!(self, Self::Link | Self::Uplink | Self::Unjudged)
    }
}

/// What is to be done with a packet that a workload sends to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It goes on; its socket was judged, or the uplink will judge it.
    Pass,
    /// It is refused: its source is a trusted resolver, which is not there.
    ForgedResolver,
    /// It is refused: it says that it comes from outside, and stays on this node.
    ForgedSource,
    /// It is judged here as at an uplink.
    Judge,
}

/// Who wrote a packet's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Author {
    /// Nothing is known of a socket: it is forwarded inside, or whoever it is.
    Unknown,
    /// The kernel, for a socket. Whose address it is bound to is its owner's choice: of IPv4 with CAP_NET_RAW (IP_TRANSPARENT), of IPv6
    /// without (IPV6_FREEBIND).
    Socket,
    /// A raw socket of the workload's, whose packets the cgroup's hook has judged; or the kernel, for itself.
    RawSocket,
    /// A packet socket or AF_XDP, which no other hook has seen.
    BelowSockets,
}

/// What is to be done with a packet that a workload sends to the host. `route` tells where the host's routes for an address lead.
///
/// Who chooses a packet's source can say that it comes from anywhere. Where it stays on the node, a socket would then be taken
/// for one that was called from there, and its answer for a reply (P1). What calls nobody may: the kernel's answers on the link of a bridge.
///
/// A trusted resolver that runs in a workload answers from where the host would send queries to it. What stays on the
/// node is nobody's business here: only what is bound for the outside is judged.
#[inline(always)]
pub fn enters_from_workload<T: Tables>(
    tables: &T,
    config: &Config,
    packet: &Packet,
    author: Author,
    route: impl Fn(&Packet, &Address) -> Route,
) -> Entry {
    let answers = packet.has_ports() && from_resolver(tables, config, packet);
    // Of a connection the first segment is looked at alone.
    let calls = packet.proto == PROTO_UDP || packet.opens_tcp();
    let looked_at = match author {
        Author::Unknown => false,
        Author::Socket => calls,
        Author::RawSocket | Author::BelowSockets => true,
    };
    if !answers && !looked_at {
        return Entry::Pass;
    }
    let from = route(packet, &packet.source);
    if answers && !matches!(from, Route::Back) {
        return Entry::ForgedResolver;
    }
    // Nearly all are bound to an address of their own, whose route may lead by an interface of the network's (Cilium, OVN).
    if !looked_at || (matches!(author, Author::Socket) && !matches!(from, Route::Uplink)) {
        return Entry::Pass;
    }
    let to = route(packet, &packet.destination);
    if to.is_outside() {
        // The workload's kernel answers what was sent to it in anybody's name, and quotes it: no hook has judged that.
        let unjudged = matches!(to, Route::Unjudged) && matches!(author, Author::RawSocket) && packet.is_icmp_error();
        return if unjudged || matches!(author, Author::BelowSockets) { Entry::Judge } else { Entry::Pass };
    }
    // Who has no address yet says so by none: a DHCP client.
    if calls && (from.is_outside() || matches!(from, Route::Untold)) && !packet.source.is_unspecified() {
        return Entry::ForgedSource;
    }
    Entry::Pass
}

#[cfg(test)]
mod tests;
