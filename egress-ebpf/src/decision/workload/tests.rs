//! Which packets of a workload are refused, judged, or left alone (P1, P3).

use super::*;
use crate::{
    abi::{
        AddressEntry, ClassChunk, Flow, FlowKey, FragmentKey, GrantEntry, PROTO_ICMP, PROTO_TCP, PROTO_UDP, PeerKey,
        ResolverKey, ResolverTrust, Ticks,
    },
    packet::Fragment,
};

const RESOLVER: Address = Address::v4([203, 0, 113, 53]);
const POD: Address = Address::v4([10, 244, 0, 2]);
const OTHER_POD: Address = Address::v4([10, 244, 0, 3]);
const FAR: Address = Address::v4([198, 51, 100, 77]);

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

fn entry(packet: &Packet, below_sockets: bool, behind: &[Address]) -> Entry {
    entry_of(53, packet, below_sockets, behind)
}

fn entry_of(port: u16, packet: &Packet, below_sockets: bool, behind: &[Address]) -> Entry {
    let route = |_: &Packet, address: &Address| match *address {
        address if behind.contains(&address) => Route::Back,
        OTHER_POD => Route::Local,
        _ => Route::Outside,
    };
    let flags = if port == 53 { 0 } else { Config::RESOLVER_PORTS };
    let config = Config { generation: 1, flags, ..Config::default() };
    enters_from_workload(&One(port), &config, packet, below_sockets, route)
}

#[test]
fn a_resolver_may_answer_from_where_it_is() {
    let answer = packet(RESOLVER, 53, OTHER_POD);
    for below_sockets in [false, true] {
        assert_eq!(entry(&answer, below_sockets, &[POD]), Entry::Forged);
        assert_eq!(entry(&answer, below_sockets, &[POD, RESOLVER]), Entry::Pass);
    }
    let over_tcp = Packet { proto: PROTO_TCP, ..answer };
    assert_eq!(entry(&over_tcp, false, &[POD]), Entry::Forged);
    // What is no answer of its: the resolver's address on another port, ICMP, fragments without ports.
    assert_eq!(entry(&packet(RESOLVER, 54, OTHER_POD), false, &[POD]), Entry::Pass);
    assert_eq!(entry(&Packet { proto: PROTO_ICMP, ..answer }, false, &[POD]), Entry::Pass);
    let later = Packet { fragment: Fragment::Later, source_port: 0, ..answer };
    assert_eq!(entry(&later, false, &[POD]), Entry::Pass);
}

#[test]
fn a_resolver_on_another_port_is_known_too() {
    assert_eq!(entry_of(5353, &packet(RESOLVER, 5353, OTHER_POD), false, &[POD]), Entry::Forged);
    assert_eq!(entry_of(5353, &packet(RESOLVER, 53, OTHER_POD), false, &[POD]), Entry::Pass);
}

#[test]
fn what_goes_round_the_sockets_to_the_outside_is_judged() {
    assert_eq!(entry(&packet(POD, 4000, FAR), true, &[POD]), Entry::Judge);
    assert_eq!(entry(&packet(POD, 4000, OTHER_POD), true, &[POD]), Entry::Pass);
    assert_eq!(entry(&packet(POD, 4000, FAR), false, &[POD]), Entry::Pass, "its socket was judged");
}
