//! Replies to what came in pass throughout, whatever the policy says: your SSH session survives (P8).

use std::net::TcpStream;
use std::time::Duration;

use egress_tests::probe::{converse, tcp, udp, udp_connected};
use egress_tests::world::{NODE_V4, NODE_V6};
use egress_tests::{Cgroup, EchoServer, Governed, Held, Service, World};

const NOTHING: &str = "version: 1\n";
const LIMIT: Duration = Duration::from_secs(5);

fn sockets(port: u16) -> [String; 2] {
    [format!("{NODE_V4}:{port}"), format!("[{NODE_V6}]:{port}")]
}

/// P8: a connection that was accepted before the start goes on, both ways, in the governed cgroup and beside it; a policy
/// that allows nothing included.
#[test]
fn accepted_connections_survive_the_start() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let _inside = EchoServer::start(&world.node().in_cgroup(&cgroup), 2200).unwrap();
    let _beside = EchoServer::start(&world.node(), 2300).unwrap();
    let connect = |to: &String| world.world_ns.run(|| TcpStream::connect(to)).unwrap();
    let mut open: Vec<(String, TcpStream)> =
        sockets(2200).iter().chain(&sockets(2300)).map(|to| (to.clone(), connect(to))).collect();
    for (to, stream) in &mut open {
        assert!(converse(stream, b"before").unwrap(), "{to}");
    }
    let mut test = Governed::with(world, cgroup, NOTHING).unwrap();
    for (to, stream) in &mut open {
        assert!(converse(stream, b"after").unwrap(), "{to}");
        assert!(converse(stream, &[b'x'; 20_000]).unwrap(), "{to}: much data");
    }
    test.daemon.kill().unwrap();
    for (to, stream) in &mut open {
        assert!(converse(stream, b"daemon dead").unwrap(), "{to}");
    }
    test.restart().unwrap();
    for (to, stream) in &mut open {
        assert!(converse(stream, b"daemon back").unwrap(), "{to}");
    }
}

/// P8: new connections and datagrams that come in are served under a policy that allows nothing.
#[test]
fn what_comes_in_is_answered() {
    let test = Governed::new(NOTHING).unwrap();
    for (place, port) in [(&test.inside, 2200), (&test.beside, 2300)] {
        let _server = EchoServer::start(place, port).unwrap();
        for to in sockets(port) {
            let got = tcp(&test.world.outside(), &to).unwrap();
            assert!(got.echoed, "TCP {to}: {got:?}");
            for size in [5, 1200, 8000] {
                let got = udp(&test.world.outside(), &to, size).unwrap();
                assert!(got.echoed, "UDP {to}, {size} bytes: {got:?}");
            }
        }
        let got = udp(&test.world.outside(), &format!("{NODE_V4}:{}", port + 1), 5).unwrap();
        assert!(got.echoed, "UDP by an IPv4 socket: {got:?}");
        // Nothing opens outwards by it.
        assert!(!udp(place, "203.0.113.10:7000", 5).unwrap().echoed);
    }
}

/// P8: the kernel's own answers: echo replies, resets, and errors about closed ports.
#[test]
fn the_kernel_answers_ping_and_closed_ports() {
    let test = Governed::new(NOTHING).unwrap();
    let outside = test.world.outside();
    for to in [NODE_V4, NODE_V6] {
        for size in ["56", "4000"] {
            let run = outside.run("ping", &["-c1", "-W1", "-n", "-s", size, to], LIMIT).unwrap();
            assert!(run.ok(), "{to}, {size} bytes: {run:?}");
        }
    }
    for to in sockets(4) {
        let got = tcp(&outside, &to).unwrap();
        assert_eq!(got.errno, Some(libc::ECONNREFUSED), "TCP {to}: {got:?}");
        let got = udp_connected(&outside, &to).unwrap();
        assert_eq!(got.errno, Some(libc::ECONNREFUSED), "UDP {to}: {got:?}");
    }
}

/// P1, section 1: a connection opened outwards before the start is judged like a new one.
#[test]
fn outward_connections_from_before_are_judged() {
    let world = World::new().unwrap();
    for at in ["203.0.113.10:7000", "198.51.100.77:7000"] {
        world.serve(Service::TcpEcho, at).unwrap();
    }
    let cgroup = Cgroup::new("governed").unwrap();
    let mut held: Vec<(bool, Held)> = Vec::new();
    for place in [world.node().in_cgroup(&cgroup), world.node()] {
        held.push((true, Held::connect(&place, "203.0.113.10", 7000).unwrap()));
        held.push((false, Held::connect(&place, "198.51.100.77", 7000).unwrap()));
    }
    for (_, held) in &mut held {
        assert_eq!(held.say("before").unwrap(), "echo");
    }
    let policy = "version: 1\nrules:\n  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}\n";
    let test = Governed::with(world, cgroup, policy).unwrap();
    test.world.sniffer.clear();
    for (allowed, held) in &mut held {
        assert_eq!(held.say("secret").unwrap() == "echo", *allowed);
    }
    let denied = "198.51.100.77".parse().unwrap();
    test.world.sniffer.assert_none("an old connection", |frame| frame.goes_to(denied, 6, None));
}
