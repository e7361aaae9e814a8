//! What is big: datagrams that the kernel cuts itself, and chains of extension headers longer than the programs read.

use std::net::SocketAddr;
use std::time::Duration;

use egress_tests::probe::{datagram, send_frame, send_ip, udp};
use egress_tests::world::{NODE_V6, UPLINK};
use egress_tests::{Place, Service};

use crate::made::{Maker, OPTIONS, Then, UDP};
use crate::{govern, world};

/// Datagrams of real sockets that are cut by the kernel arrive whole where they may, and no piece of them where not.
#[test]
fn big_datagrams_pass_whole_or_not_at_all() {
    let world = world();
    let (allowed, denied) =
        (["203.0.113.10:7000", "[2001:db8:1::10]:7000"], ["198.51.100.77:7000", "[2001:db8:77::77]:7000"]);
    for at in allowed.iter().chain(&denied) {
        world.serve(Service::UdpEcho, at).unwrap();
    }
    let test = govern(world);
    for (who, place) in [("governed", &test.inside), ("beside", &test.beside), ("forwarded", &test.world.pod())] {
        for (to, size) in allowed.iter().flat_map(|to| [(to, 3000), (to, 20_000), (to, 60_000)]) {
            let got = udp(place, to, size).unwrap();
            assert!(got.echoed, "{who}: {size} bytes to {to}: {got:?}");
        }
        for to in denied {
            test.world.sniffer.clear();
            assert!(!udp(place, to, 20_000).unwrap().echoed, "{who}: {to}");
            let address: SocketAddr = to.parse().unwrap();
            test.world.sniffer.assert_none(to, |frame| frame.destination == Some(address.ip()));
        }
    }
}

/// Where the header that judges stands further in the packet than the programs can read, what stands in its place by
/// chance must not be read for it. Only an uplink with a very large MTU takes such a packet.
#[test]
fn a_chain_of_extension_headers_of_sixteen_kilobytes_is_dropped() {
    let test = govern(world());
    test.world.node_ns.ip("link set up0 mtu 20000").unwrap();
    test.world.world_ns.ip("link set wup0 mtu 20000").unwrap();
    let gateway = test.world.world_ns.mac("wup0").unwrap();
    let make = Maker { from: NODE_V6.parse().unwrap(), id: 1 };
    // 2,048 bytes each, whose first ones are like the header of a datagram to port 7000.
    let mut long = vec![255, 0x1b, 0x58];
    long.resize(2047, 0);
    let sends = |place: &Place, by_frame: bool, headers: usize, port: u16| {
        let chain = vec![(OPTIONS, long.clone()); headers];
        let part = make.chain(make.allowed(), &chain, UDP, &datagram(40_000, port, b"far behind"), Then::Passes);
        test.world.sniffer.clear();
        let sent = egress_tests::probe::attempt(place, || {
            if by_frame { send_frame(UPLINK, gateway, &part.packet) } else { send_ip(&part.packet, part.to) }
                .map(|()| true)
        });
        drop(sent.unwrap());
        let arrived = test.world.sniffer.matching(Duration::from_millis(80), |frame| frame.payload == b"far behind");
        arrived.len()
    };
    for (who, place) in [("governed", &test.inside), ("beside", &test.beside)] {
        for by_frame in [false, true] {
            assert_eq!(sends(place, by_frame, 1, 7000), 1, "{who}, frame {by_frame}: one that a rule allows");
            assert_eq!(sends(place, by_frame, 1, 7001), 0, "{who}, frame {by_frame}: one that no rule allows");
            assert_eq!(sends(place, by_frame, 8, 7001), 0, "{who}, frame {by_frame}: a port that was not read");
        }
    }
}
