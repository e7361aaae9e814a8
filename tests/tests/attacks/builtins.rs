//! P1: what passes without a rule is no more than it has to be: groups are told to groups, neighbours to neighbours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use egress_tests::attacker::as_container;
use egress_tests::probe::{attempt, send_frame, send_ip};
use egress_tests::world::{NODE_V4, NODE_V6, POD_V4, POD_V6};
use egress_tests::{Governed, Place};

use crate::{EVIL, POLICY, world};

/// An IP packet of its own, with this TTL or hop limit.
fn packet(from: IpAddr, to: IpAddr, hops: u8, proto: u8, payload: &[u8]) -> Vec<u8> {
    use egress_tests::probe::{V4, ipv4, ipv6};
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut packet = ipv4(from, to, &V4 { protocol: proto, ..V4::default() }, payload);
            // The checksum, to which the TTL adds as the upper byte of a word.
            let sum = u32::from(!u16::from_be_bytes([packet[10], packet[11]])) + 0xffff - (u32::from(64 - hops) << 8);
            packet[8] = hops;
            packet[10..12].copy_from_slice(&(!((sum & 0xffff) as u16 + (sum >> 16) as u16)).to_be_bytes());
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut packet = ipv6(from, to, proto, payload);
            packet[7] = hops;
            packet
        }
        _ => panic!("of one family"),
    }
}

/// What MLD and neighbour discovery say: type, code, checksum (nobody looks at it on the way), and `data`.
fn icmp6(kind: u8, data: &[u8]) -> Vec<u8> {
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], data].concat()
}

/// A header of destination options with 200 bytes of padding, before what `next` is.
fn padded(next: u8, rest: &[u8]) -> Vec<u8> {
    [&[next, 25, 1, 204][..], &[b'x'; 204], rest].concat()
}

/// P1: IGMP and MLD go to groups alone, and neighbour discovery beyond the link says no more than it has to, whatever headers are before it.
/// By a raw socket, below the sockets, and from a container that the node forwards for and that is not governed itself.
#[test]
fn the_builtins_of_the_link_are_no_way_out() {
    let test = Governed::over(world(), POLICY).unwrap();
    let pod = test.world.pod();
    let uplink = test.world.world_ns.mac("wup0").unwrap();
    let (four, six): (IpAddr, IpAddr) =
        (Ipv4Addr::from(EVIL).into(), "2001:db8::66".parse::<Ipv6Addr>().unwrap().into());
    let (node_4, node_6): (IpAddr, IpAddr) = (NODE_V4.parse().unwrap(), NODE_V6.parse().unwrap());
    let (pod_4, pod_6): (IpAddr, IpAddr) = (POD_V4.parse().unwrap(), POD_V6.parse().unwrap());
    let data = [b'x'; 100];
    let advertisement = padded(58, &icmp6(136, &[0; 16]));
    let raw = |place: &Place, packet: &[u8], to| {
        attempt(place, || {
            as_container().map_err(std::io::Error::other)?;
            send_ip(packet, to).map(|()| true)
        })
    };
    let below = |place: &Place, interface: &str, to, packet: &[u8]| {
        attempt(place, || {
            as_container().map_err(std::io::Error::other)?;
            send_frame(interface, to, packet).map(|()| true)
        })
    };
    let arrived = |to| {
        let settle = Duration::from_millis(50);
        !test.world.sniffer.matching(settle, |frame| frame.destination == Some(to)).is_empty()
    };
    let mut passed: Vec<String> = Vec::new();
    for (what, from, to, hops, proto, payload) in [
        ("IGMP", node_4, four, 1, 2, &data[..]),
        ("MLD", node_6, six, 1, 58, &icmp6(143, &data)),
        ("ND", node_6, six, 255, 60, &advertisement),
    ] {
        let packet = packet(from, to, hops, proto, payload);
        if !raw(&test.inside, &packet, to).unwrap().refused() {
            passed.push(format!("{what} by a raw socket"));
        }
        test.world.sniffer.clear();
        below(&test.beside, "up0", uplink, &packet).unwrap();
        if arrived(to) {
            passed.push(format!("{what} below the sockets"));
        }
    }
    for (what, from, to, proto, payload) in
        [("IGMP", pod_4, four, 2, &data[..]), ("MLD", pod_6, six, 58, &icmp6(143, &data))]
    {
        // The node takes one off.
        test.world.sniffer.clear();
        raw(&pod, &packet(from, to, 2, proto, payload), to).unwrap();
        if arrived(to) {
            passed.push(format!("{what} of a container"));
        }
    }
    assert_eq!(passed, [""; 0]);
    let groups: (IpAddr, IpAddr) = ("224.0.0.22".parse().unwrap(), "ff02::16".parse().unwrap());
    for (from, to, hops, proto, payload) in [
        (node_4, groups.0, 1, 2, &data[..]),
        (node_6, groups.1, 1, 58, &icmp6(143, &data)),
        (node_6, six, 255, 58, &icmp6(136, &[0; 16])),
    ] {
        below(&test.beside, "up0", uplink, &packet(from, to, hops, proto, payload)).unwrap();
        let arrives = test.world.sniffer.wait_for(Duration::from_secs(1), |frame| {
            frame.destination == Some(to) && frame.payload.len() == payload.len()
        });
        assert!(arrives.is_some(), "{to}: what a host must say");
    }
}
