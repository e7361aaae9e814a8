//! Flows and replies, on small tables. What rules say is compared with a model elsewhere.

use std::{cell::Cell, collections::HashMap};

use super::*;
use crate::{
    abi::{
        BUILTIN_LOOPBACK, Flow, NEVER, ORIGIN_NONE, ORIGIN_OUT, PROTO_ICMP, PROTO_UDP, PortRange, Slot, SocketState,
        ZONE_SOCKET,
    },
    packet::{Fragment, TCP_ACK, TCP_SYN},
};

const NOW: Ticks = 10_000;
const GENERATION: u32 = 5;
const GRANT: u32 = 3;
const COOKIE: u64 = 77;

const HERE: Address = Address::v4([192, 0, 2, 1]);
/// Allowed on 443/tcp and 123/udp.
const ALLOWED: Address = Address::v4([198, 51, 100, 1]);
/// As allowed, until now.
const EXPIRED: Address = Address::v4([198, 51, 100, 2]);
const DENIED: Address = Address::v4([198, 51, 100, 3]);
const STRANGER: Address = Address::v4([203, 0, 113, 9]);
const RESOLVER: Address = Address::v4([203, 0, 113, 53]);

struct Fake {
    addresses: HashMap<Address, AddressEntry>,
    class: ClassChunk,
    grants: HashMap<u32, GrantEntry>,
    flows: HashMap<FlowKey, Flow>,
    peers: HashMap<PeerKey, Flow>,
    fragments: HashMap<FragmentKey, Ticks>,
}

impl Fake {
    fn new() -> Self {
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

    fn uplink(&self, packet: &Packet) -> Reason {
        leaves_uplink(self, &CONFIG, |_| false, packet, NOW).reason
    }

    fn socket(&self, kind: SocketKind, state: Option<&SocketState>, packet: &Packet) -> Reason {
        let sender = Sender { kind, cookie: COOKIE, loopback: false };
        leaves_socket(self, &CONFIG, |_| false, packet, &sender, state, NOW).reason
    }
}

impl Tables for Fake {
    fn address(&self, address: &Address, _generation: u32) -> Option<&AddressEntry> {
        self.addresses.get(address)
    }
    fn prefix(&self, _address: &Address, _generation: u32) -> Option<u32> {
        None
    }
    fn deny(&self, address: &Address, _generation: u32) -> Option<u32> {
        (*address == DENIED).then_some(2)
    }
    fn class(&self, index: u32) -> Option<&ClassChunk> {
        static ALL: ClassChunk = ClassChunk {
            ports_id: 2,
            next: 0,
            count: 1,
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
        (key.address == RESOLVER && key.port == 53).then_some(1)
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

/// What an address has when it is looked at again.
enum Again {
    Nothing,
    Other(AddressEntry),
    Same,
}

/// Tables out of which an address is taken as soon as it was looked at; its memory is another's then.
struct Reclaiming {
    fake: Fake,
    again: Again,
    looks: Cell<u64>,
}

impl Tables for Reclaiming {
    fn address(&self, address: &Address, generation: u32) -> Option<&AddressEntry> {
        self.looks.set(self.looks.get() + 1);
        match &self.again {
            Again::Nothing if self.looks.get() > 1 => None,
            Again::Other(entry) if self.looks.get() > 1 => Some(entry),
            _ => self.fake.address(address, generation),
        }
    }
    fn reclaims(&self) -> u64 {
        self.looks.get()
    }
    fn prefix(&self, _address: &Address, _generation: u32) -> Option<u32> {
        None
    }
    fn deny(&self, _address: &Address, _generation: u32) -> Option<u32> {
        None
    }
    fn class(&self, index: u32) -> Option<&ClassChunk> {
        self.fake.class(index)
    }
    fn grant(&self, _index: u32) -> Option<GrantEntry> {
        None
    }
    fn resolver(&self, _key: &ResolverKey) -> Option<ResolverTrust> {
        None
    }
    fn flow(&self, _key: &FlowKey) -> Option<&Flow> {
        None
    }
    fn peer(&self, _key: &PeerKey) -> Option<&Flow> {
        None
    }
    fn fragment(&self, _key: &FragmentKey) -> Option<Ticks> {
        None
    }
}

const CONFIG: Config = Config {
    generation: GENERATION,
    flags: Config::ENFORCE | Config::DENIES_4,
    builtins: BUILTIN_LOOPBACK,
    min_ttl: 0,
    grace: 0,
    cgroup_level: 0,
    cgroup_id: 0,
    teaching_netns: 0,
};

fn packet(proto: u8, destination: Address, destination_port: u16) -> Packet {
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

fn tcp(destination: Address, port: u16, tcp_flags: u8) -> Packet {
    Packet { tcp_flags, ..packet(PROTO_TCP, destination, port) }
}

fn udp(destination: Address, port: u16) -> Packet {
    packet(PROTO_UDP, destination, port)
}

/// The packet that the far end would send back.
fn back(packet: &Packet) -> Packet {
    Packet {
        source: packet.destination,
        destination: packet.source,
        source_port: packet.destination_port,
        destination_port: packet.source_port,
        ..*packet
    }
}

fn flow(origin: u32, generation: u32, seen: Ticks) -> Flow {
    Flow { seen, generation, grant: if origin == ORIGIN_OUT { GRANT } else { 0 }, origin }
}

fn state(packet: &Packet, flow: Flow) -> SocketState {
    let (remote, remote_port) = (packet.destination, packet.destination_port);
    SocketState { remote, remote_port, proto: packet.proto, flow, ..SocketState::default() }
}

fn peer_key(packet: &Packet) -> PeerKey {
    let (remote, remote_port) = (packet.destination, packet.destination_port);
    PeerKey { cookie: COOKIE, remote, remote_port, proto: PROTO_UDP, pad: [0; 5] }
}

/// The reasons at an uplink and at a stream socket whose flow is `flow`.
fn both(fake: &mut Fake, packet: &Packet, flow: Flow) -> (Reason, Reason) {
    fake.flows = [(outward_key(packet, ZONE_UPLINK), flow)].into();
    let kind = if packet.proto == PROTO_TCP { SocketKind::Stream } else { SocketKind::Datagram };
    (fake.uplink(packet), fake.socket(kind, Some(&state(packet, flow)), packet))
}

fn same(reason: Reason) -> (Reason, Reason) {
    (reason, reason)
}

#[test]
fn a_verdict_says_what_to_remember() {
    let fake = Fake::new();
    let rule = Verdict { reason: Reason::Rule, grant: GRANT, remember: ORIGIN_OUT };
    assert_eq!(leaves_uplink(&fake, &CONFIG, |_| false, &tcp(ALLOWED, 443, TCP_SYN), NOW), rule);
    let dropped = leaves_uplink(&fake, &CONFIG, |_| false, &tcp(STRANGER, 443, TCP_SYN), NOW);
    assert_eq!(dropped, Verdict::plain(Reason::NoRule));
    for verdict in [rule, dropped, Verdict { reason: Reason::Reply, grant: u32::MAX, remember: ORIGIN_IN }] {
        assert_eq!(Verdict::unpack(verdict.pack()), verdict);
    }
    assert_eq!(Verdict::unpack(15).reason, Reason::NoPolicy, "a number that is no reason fails closed");
}

/// Issue 3, 4: an address that is used after its TTL but inside the grace passes, and is told apart to be counted.
#[test]
fn what_passes_in_the_grace_is_told_apart() {
    let mut fake = Fake::new();
    let config = Config { grace: 10, ..CONFIG };
    for further in [false, true] {
        if further {
            // Where the first look at an address does not reach: by the walk over its slots.
            fake.class.ports.swap(0, 3);
        }
        for (expiry, reason) in [
            (crate::abi::NEVER, Reason::Rule),
            (NOW + 11, Reason::Rule),
            (NOW + 10, Reason::Grace),
            (NOW + 1, Reason::Grace),
            (NOW, Reason::Expired),
        ] {
            let class = Slot::unpack(fake.addresses[&ALLOWED].slots[0]).class;
            fake.addresses.get_mut(&ALLOWED).unwrap().slots[0] = Slot { class, expiry }.pack();
            let verdict = leaves_uplink(&fake, &config, |_| false, &tcp(ALLOWED, 443, TCP_SYN), NOW);
            assert_eq!(verdict.reason, reason, "{} left", expiry.wrapping_sub(NOW));
            assert_eq!((verdict.grant == GRANT, verdict.remember == ORIGIN_OUT), (reason.passes(), reason.passes()));
            let strict = leaves_uplink(&fake, &CONFIG, |_| false, &tcp(ALLOWED, 443, TCP_SYN), NOW);
            assert_ne!(strict.reason, Reason::Grace, "no grace, nothing in it");
        }
    }
}

/// P1: what was read of an entry that was taken out meanwhile opens nothing; one that is there still does.
#[test]
fn an_entry_that_is_reclaimed_meanwhile_opens_nothing() {
    let mut tables = Reclaiming { fake: Fake::new(), again: Again::Nothing, looks: Cell::new(0) };
    let passes = |tables: &Reclaiming| {
        tables.looks.set(0);
        leaves_uplink(tables, &CONFIG, |_| false, &tcp(ALLOWED, 443, TCP_SYN), NOW).reason.passes()
    };
    assert!(!passes(&tables));
    assert!(tables.looks.get() > 1, "it is looked at again");
    // Another entry, though it opens the same.
    tables.again = Again::Other(tables.fake.addresses[&ALLOWED]);
    assert!(!passes(&tables));
    // By the walk over further slots and ports, too.
    tables.fake.class.ports.swap(0, 3);
    assert!(!passes(&tables));
    // Others' entries were taken out: this one is there still.
    tables.again = Again::Same;
    assert!(passes(&tables));
}

#[test]
fn refusals_tell_the_nearest_cause() {
    let fake = Fake::new();
    for (packet, reason) in [
        (tcp(STRANGER, 443, TCP_SYN), Reason::NoRule),
        (tcp(ALLOWED, 444, TCP_SYN), Reason::NoPort),
        (udp(ALLOWED, 443), Reason::NoPort),
        (tcp(EXPIRED, 443, TCP_SYN), Reason::Expired),
        (tcp(DENIED, 443, TCP_SYN), Reason::Denied),
        (packet(47, DENIED, 0), Reason::Denied),
        (packet(47, ALLOWED, 0), Reason::Protocol),
        (udp(STRANGER, 53), Reason::UntrustedResolver),
        (tcp(ALLOWED, 53, TCP_SYN), Reason::UntrustedResolver),
        (udp(RESOLVER, 53), Reason::Dns),
        (udp(RESOLVER, 54), Reason::NoRule),
    ] {
        assert_eq!(fake.uplink(&packet), reason, "{packet:?}");
        assert_eq!(fake.socket(SocketKind::Stream, None, &packet), reason, "{packet:?}");
    }
}

#[test]
fn a_connection_outlives_its_address() {
    let mut fake = Fake::new();
    let segment = tcp(EXPIRED, 443, TCP_ACK);
    assert_eq!(both(&mut fake, &segment, flow(ORIGIN_OUT, GENERATION, 0)), same(Reason::Established));
    // Not a new one on the same ports.
    let syn = tcp(EXPIRED, 443, TCP_SYN);
    assert_eq!(both(&mut fake, &syn, flow(ORIGIN_OUT, GENERATION, 0)), same(Reason::Expired));
    assert_eq!(both(&mut fake, &segment, Flow::default()), same(Reason::Expired));
}

#[test]
fn a_datagram_flow_ages_and_a_connection_does_not() {
    let mut fake = Fake::new();
    let datagram = udp(EXPIRED, 123);
    let at = |age| flow(ORIGIN_OUT, GENERATION, NOW - age);
    assert_eq!(both(&mut fake, &datagram, at(crate::abi::IDLE)), same(Reason::Established));
    assert_eq!(both(&mut fake, &datagram, at(crate::abi::IDLE + 1)), same(Reason::Expired));
    assert_eq!(both(&mut fake, &tcp(EXPIRED, 443, TCP_ACK), at(NOW)), same(Reason::Established));
    // The clock's number may wrap.
    let sender = Sender { kind: SocketKind::Datagram, cookie: COOKIE, loopback: false };
    let wrapped = state(&datagram, flow(ORIGIN_OUT, GENERATION, u32::MAX - 2));
    let verdict = leaves_socket(&fake, &CONFIG, |_| false, &datagram, &sender, Some(&wrapped), 3);
    assert_eq!(verdict.reason, Reason::Established);
}

#[test]
fn after_a_reload_a_connection_goes_on_only_with_its_grant() {
    let mut fake = Fake::new();
    let segment = tcp(EXPIRED, 443, TCP_ACK);
    let before = flow(ORIGIN_OUT, GENERATION - 1, NOW);
    assert_eq!(both(&mut fake, &segment, before), same(Reason::Established));
    for (what, grant) in [
        ("gone with the reload", GrantEntry { key: 1, from: 1, until: GENERATION - 1 }),
        ("given to another since", GrantEntry { key: 1, from: GENERATION, until: u32::MAX }),
        ("free", GrantEntry::default()),
    ] {
        fake.grants = [(GRANT, grant)].into();
        assert_eq!(both(&mut fake, &segment, before), same(Reason::Expired), "{what}");
    }
    fake.grants.clear();
    assert_eq!(both(&mut fake, &segment, before), same(Reason::Expired));
    // What the new policy allows by another grant goes on by that one.
    assert_eq!(both(&mut fake, &tcp(ALLOWED, 443, TCP_ACK), before), same(Reason::Rule));
}

#[test]
fn a_new_deny_rule_ends_what_the_node_opened_and_no_reply() {
    let mut fake = Fake::new();
    let segment = tcp(DENIED, 443, TCP_ACK);
    assert_eq!(both(&mut fake, &segment, flow(ORIGIN_OUT, GENERATION - 1, NOW)), same(Reason::Denied));
    assert_eq!(both(&mut fake, &segment, flow(ORIGIN_IN, GENERATION - 1, NOW)), same(Reason::Reply));
}

#[test]
fn accepted_connections_are_answered_and_not_opened_anew() {
    let mut fake = Fake::new();
    let answer = tcp(STRANGER, 50_000, TCP_SYN | TCP_ACK);
    let key = |zone| outward_key(&answer, zone);
    fake.flows = [(key(ZONE_SOCKET), flow(ORIGIN_IN, 1, 0))].into();
    assert_eq!(fake.socket(SocketKind::Stream, None, &answer), Reason::Reply);
    assert_eq!(fake.socket(SocketKind::Stream, None, &tcp(STRANGER, 50_000, TCP_SYN)), Reason::NoRule);
    assert_eq!(fake.socket(SocketKind::Stream, None, &tcp(STRANGER, 50_001, TCP_ACK)), Reason::NoRule);
    // What a workload's own namespace saw come in says nothing at the uplink.
    assert_eq!(fake.uplink(&answer), Reason::NoRule);
    fake.flows = [(key(ZONE_UPLINK), flow(ORIGIN_IN, 1, 0))].into();
    assert_eq!(fake.uplink(&answer), Reason::Reply);
    assert_eq!(fake.uplink(&tcp(STRANGER, 50_000, TCP_SYN)), Reason::NoRule);
    assert_eq!(fake.socket(SocketKind::Stream, None, &answer), Reason::NoRule);
}

/// P1: with CAP_NET_RAW a workload can send itself a SYN from anywhere, over its own loopback.
#[test]
fn raw_sockets_cannot_claim_a_streams_replies() {
    let mut fake = Fake::new();
    let answer = tcp(STRANGER, 50_000, TCP_ACK);
    fake.flows = [(outward_key(&answer, ZONE_SOCKET), flow(ORIGIN_IN, 1, NOW))].into();
    assert_eq!(fake.socket(SocketKind::Raw, None, &answer), Reason::NoRule);
    assert_eq!(fake.socket(SocketKind::Datagram, None, &answer), Reason::NoRule);
    fake.flows = [(outward_key(&answer, ZONE_UPLINK), flow(ORIGIN_IN, 1, NOW))].into();
    assert_eq!(fake.socket(SocketKind::Raw, None, &answer), Reason::Reply);
    assert_eq!(fake.socket(SocketKind::Raw, None, &tcp(STRANGER, 50_000, TCP_SYN)), Reason::NoRule);
    // Nor datagrams that another socket was sent.
    let datagram = udp(STRANGER, 50_000);
    fake.peers = [(peer_key(&datagram), flow(ORIGIN_IN, 1, NOW))].into();
    assert_eq!(fake.socket(SocketKind::Raw, None, &datagram), Reason::NoRule);
    assert_eq!(fake.socket(SocketKind::Datagram, None, &datagram), Reason::Reply);
    // Nor a stream to a resolver, of which each segment was judged alone.
    assert_eq!(fake.socket(SocketKind::Raw, None, &tcp(RESOLVER, 53, TCP_ACK)), Reason::BadQuery);
    assert_eq!(fake.socket(SocketKind::Stream, None, &tcp(RESOLVER, 53, TCP_ACK)), Reason::Dns);
}

#[test]
fn a_sockets_state_is_for_its_far_end_alone() {
    let fake = Fake::new();
    let known = state(&udp(STRANGER, 1000), flow(ORIGIN_IN, 1, NOW));
    let to = |packet: &Packet| fake.socket(SocketKind::Datagram, Some(&known), packet);
    assert_eq!(to(&udp(STRANGER, 1000)), Reason::Reply);
    assert_eq!(to(&udp(STRANGER, 1001)), Reason::NoRule);
    assert_eq!(to(&udp(DENIED, 1000)), Reason::Denied);
    assert_eq!(to(&tcp(STRANGER, 1000, TCP_ACK)), Reason::NoRule);
}

#[test]
fn an_echo_reply_answers_and_a_request_does_not() {
    let mut fake = Fake::new();
    let echo = |kind: u16, to| packet(PROTO_ICMP, to, kind << 8);
    let (reply, request) = (echo(0, STRANGER), echo(8, STRANGER));
    fake.flows = [(outward_key(&reply, ZONE_UPLINK), flow(ORIGIN_IN, 1, NOW))].into();
    assert_eq!((fake.uplink(&reply), fake.uplink(&request)), (Reason::Reply, Reason::NoRule));
    assert_eq!(fake.socket(SocketKind::Raw, None, &reply), Reason::Reply);
    assert_eq!(fake.socket(SocketKind::Raw, None, &request), Reason::NoRule);
    let other = Packet { source_port: 1, ..reply };
    assert_eq!(fake.uplink(&other), Reason::NoRule, "another identifier");
    assert_eq!(fake.uplink(&echo(8, ALLOWED)), Reason::Rule);
}

#[test]
fn icmp_errors_pass_if_they_are_about_what_came_in() {
    let fake = Fake::new();
    let error = packet(PROTO_ICMP, STRANGER, 3 << 8);
    for about in [true, false] {
        let reason = if about { Reason::Reply } else { Reason::NoRule };
        assert_eq!(leaves_uplink(&fake, &CONFIG, |_| about, &error, NOW).reason, reason);
        let raw = Sender { kind: SocketKind::Raw, cookie: COOKIE, loopback: false };
        let verdict = leaves_socket(&fake, &CONFIG, |_| about, &error, &raw, None, NOW);
        assert_eq!((verdict.reason, verdict.remember), (reason, ORIGIN_NONE));
    }
    // Redirects reroute: they are no errors.
    let redirect = packet(PROTO_ICMP, STRANGER, 5 << 8);
    assert_eq!(leaves_uplink(&fake, &CONFIG, |_| true, &redirect, NOW).reason, Reason::NoRule);
}

#[test]
fn loopback_passes_from_sockets_unless_switched_off() {
    let fake = Fake::new();
    let off = Config { builtins: 0, ..CONFIG };
    for (loopback, config, reason) in
        [(true, CONFIG, Reason::Loopback), (false, CONFIG, Reason::Denied), (true, off, Reason::Denied)]
    {
        let sender = Sender { kind: SocketKind::Stream, cookie: COOKIE, loopback };
        let verdict = leaves_socket(&fake, &config, |_| false, &tcp(DENIED, 443, TCP_SYN), &sender, None, NOW);
        assert_eq!(verdict, Verdict::plain(reason));
    }
}

#[test]
fn later_fragments_follow_their_first_one_in_their_zone_and_time() {
    let mut fake = Fake::new();
    let later = Packet { fragment: Fragment::Later, fragment_id: 9, ..udp(ALLOWED, 0) };
    assert_eq!(fake.uplink(&later), Reason::OrphanFragment, "though its address is allowed");
    fake.fragments = [(fragment_key(&later, ZONE_UPLINK), NOW - FRAGMENT_LIFE)].into();
    assert_eq!(fake.uplink(&later), Reason::Fragment);
    assert_eq!(fake.socket(SocketKind::Raw, None, &later), Reason::OrphanFragment);
    assert_eq!(fake.uplink(&Packet { fragment_id: 8, ..later }), Reason::OrphanFragment);
    assert_eq!(fake.uplink(&Packet { destination: STRANGER, ..later }), Reason::OrphanFragment);
    fake.fragments = [(fragment_key(&later, ZONE_SOCKET), NOW - FRAGMENT_LIFE - 1)].into();
    assert_eq!(fake.socket(SocketKind::Raw, None, &later), Reason::OrphanFragment);
}

#[test]
fn what_arrives_at_a_socket_is_remembered_unless_it_is_an_answer() {
    let mut fake = Fake::new();
    let sent = udp(ALLOWED, 123);
    let arrives = |fake: &Fake, packet: &Packet, loopback, state: Option<&SocketState>| {
        arrives_at_socket(fake, &CONFIG, packet, COOKIE, loopback, state, || NOW)
    };
    let answer = back(&sent);
    assert_eq!(arrives(&fake, &answer, false, None), ORIGIN_IN, "unsolicited");
    let own = state(&sent, flow(ORIGIN_OUT, GENERATION, NOW));
    assert_eq!(arrives(&fake, &answer, false, Some(&own)), ORIGIN_NONE);
    let other = Packet { source_port: 124, ..answer };
    assert_eq!(arrives(&fake, &other, false, Some(&own)), ORIGIN_IN, "from another port");
    fake.peers = [(peer_key(&sent), flow(ORIGIN_OUT, GENERATION, NOW))].into();
    assert_eq!(arrives(&fake, &answer, false, None), ORIGIN_NONE, "an unconnected socket's own flow");
    assert_eq!(
        arrives_at_socket(&fake, &CONFIG, &answer, COOKIE + 1, false, None, || NOW),
        ORIGIN_IN,
        "another socket's flow"
    );
    assert_eq!(arrives(&fake, &other, true, None), ORIGIN_NONE, "by loopback");
    let write = |flow| Fake { peers: [(peer_key(&back(&other)), flow)].into(), ..Fake::new() };
    assert_eq!(arrives(&write(flow(ORIGIN_IN, GENERATION, NOW)), &other, false, None), ORIGIN_NONE, "written already");
    assert_eq!(arrives(&write(flow(ORIGIN_IN, GENERATION, NOW - 1)), &other, false, None), ORIGIN_IN, "a tick ago");
    assert_eq!(
        arrives(&write(flow(ORIGIN_IN, GENERATION - 1, NOW)), &other, false, None),
        ORIGIN_IN,
        "before a reload"
    );
    let later = Packet { fragment: Fragment::Later, ..other };
    assert_eq!(arrives(&fake, &later, false, None), ORIGIN_NONE);
    let segment = |flags| back(&tcp(STRANGER, 443, flags));
    assert_eq!(arrives(&fake, &segment(TCP_SYN), false, None), ORIGIN_IN);
    assert_eq!(arrives(&fake, &segment(TCP_SYN | TCP_ACK), false, None), ORIGIN_NONE);
    assert_eq!(arrives(&fake, &segment(TCP_SYN), true, None), ORIGIN_NONE);
    assert_eq!(arrives(&fake, &packet(PROTO_ICMP, HERE, 8 << 8), false, None), ORIGIN_NONE);
}

/// P5: the next query must not pass as the reply to an answer.
#[test]
fn what_a_resolver_answers_is_nothing_to_reply_to() {
    let fake = Fake::new();
    let answer = back(&udp(RESOLVER, 53));
    assert_eq!(arrives_at_socket(&fake, &CONFIG, &answer, COOKIE, false, None, || NOW), ORIGIN_NONE);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &answer, || NOW), ORIGIN_NONE);
    let other = back(&udp(STRANGER, 53));
    assert_eq!(arrives_at_socket(&fake, &CONFIG, &other, COOKIE, false, None, || NOW), ORIGIN_IN);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &other, || NOW), ORIGIN_IN);
}

#[test]
fn what_arrives_on_an_uplink_is_remembered_unless_it_is_an_answer() {
    let mut fake = Fake::new();
    let sent = udp(ALLOWED, 123);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &back(&sent), || NOW), ORIGIN_IN);
    fake.flows = [(outward_key(&sent, ZONE_UPLINK), flow(ORIGIN_OUT, GENERATION, NOW))].into();
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &back(&sent), || NOW), ORIGIN_NONE);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &back(&tcp(STRANGER, 443, TCP_SYN)), || NOW), ORIGIN_IN);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &back(&tcp(STRANGER, 443, TCP_ACK)), || NOW), ORIGIN_NONE);
    let echo = |kind: u16| packet(PROTO_ICMP, HERE, kind << 8);
    assert_eq!(
        (arrives_at_uplink(&fake, &CONFIG, &echo(8), || NOW), arrives_at_uplink(&fake, &CONFIG, &echo(0), || NOW)),
        (ORIGIN_IN, ORIGIN_NONE)
    );
    let later = Packet { fragment: Fragment::Later, ..back(&udp(STRANGER, 1)) };
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &later, || NOW), ORIGIN_NONE);
    // The request and its reply have one key, whichever way it is looked from.
    let (request, reply) = (back(&echo(8)), packet(PROTO_ICMP, STRANGER, 0));
    let request =
        Packet { source: STRANGER, destination: HERE, source_port: 40_000, destination_port: 8 << 8, ..request };
    assert_eq!(inward_key(&request, ZONE_UPLINK), outward_key(&reply, ZONE_UPLINK));
}

/// Whatever the short way says of a flow, the whole decision says too, and it asks for nothing else to be written down.
#[test]
fn the_short_way_agrees_with_the_whole_decision() {
    let mut short = 0;
    for proto in [PROTO_TCP, PROTO_UDP] {
        for flags in [TCP_ACK, TCP_SYN, TCP_SYN | TCP_ACK] {
            for origin in [ORIGIN_NONE, ORIGIN_IN, ORIGIN_OUT] {
                for (generation, seen, port) in
                    [(5, NOW, 443), (5, NOW - 1, 443), (4, NOW, 443), (5, NOW, 80), (5, 0, 443)]
                {
                    let tcp_flags = if proto == PROTO_TCP { flags } else { 0 };
                    let packet = Packet { proto, tcp_flags, ..tcp(STRANGER, 443, flags) };
                    let plain = crate::packet::Plain {
                        source: packet.source,
                        destination: packet.destination,
                        source_port: packet.source_port,
                        destination_port: packet.destination_port,
                        proto,
                        tcp_flags,
                    };
                    let flow = Flow { seen, generation, grant: GRANT, origin };
                    let state = SocketState { remote: STRANGER, remote_port: port, proto, flow, ..Default::default() };
                    let mut fake = Fake::new();
                    let sender = Sender { kind: SocketKind::Stream, cookie: COOKIE, loopback: false };
                    let whole = leaves_socket(&fake, &CONFIG, |_| false, &packet, &sender, Some(&state), NOW);
                    if let Some(verdict) = established_at_socket(&CONFIG, &plain, &state, || NOW) {
                        short += 1;
                        assert_eq!(verdict, whole, "{state:?} {packet:?}");
                        assert!(proto == PROTO_TCP || flow.seen == NOW);
                    }
                    assert_eq!(established_key(&plain), outward_key(&packet, ZONE_UPLINK));
                    fake.flows.insert(outward_key(&packet, ZONE_UPLINK), flow);
                    if let Some(verdict) = established_at_uplink(&CONFIG, &plain, &flow, || NOW) {
                        assert_eq!(verdict, leaves_uplink(&fake, &CONFIG, |_| false, &packet, NOW));
                    }
                }
            }
        }
    }
    // TCP by two flags at three times, UDP (thrice the same packet) at one; both origins.
    assert_eq!(short, 2 * (2 * 3 + 3));
}
