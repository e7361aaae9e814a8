//! What passed lately, as far as the flow tables tell.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use egress_ebpf::abi::{
    Flow, FlowKey, GrantEntry, ORIGIN_IN, ORIGIN_OUT, PROTO_TCP, PeerKey, Ticks, ZONE_SOCKET, ZONE_UPLINK,
};

use super::{Datapath, Error, Table, install::connection_key};

/// The tables of flows, with descriptors of their own: a walk over them keeps nobody from the data path.
#[derive(Debug)]
pub struct FlowTables {
    flows: Table<FlowKey, Flow>,
    peers: Table<PeerKey, Flow>,
    grants: Table<u32, GrantEntry>,
    generation: u32,
}

/// A flow that was opened outwards, and passes under the live policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Passed {
    /// The far end.
    pub remote: IpAddr,
    /// The far port; 0 for ICMP.
    pub port: u16,
    /// The IP protocol number.
    pub proto: u8,
    /// The tick of its last packet; `None` for a connection, whose packets are not timed.
    pub seen: Option<Ticks>,
    /// The index in map `GRANTS` of the rule item that it stands on.
    pub grant: u32,
}

impl Datapath {
    /// The tables of flows, under the live generation.
    pub fn flow_tables(&self) -> Result<FlowTables, Error> {
        Ok(FlowTables {
            flows: self.object.table("FLOWS")?,
            peers: self.object.table("PEERS")?,
            grants: self.object.table("GRANTS")?,
            generation: self.generation()?,
        })
    }
}

impl FlowTables {
    /// Calls `each` with the datagram flows of governed sockets, and with what left by an uplink without one, until it says
    /// `false` or `end` comes. Gives whether everything was looked at.
    ///
    /// Connections of governed sockets are in the sockets' own storage, which cannot be walked from here.
    pub fn passed(&self, end: Instant, mut each: impl FnMut(Passed) -> bool) -> Result<bool, Error> {
        let mut failed = Ok(());
        let mut take = |remote, port, proto, flow: &Flow| {
            if Instant::now() >= end {
                return false;
            }
            if flow.origin != ORIGIN_OUT {
                return true;
            }
            match self.grants.get(&flow.grant) {
                Ok(Some(grant)) if grant.stands(flow.generation, self.generation) => {
                    let seen = (proto != PROTO_TCP).then_some(flow.seen);
                    each(Passed { remote, port, proto, seen, grant: flow.grant })
                }
                Ok(_) => true,
                Err(error) => {
                    failed = Err(error);
                    false
                }
            }
        };
        let mut all = self.peers.each(|key, flow| take(key.remote.into(), key.remote_port, key.proto, flow))?;
        all = all
            && self.flows.each(|key, flow| {
                key.zone != ZONE_UPLINK || take(key.remote.into(), key.remote_port, key.proto, flow)
            })?;
        failed.map(|()| all)
    }

    /// Whether a TCP connection is known as one that was accepted.
    pub fn is_accepted(&self, local: SocketAddr, remote: SocketAddr) -> Result<bool, Error> {
        for zone in [ZONE_SOCKET, ZONE_UPLINK] {
            if self.flows.get(&connection_key(local, remote, zone))?.is_some_and(|flow| flow.origin == ORIGIN_IN) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
