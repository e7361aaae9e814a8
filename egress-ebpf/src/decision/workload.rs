//! The host side of a workload's veth: what the workload injects below its sockets.

use super::{Tables, from_resolver};
use crate::{
    abi::{Address, Config},
    packet::Packet,
};

/// Where the host's routes lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Back to the interface that the packet came from.
    Back,
    /// To the host itself, to another workload, or nowhere.
    Local,
    /// To an interface that is no workload's: an uplink, a tunnel.
    Outside,
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
    /// The kernel, for a socket; or whoever it is, nothing is known of a socket.
    Kernel,
    /// A raw socket of the workload's, whose packets the cgroup's hook has judged.
    RawSocket,
    /// A packet socket or AF_XDP, which no other hook has seen.
    BelowSockets,
}

/// What is to be done with a packet that a workload sends to the host. `route` tells where the host's routes for an address lead.
///
/// Who writes headers of his own can say that a packet comes from anywhere. Where it stays on the node, a socket would then be taken
/// for one that was called from there, and its answer for a reply (P1).
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
    if packet.has_ports()
        && from_resolver(tables, config, packet)
        && !matches!(route(packet, &packet.source), Route::Back)
    {
        return Entry::ForgedResolver;
    }
    if matches!(author, Author::Kernel) {
        return Entry::Pass;
    }
    if matches!(route(packet, &packet.destination), Route::Outside) {
        return if matches!(author, Author::BelowSockets) { Entry::Judge } else { Entry::Pass };
    }
    // Who has no address yet says so by none: a DHCP client.
    if !packet.source.is_unspecified() && matches!(route(packet, &packet.source), Route::Outside) {
        return Entry::ForgedSource;
    }
    Entry::Pass
}

#[cfg(test)]
mod tests;
