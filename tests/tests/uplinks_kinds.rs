//! P2: uplinks of kinds that not every kernel has: VLAN, bond, WireGuard. Where the kernel lacks one, its test says so;
//! `cargo xtask vm` has a kernel with all. What is sent here is sent from outside the governed cgroup.

use std::net::SocketAddr;
use std::time::Duration;

use egress_tests::probe::{tcp, udp};
use egress_tests::{Cgroup, Daemon, Governed, Place, Service, World, skip};

/// The last rule is for WireGuard's own datagrams, which leave by the first uplink.
const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp, 7000/udp]}
  - {name: tunnel, to: [192.0.2.1], ports: [51820/udp]}
";
const ALLOWED: &str = "203.0.113.10:7000";
const DENIED: &str = "198.51.100.77:7000";
const LIMIT: Duration = Duration::from_secs(20);

/// A daemon that follows the default routes; `None`, and said where `cargo xtask test` prints it, when the kernel has no
/// interfaces of this kind.
fn governed(test: &str, kind: &str) -> Option<Governed> {
    let world = World::new().unwrap();
    let probe = match kind {
        "vlan" => "link add link up0 name probe0 type vlan id 2".to_owned(),
        _ => format!("link add probe0 type {kind}"),
    };
    if let Err(error) = world.node_ns.ip(&probe) {
        assert!(error.to_string().contains("Unknown device type"), "{error}");
        skip(test, &format!("this kernel has no {kind} interfaces; `cargo xtask vm` runs it"));
        return None;
    }
    world.node_ns.ip("link del probe0").unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.serve(Service::UdpEcho, "203.0.113.10:7000").unwrap();
    world.serve(Service::UdpEcho, DENIED).unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let daemon = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).default_routes().start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    Some(Governed { daemon, inside, beside, cgroup, world })
}

/// Waits until these are governed; then what the policy allows passes, and nothing else.
fn assert_judged(test: &Governed, interfaces: &[&str]) {
    for name in interfaces {
        test.status_until(|status| {
            let points = status["attach_points"].as_array().unwrap();
            points.iter().any(|point| point["target"] == *name && point["present"] == true)
        })
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    test.world.sniffer.clear();
    for place in [&test.inside, &test.beside] {
        assert!(tcp(place, ALLOWED).unwrap().echoed, "{interfaces:?}");
        assert!(udp(place, ALLOWED, 5).unwrap().echoed, "{interfaces:?}");
        assert!(!udp(place, DENIED, 5).unwrap().echoed, "{interfaces:?}");
        assert!(!tcp(place, DENIED).unwrap().echoed, "{interfaces:?}");
    }
    let denied = DENIED.parse::<SocketAddr>().unwrap().ip();
    test.world.sniffer.assert_none("a new uplink", |frame| frame.destination == Some(denied));
    assert_eq!(test.daemon.status().unwrap()["health"]["healthy"], true);
}

/// P2: a VLAN that gets the default route, and what it stands on.
#[test]
fn a_vlan_is_governed() {
    let Some(test) = governed("a_vlan_is_governed", "vlan") else { return };
    test.world.add_uplink(2).unwrap();
    test.world
        .world_ns
        .ip("link add link wup2 name wvl0 type vlan id 7\nlink set wvl0 up\naddr add 198.18.32.1/24 dev wvl0")
        .unwrap();
    test.world
        .node_ns
        .ip("link add link up2 name vl0 type vlan id 7\nlink set vl0 up\naddr add 198.18.32.10/24 dev vl0
            route replace default via 198.18.32.1 dev vl0")
        .unwrap();
    assert_judged(&test, &["vl0", "up2"]);
}

/// P2: a bond that gets the default route, and its member.
#[test]
fn a_bond_is_governed() {
    let Some(test) = governed("a_bond_is_governed", "bond") else { return };
    test.world.add_uplink(2).unwrap();
    test.world
        .node_ns
        .ip("link add bond0 type bond mode active-backup miimon 100\nlink set up2 down\nlink set up2 master bond0
            link set bond0 up\nlink set up2 up\naddr flush dev up2\naddr add 198.18.2.10/24 dev bond0
            route replace default via 198.18.2.1 dev bond0")
        .unwrap();
    assert_judged(&test, &["bond0", "up2"]);
}

/// P2: a WireGuard tunnel that gets the default route: its inner packets are judged, without a link header.
#[test]
fn a_wireguard_tunnel_is_governed() {
    let Some(test) = governed("a_wireguard_tunnel_is_governed", "wireguard") else { return };
    let sh = |place: &Place, script: &str| {
        let run = place.run("sh", &["-ec", script], LIMIT).unwrap();
        assert!(run.ok(), "{script}: {run:?}");
        run.stdout.trim().to_owned()
    };
    let dir = test.world.dir().display();
    let (node, outside) = (test.world.node(), test.world.outside());
    sh(
        &node,
        &format!(
            "umask 77; for end in near far; do wg genkey >{dir}/$end; wg pubkey <{dir}/$end >{dir}/$end.pub; done"
        ),
    );
    sh(
        &outside,
        &format!(
            "ip link add wg0 type wireguard; ip link set wg0 up; ip addr add 198.18.33.1/24 dev wg0
             wg set wg0 listen-port 51820 private-key {dir}/far peer $(cat {dir}/near.pub) allowed-ips 198.18.33.10/32"
        ),
    );
    sh(
        &node,
        &format!(
            "ip link add wg0 type wireguard; ip link set wg0 up; ip addr add 198.18.33.10/24 dev wg0
             wg set wg0 private-key {dir}/near peer $(cat {dir}/far.pub) endpoint 192.0.2.1:51820 allowed-ips 0.0.0.0/0
             ip route replace default dev wg0"
        ),
    );
    assert_judged(&test, &["wg0", "up0"]);
    let status = test.daemon.status().unwrap();
    assert!(status["attach_points"].to_string().contains("uplink_egress_l3"), "{status:#}");
    let denied = DENIED.parse::<SocketAddr>().unwrap().ip();
    assert!(test.world.hits.all().iter().all(|hit| hit.local.ip() != denied), "inside the tunnel");
    assert!(sh(&node, "wg show wg0 transfer").split_whitespace().skip(1).all(|bytes| bytes != "0"), "by the tunnel");
}
