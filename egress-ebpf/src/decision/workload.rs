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
    Forged,
    /// It is judged here as at an uplink.
    Judge,
}

/// What is to be done with a packet that a workload sends to the host. `below_sockets` says whether a packet socket or
/// AF_XDP sent it; `route` tells where the host's routes for an address lead.
///
/// A trusted resolver that runs in a workload answers from where the host would send queries to it. What stays on the
/// node is nobody's business here: only what is bound for the outside is judged.
#[inline(always)]
pub fn enters_from_workload<T: Tables>(
    tables: &T,
    config: &Config,
    packet: &Packet,
    below_sockets: bool,
    route: impl Fn(&Packet, &Address) -> Route,
) -> Entry {
    if packet.has_ports()
        && from_resolver(tables, config, packet)
        && !matches!(route(packet, &packet.source), Route::Back)
    {
        return Entry::Forged;
    }
    if below_sockets && matches!(route(packet, &packet.destination), Route::Outside) {
        return Entry::Judge;
    }
    Entry::Pass
}

#[cfg(test)]
mod tests;
