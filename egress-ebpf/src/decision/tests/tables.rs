//! Small tables, and the packets that are looked up in them.

use std::collections::HashMap;

use crate::abi::{BUILTIN_LOOPBACK, NEVER, PROTO_ICMP, PortRange, Slot};

use super::*;

pub(super) const NOW: Ticks = 10_000;
pub(super) const GENERATION: u32 = 5;
pub(super) const GRANT: u32 = 3;
pub(super) const COOKIE: u64 = 77;

pub(super) const HERE: Address = Address::v4([192, 0, 2, 1]);
/// Allowed on 443/tcp and 123/udp.
pub(super) const ALLOWED: Address = Address::v4([198, 51, 100, 1]);
/// As allowed, until now.
pub(super) const EXPIRED: Address = Address::v4([198, 51, 100, 2]);
pub(super) const DENIED: Address = Address::v4([198, 51, 100, 3]);
pub(super) const STRANGER: Address = Address::v4([203, 0, 113, 9]);
pub(super) const RESOLVER: Address = Address::v4([203, 0, 113, 53]);

pub(super) struct Fake {
    pub(super) addresses: HashMap<Address, AddressEntry>,
    pub(super) class: ClassChunk,
    pub(super) grants: HashMap<u32, GrantEntry>,
    pub(super) flows: HashMap<FlowKey, Flow>,
    pub(super) peers: HashMap<PeerKey, Flow>,
    pub(super) fragments: HashMap<FragmentKey, Ticks>,
}

impl Fake {
    pub(super) fn new() -> Self {
        let mut class = ClassChunk::default();
        class.ports[0] = PortRange::new(PROTO_TCP, 443, 443, GRANT);
        class.ports[1] = PortRange::new(PROTO_UDP, 123, 123, GRANT);
        class.ports[2] = PortRange::new(PROTO_ICMP, 0, u16::MAX, GRANT);
        let entry = |expiry| {
            let mut entry = AddressEntry::default();
            entry.slots[0] = Slot { class: 1, expiry }.pack();
            entry
        };
        Self {
            addresses: [(ALLOWED, entry(NEVER)), (EXPIRED, entry(NOW))].into(),
            class,
            grants: [(GRANT, GrantEntry { key: 1, from: 1, until: u32::MAX })].into(),
            flows: HashMap::new(),
            peers: HashMap::new(),
            fragments: HashMap::new(),
        }
    }

    pub(super) fn uplink(&self, packet: &Packet) -> Reason {
        leaves_uplink(self, &CONFIG, |_| ORIGIN_NONE, packet, true, NOW).reason
    }

    pub(super) fn socket(&self, kind: SocketKind, state: Option<&SocketState>, packet: &Packet) -> Reason {
        let sender = Sender { kind, cookie: COOKIE, loopback: false };
        leaves_socket(self, &CONFIG, |_| false, packet, &sender, state, NOW).reason
    }
}

impl Tables for Fake {
    fn address(&self, address: &Address, _epoch: u32) -> Option<&AddressEntry> {
        self.addresses.get(address)
    }
    fn prefix(&self, _address: &Address, _epoch: u32) -> Option<u32> {
        None
    }
    fn deny(&self, address: &Address, _epoch: u32) -> Option<u32> {
        (*address == DENIED).then_some(2)
    }
    fn class(&self, index: u32) -> Option<&ClassChunk> {
        static ALL: ClassChunk = ClassChunk {
            ports_id: 2,
            next: 0,
            count: 1,
            from: 0,
            gone: 0,
            pad: 0,
            ports: [PortRange::new(crate::abi::PROTO_ANY, 0, 0, 9); crate::abi::CHUNK_PORTS],
        };
        match index {
            1 => Some(&self.class),
            2 => Some(&ALL),
            _ => None,
        }
    }
    fn grant(&self, index: u32) -> Option<GrantEntry> {
        self.grants.get(&index).copied()
    }
    fn resolver(&self, key: &ResolverKey) -> Option<ResolverTrust> {
        (key.address == RESOLVER && key.port == 53).then_some(LEARN_AT_UPLINK)
    }
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key)
    }
    fn peer(&self, key: &PeerKey) -> Option<&Flow> {
        self.peers.get(key)
    }
    fn fragment(&self, key: &FragmentKey) -> Option<Ticks> {
        self.fragments.get(key).copied()
    }
}

pub(super) const CONFIG: Config = Config {
    generation: GENERATION,
    epoch: 1,
    flags: Config::ENFORCE | Config::DENIES_4,
    builtins: BUILTIN_LOOPBACK,
    min_ttl: 0,
    grace: 0,
    cgroup_level: 0,
    allow_private: 0,
    cgroup_id: 0,
    teaching_netns: 0,
    policy: 0,
};

pub(super) fn packet(proto: u8, destination: Address, destination_port: u16) -> Packet {
    Packet {
        source: HERE,
        destination,
        source_port: 40_000,
        destination_port,
        version: 4,
        proto,
        hops: 64,
        transport: 20,
        ..Packet::UNKNOWN
    }
}

pub(super) fn tcp(destination: Address, port: u16, tcp_flags: u8) -> Packet {
    Packet { tcp_flags, ..packet(PROTO_TCP, destination, port) }
}

pub(super) fn udp(destination: Address, port: u16) -> Packet {
    packet(PROTO_UDP, destination, port)
}

/// The packet that the far end would send back.
pub(super) fn back(packet: &Packet) -> Packet {
    Packet {
        source: packet.destination,
        destination: packet.source,
        source_port: packet.destination_port,
        destination_port: packet.source_port,
        ..*packet
    }
}

pub(super) fn flow(origin: u32, generation: u32, seen: Ticks) -> Flow {
    Flow { seen, generation, grant: if origin == ORIGIN_OUT { GRANT } else { 0 }, origin }
}

pub(super) fn state(packet: &Packet, flow: Flow) -> SocketState {
    let (remote, remote_port) = (packet.destination, packet.destination_port);
    SocketState { remote, remote_port, proto: packet.proto, flow, ..SocketState::default() }
}

pub(super) fn peer_key(packet: &Packet) -> PeerKey {
    let (remote, remote_port) = (packet.destination, packet.destination_port);
    PeerKey { cookie: COOKIE, remote, remote_port, proto: PROTO_UDP, pad: [0; 5] }
}

/// The reasons at an uplink and at a stream socket whose flow is `flow`.
pub(super) fn both(fake: &mut Fake, packet: &Packet, flow: Flow) -> (Reason, Reason) {
    fake.flows = [(outward_key(packet, ZONE_UPLINK), flow)].into();
    let kind = if packet.proto == PROTO_TCP { SocketKind::STREAM } else { SocketKind::DATAGRAM };
    (fake.uplink(packet), fake.socket(kind, Some(&state(packet, flow)), packet))
}

pub(super) fn same(reason: Reason) -> (Reason, Reason) {
    (reason, reason)
}
