//! Which packets of a workload are refused, judged, or left alone (P1, P3).

use super::*;
use crate::{
    abi::{
        AddressEntry, ClassChunk, Flow, FlowKey, FragmentKey, GrantEntry, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP,
        PROTO_UDP, PeerKey, ResolverKey, ResolverTrust, Ticks,
    },
    packet::{Fragment, TCP_ACK, TCP_SYN},
};

const RESOLVER: Address = Address::v4([203, 0, 113, 53]);
const POD: Address = Address::v4([10, 244, 0, 2]);
const OTHER_POD: Address = Address::v4([10, 244, 0, 3]);
const FAR: Address = Address::v4([198, 51, 100, 77]);
const TUNNELED: Address = Address::v4([198, 51, 100, 78]);
const BRIDGED: Address = Address::v4([192, 0, 2, 20]);
const UNTOLD: Address = Address::v6([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
const UNTOLD_HOST: Address = Address::v6([0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);

/// One resolver is trusted; everything else is empty.
struct One(u16);

impl Tables for One {
    fn address(&self, _: &Address, _: u32) -> Option<&AddressEntry> {
        None
    }
    fn prefix(&self, _: &Address, _: u32) -> Option<u32> {
        None
    }
    fn deny(&self, _: &Address, _: u32) -> Option<u32> {
        None
    }
    fn class(&self, _: u32) -> Option<&ClassChunk> {
        None
    }
    fn grant(&self, _: u32) -> Option<GrantEntry> {
        None
    }
    fn resolver(&self, key: &ResolverKey) -> Option<ResolverTrust> {
        (key.address == RESOLVER && key.port == self.0).then_some(0)
    }
    fn flow(&self, _: &FlowKey) -> Option<&Flow> {
        None
    }
    fn peer(&self, _: &PeerKey) -> Option<&Flow> {
        None
    }
    fn fragment(&self, _: &FragmentKey) -> Option<Ticks> {
        None
    }
}

fn packet(source: Address, source_port: u16, destination: Address) -> Packet {
    Packet { source, source_port, destination, proto: PROTO_UDP, version: 4, ..Packet::UNKNOWN }
}

fn entry(packet: &Packet, author: Author, behind: &[Address]) -> Entry {
    entry_of(53, packet, author, behind)
}

fn entry_of(port: u16, packet: &Packet, author: Author, behind: &[Address]) -> Entry {
    let route = |_: &Packet, address: &Address| match *address {
        address if behind.contains(&address) => Route::Back,
        OTHER_POD => Route::Local,
        TUNNELED => Route::Unjudged,
        BRIDGED => Route::Link,
        UNTOLD | UNTOLD_HOST => Route::Untold,
        _ => Route::Uplink,
    };
    let flags = if port == 53 { 0 } else { Config::RESOLVER_PORTS };
    let config = Config { generation: 1, flags, ..Config::default() };
    enters_from_workload(&One(port), &config, packet, author, route)
}

#[test]
fn a_resolver_may_answer_from_where_it_is() {
    let answer = packet(RESOLVER, 53, OTHER_POD);
    for author in [Author::Unknown, Author::Socket, Author::RawSocket, Author::BelowSockets] {
        assert_eq!(entry(&answer, author, &[POD]), Entry::ForgedResolver);
        assert_eq!(entry(&answer, author, &[POD, RESOLVER]), Entry::Pass);
    }
    let over_tcp = Packet { proto: PROTO_TCP, ..answer };
    assert_eq!(entry(&over_tcp, Author::Unknown, &[POD]), Entry::ForgedResolver);
    // What is no answer of its: the resolver's address on another port, ICMP, fragments without ports.
    assert_eq!(entry(&packet(RESOLVER, 54, OTHER_POD), Author::Unknown, &[POD]), Entry::Pass);
    assert_eq!(entry(&Packet { proto: PROTO_ICMP, ..answer }, Author::Unknown, &[POD]), Entry::Pass);
    let later = Packet { fragment: Fragment::Later, source_port: 0, ..answer };
    assert_eq!(entry(&later, Author::Unknown, &[POD]), Entry::Pass);
}

#[test]
fn a_resolver_on_another_port_is_known_too() {
    assert_eq!(entry_of(5353, &packet(RESOLVER, 5353, OTHER_POD), Author::Unknown, &[POD]), Entry::ForgedResolver);
    assert_eq!(entry_of(5353, &packet(RESOLVER, 53, OTHER_POD), Author::Unknown, &[POD]), Entry::Pass);
}

#[test]
fn what_goes_round_the_sockets_to_the_outside_is_judged() {
    assert_eq!(entry(&packet(POD, 4000, FAR), Author::BelowSockets, &[POD]), Entry::Judge);
    assert_eq!(entry(&packet(POD, 4000, OTHER_POD), Author::BelowSockets, &[POD]), Entry::Pass);
    assert_eq!(entry(&packet(POD, 4000, FAR), Author::Socket, &[POD]), Entry::Pass, "its socket was judged");
}

/// P1: what is taken for an arrival from outside came by an uplink.
#[test]
fn who_writes_headers_of_its_own_comes_from_where_it_is() {
    let none = Address::v4([0; 4]);
    for author in [Author::RawSocket, Author::BelowSockets] {
        assert_eq!(entry(&packet(FAR, 4000, OTHER_POD), author, &[POD]), Entry::ForgedSource);
        assert_eq!(entry(&packet(FAR, 4000, POD), author, &[POD]), Entry::ForgedSource, "back to where it came from");
        assert_eq!(
            entry(&packet(OTHER_POD, 4000, POD), author, &[POD]),
            Entry::Pass,
            "another workload's: it stays here"
        );
        assert_eq!(entry(&packet(POD, 4000, OTHER_POD), author, &[POD]), Entry::Pass);
        assert_eq!(entry(&packet(none, 68, OTHER_POD), author, &[POD]), Entry::Pass, "a DHCP client");
    }
    assert_eq!(entry(&packet(FAR, 4000, FAR), Author::BelowSockets, &[POD]), Entry::Judge);
    assert_eq!(entry(&packet(FAR, 4000, FAR), Author::RawSocket, &[POD]), Entry::Pass, "its socket was judged");
    assert_eq!(entry(&packet(FAR, 4000, OTHER_POD), Author::Unknown, &[POD]), Entry::Pass, "forwarded inside");
    // A socket may be bound to any address.
    let datagram = packet(FAR, 4000, OTHER_POD);
    assert_eq!(entry(&datagram, Author::Socket, &[POD]), Entry::ForgedSource);
    let networks = packet(TUNNELED, 4000, OTHER_POD);
    assert_eq!(entry(&networks, Author::Socket, &[POD]), Entry::Pass, "a route by an interface of the network's");
    let segment = |tcp_flags| Packet { proto: PROTO_TCP, tcp_flags, ..datagram };
    assert_eq!(entry(&segment(TCP_SYN), Author::Socket, &[POD]), Entry::ForgedSource);
    assert_eq!(entry(&segment(TCP_ACK), Author::Socket, &[POD]), Entry::Pass, "its first segment was refused");
}

/// P1, P8: on a bridge that leads out workloads and the host's neighbours are told apart by nothing.
#[test]
fn who_is_on_the_bridge_of_the_uplink_may_be_a_neighbour() {
    let datagram = packet(BRIDGED, 4000, OTHER_POD);
    assert_eq!(entry(&datagram, Author::Socket, &[]), Entry::Pass);
    for author in [Author::RawSocket, Author::BelowSockets] {
        assert_eq!(entry(&datagram, author, &[]), Entry::ForgedSource);
        let answer = Packet { proto: PROTO_ICMP, destination_port: 0, ..datagram };
        assert_eq!(entry(&answer, author, &[]), Entry::Pass, "an echo reply calls nobody");
    }
}

/// P1: where the host forwards nothing its routes tell nothing: nobody calls it below a socket, while neighbour discovery and pings pass.
#[test]
fn where_nothing_is_forwarded_nobody_calls_below_a_socket() {
    let datagram = packet(UNTOLD, 4000, UNTOLD_HOST);
    let ping = Packet { proto: PROTO_ICMPV6, version: 6, ..datagram };
    for author in [Author::RawSocket, Author::BelowSockets] {
        assert_eq!(entry(&datagram, author, &[]), Entry::ForgedSource);
        assert_eq!(entry(&ping, author, &[]), Entry::Pass);
    }
    assert_eq!(entry(&datagram, Author::Socket, &[]), Entry::Pass, "nearly all are what they say");
}

/// P1: an error of the workload's kernel quotes what a workload wrote, to whom it likes.
#[test]
fn what_a_workloads_kernel_quotes_is_judged() {
    let error = |to| Packet { proto: PROTO_ICMP, destination_port: 3 << 8, ..packet(POD, 0, to) };
    assert_eq!(entry(&error(TUNNELED), Author::RawSocket, &[POD]), Entry::Judge);
    assert_eq!(entry(&error(FAR), Author::RawSocket, &[POD]), Entry::Pass, "the uplink judges it");
    assert_eq!(entry(&error(OTHER_POD), Author::RawSocket, &[POD]), Entry::Pass, "it stays here");
    assert_eq!(entry(&packet(POD, 4000, TUNNELED), Author::RawSocket, &[POD]), Entry::Pass, "its socket was judged");
    assert_eq!(entry(&packet(POD, 4000, TUNNELED), Author::BelowSockets, &[POD]), Entry::Judge);
}
