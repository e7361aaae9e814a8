//! Attacks that must fail (P1, P3, P5), each with the real thing: real sockets, real packets, the real daemon. Messages
//! that no real resolver or client would send are in `dns_kernel/attacks.rs`.

mod arrivals;
mod below;
mod builtins;
mod forged;
mod namespaces;
mod queries;
mod segments;

use std::net::IpAddr;
use std::time::Duration;

use egress_tests::probe::tcp;
use egress_tests::{Governed, Service, World, learned};

const LIMIT: Duration = Duration::from_secs(8);
const POLICY: &str = "version: 1
rules:
  - {name: wild, to: ['*.wild.example.com'], ports: [7000/tcp]}
  - {name: echo, to: [203.0.113.0/25], ports: [7000/udp]}
";
/// What forged answers say.
const EVIL: [u8; 4] = [198, 51, 100, 66];
/// What the real resolver says of the neighbour's name.
const NEIGHBOUR: &str = "203.0.113.200";

fn world() -> World {
    let world = World::with_pod().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.dns.set_text("neighbour.wild.example.com", 60, &[NEIGHBOUR]);
    world
}

/// The address maps hold nothing that the resolver did not say, and somebody else's lookup still works.
#[track_caller]
fn assert_harmless(test: &Governed, what: &str) {
    let evil = IpAddr::from(EVIL);
    assert!(!learned::addresses(&test.world).unwrap().contains(&evil), "{what}: the forged address was learned");
    assert!(!tcp(&test.inside, &format!("{evil}:7000")).unwrap().echoed, "{what}: the forged address is open");
    test.world.sniffer.assert_none(what, |frame| frame.destination == Some(evil));
    let found = test.inside.run("getent", &["ahostsv4", "neighbour.wild.example.com"], LIMIT).unwrap();
    assert!(found.stdout.contains(NEIGHBOUR), "{what}: a neighbour's lookup: {found:?}");
    assert!(tcp(&test.inside, &format!("{NEIGHBOUR}:7000")).unwrap().echoed, "{what}: what a neighbour looked up");
    assert!(learned::addresses(&test.world).unwrap().contains(&NEIGHBOUR.parse().unwrap()), "{what}: the map is read");
}
