//! Replies to what came in pass throughout, whatever the policy says: your SSH session survives (P8).

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use egress_tests::probe::{converse, tcp, udp, udp_connected};
use egress_tests::world::{NODE_V4, NODE_V6};
use egress_tests::{Cgroup, EchoServer, Governed, Held, Service, World};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};

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

/// P8: a server that takes a peer's first datagram by one socket and answers by another, which it binds to the same port for this peer
/// alone: what QUIC and DTLS servers do (HAProxy, coturn).
#[test]
fn another_socket_of_the_same_port_may_answer() {
    let test = Governed::new(NOTHING).unwrap();
    for to in sockets(2200) {
        let to: SocketAddr = to.parse().unwrap();
        let serve = || {
            let socket = |peer: Option<SocketAddr>| -> anyhow::Result<UdpSocket> {
                let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let made = socket(family, SockType::Datagram, SockFlag::empty(), None)?;
                setsockopt(&made, sockopt::ReuseAddr, &true)?;
                bind(made.as_raw_fd(), &SockaddrStorage::from(to))?;
                let made = UdpSocket::from(made);
                made.set_read_timeout(Some(LIMIT))?;
                peer.map_or(Ok(()), |peer| made.connect(peer))?;
                Ok(made)
            };
            let (mut words, mut strange) = ([0; 64], Vec::new());
            let first = socket(None)?;
            let (length, peer) = first.recv_from(&mut words)?;
            let second = socket(Some(peer))?;
            second.send(&words[..length])?;
            // Nobody else is answered by it.
            for other in [SocketAddr::new(peer.ip(), peer.port() ^ 1), SocketAddr::new(to.ip(), 9)] {
                let another = socket(Some(other))?;
                strange.push(another.send(b"out").err().and_then(|error| error.raw_os_error()));
            }
            Ok(strange)
        };
        std::thread::scope(|scope| {
            let served = scope.spawn(|| test.inside.fork(2 * LIMIT, serve));
            std::thread::sleep(Duration::from_millis(300));
            let got = udp(&test.world.outside(), &to.to_string(), 5).unwrap();
            let served = served.join().unwrap();
            assert!(got.echoed, "{to}: {got:?}, {served:?}");
            assert_eq!(served.unwrap()[0], Some(libc::EPERM), "{to}: another port of the peer's");
        });
    }
}

/// P8: a packet of a connection that a container opened, too large for where it is: who sent it is told, or it is lost for ever.
#[test]
fn who_answers_a_container_hears_that_a_packet_is_too_large() {
    let world = World::with_pod().unwrap();
    let policy = "version: 1\nrules:\n  - {name: one, to: [203.0.113.10, '2001:db8::10'], ports: [7000/udp]}\n";
    let test = Governed::over(world, policy).unwrap();
    test.world.node_ns.ip("link set vpod0 mtu 1280").unwrap();
    for at in ["203.0.113.10:7000", "[2001:db8::10]:7000"] {
        let at: SocketAddr = at.parse().unwrap();
        let answers = || {
            let socket = UdpSocket::bind(at)?;
            socket.set_read_timeout(Some(LIMIT))?;
            let (level, option) = if at.is_ipv4() { (libc::SOL_IP, 10) } else { (libc::SOL_IPV6, 23) };
            let always = libc::IP_PMTUDISC_DO;
            // SAFETY: the value is live for the call, and its size is given. 10 is IP_MTU_DISCOVER, 23 its sister.
            let set = unsafe {
                let (value, size) = ((&raw const always).cast(), size_of_val(&always) as u32);
                libc::setsockopt(socket.as_raw_fd(), level, option, value, size)
            };
            anyhow::ensure!(set == 0, "IP_MTU_DISCOVER: {}", std::io::Error::last_os_error());
            let (_, peer) = socket.recv_from(&mut [0; 64])?;
            socket.connect(peer)?;
            let start = Instant::now();
            while start.elapsed() < Duration::from_secs(2) {
                if let Err(error) = socket.send(&[0; 1400]) {
                    return Ok(error.raw_os_error());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(None)
        };
        std::thread::scope(|scope| {
            let told = scope.spawn(|| test.world.outside().fork(2 * LIMIT, answers));
            std::thread::sleep(Duration::from_millis(300));
            // From no cgroup that is governed: the uplink alone judges.
            udp(&test.world.pod(), &at.to_string(), 5).unwrap();
            assert_eq!(told.join().unwrap().unwrap(), Some(libc::EMSGSIZE), "{at}");
        });
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
