//! P1, P3: what never came from outside is no arrival: a container's packet with somebody else's source, an answer that a neighbour
//! sends back, a connection in a namespace of one's own.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use egress_tests::attacker::{
    answer, as_container, as_nobody, bound_to_anothers, forged, forged_6, send_looped, sends_to_groups_by,
};
use egress_tests::model::wire::dns_query;
use egress_tests::probe::{any, send_frame, udp};
use egress_tests::world::{DNS_V4, NODE_V4, NODE_V6, POD_VETH};
use egress_tests::{EchoServer, Fault, Governed, Place};

use crate::{EVIL, LIMIT, POLICY, assert_harmless, world};

const PORT: u16 = 4242;

/// Where the attacker's peer listens, outside.
fn peer() -> SocketAddrV4 {
    SocketAddrV4::new(EVIL.into(), 5353)
}

/// The same by IPv6.
fn peer_6() -> SocketAddr {
    SocketAddr::new("2001:db8::66".parse().unwrap(), 5353)
}

/// What came of a datagram to the peer, from a socket at [`PORT`] that was sent another one before, if any came.
fn sends_after_a_call(place: &Place, wait: Duration) -> (bool, Option<ErrorKind>) {
    sends_after(place, peer().into(), wait, |_| Ok(()))
}

fn sends_after(
    place: &Place,
    peer: SocketAddr,
    wait: Duration,
    begin: impl FnOnce(&UdpSocket) -> Result<()>,
) -> (bool, Option<ErrorKind>) {
    let outcome = place.fork(LIMIT, || {
        let socket = UdpSocket::bind((any(peer).ip(), PORT))?;
        socket.set_read_timeout(Some(wait))?;
        begin(&socket)?;
        let called = socket.recv_from(&mut [0; 64]).is_ok_and(|(_, from)| from == peer);
        let refused = socket.send_to(b"out", peer).err().map(|error| error.raw_os_error().unwrap_or(0));
        Ok((called, refused))
    });
    let (called, refused) = outcome.unwrap();
    (called, refused.map(|number| std::io::Error::from_raw_os_error(number).kind()))
}

/// P1: by a packet socket a container calls a socket of the node in the name of whoever it likes, who could then be answered.
#[test]
fn a_container_cannot_call_in_anothers_name() {
    let test = Governed::over(world(), POLICY).unwrap();
    // As many hosts have it: else the kernel would stop the packet of IPv4 itself.
    for interface in ["all", POD_VETH] {
        let off = format!("net.ipv4.conf.{interface}.rp_filter=0");
        assert!(test.world.node().run("sysctl", &["-qw", &off], LIMIT).unwrap().ok(), "{off}");
    }
    let pod = test.world.pod().in_cgroup(&test.cgroup);
    let gateway = test.world.node_ns.mac(POD_VETH).unwrap();
    let to = SocketAddrV4::new(NODE_V4.parse().unwrap(), PORT);
    std::thread::scope(|scope| {
        let called = scope.spawn(|| sends_after_a_call(&test.inside, Duration::from_secs(3)));
        let attack = || {
            as_container()?;
            for _ in 0..10 {
                send_frame("eth0", gateway, &forged(peer(), to, b"call"))?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        };
        pod.fork(LIMIT, attack).unwrap();
        assert_eq!(called.join().unwrap(), (false, Some(ErrorKind::PermissionDenied)));
    });
    let told = test.event(|event| event["reason"] == "forged-source" && event["hook"] == "workload-ingress");
    assert!(told.unwrap().is_some(), "{:?}", test.daemon.events(true));
    test.world.sniffer.assert_none("the answer", |frame| frame.destination == Some(EVIL.into()));
}

/// P1: nor where the node does not forward, as with IPv6 on most hosts of containers: its routes are asked in vain there.
#[test]
fn a_container_cannot_call_in_anothers_name_where_nothing_is_forwarded() {
    let test = Governed::over(world(), POLICY).unwrap();
    test.world.node_ns.sysctl("ipv6/conf/all/forwarding", "0").unwrap();
    let pod = test.world.pod().in_cgroup(&test.cgroup);
    let gateway = test.world.node_ns.mac(POD_VETH).unwrap();
    let (SocketAddr::V6(from), to) = (peer_6(), NODE_V6.parse().unwrap()) else { unreachable!() };
    std::thread::scope(|scope| {
        let called = scope.spawn(|| sends_after(&test.inside, from.into(), Duration::from_secs(2), |_| Ok(())));
        let attack = || {
            as_container()?;
            for _ in 0..10 {
                send_frame("eth0", gateway, &forged_6(from, SocketAddrV6::new(to, PORT, 0, 0), b"call"))?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        };
        pod.fork(LIMIT, attack).unwrap();
        assert_eq!(called.join().unwrap(), (false, Some(ErrorKind::PermissionDenied)));
    });
    test.world.sniffer.assert_none("the answer", |frame| frame.destination == Some((*from.ip()).into()));
    let ping = test.world.pod().run("ping", &["-c1", "-W2", NODE_V6], LIMIT).unwrap();
    assert!(ping.ok(), "the node itself is reached: {ping:?}");
}

/// P1: nor does it by a plain socket that is bound to somebody else's address: IP_TRANSPARENT takes CAP_NET_RAW, IPV6_FREEBIND nothing.
#[test]
fn a_container_cannot_call_by_a_socket_of_anothers_address() {
    let policy = format!("{POLICY}  - {{name: node, to: [{NODE_V4}, '{NODE_V6}'], ports: [{PORT}/udp]}}\n");
    let test = Governed::over(world(), &policy).unwrap();
    let pod = test.world.pod().in_cgroup(&test.cgroup);
    for (from, to) in [(peer().into(), NODE_V4), (peer_6(), NODE_V6)] {
        let to = SocketAddr::new(to.parse().unwrap(), PORT);
        std::thread::scope(|scope| {
            let called = scope.spawn(|| sends_after(&test.inside, from, Duration::from_secs(2), |_| Ok(())));
            let attack = || {
                as_container()?;
                let socket = bound_to_anothers(from)?;
                for _ in 0..10 {
                    socket.send_to(b"call", to)?;
                    std::thread::sleep(Duration::from_millis(50));
                }
                Ok(())
            };
            pod.fork(LIMIT, attack).unwrap();
            assert_eq!(called.join().unwrap(), (false, Some(ErrorKind::PermissionDenied)), "{from}");
        });
        let told = test.event(|event| event["reason"] == "forged-source" && event["source"] == from.ip().to_string());
        assert!(told.unwrap().is_some(), "{:?}", test.daemon.events(true));
        test.world.sniffer.assert_none("the answer", |frame| frame.destination == Some(from.ip()));
        // In its own name it may, and is answered.
        let _server = EchoServer::start(&test.inside, PORT).unwrap();
        assert!(udp(&pod, &to.to_string(), 5).unwrap().echoed, "{to}");
    }
}

/// P1: what a socket of the node sends to a group comes back to the node by the interface, not by loopback. It is no arrival.
#[test]
fn what_is_sent_to_a_group_is_no_call() {
    let groups = (Ipv4Addr::new(239, 1, 2, 3), "ff02::4242".parse::<Ipv6Addr>().unwrap());
    let policy = format!("{POLICY}  - {{name: groups, to: [{}, '{}'], ports: [{PORT}/udp]}}\n", groups.0, groups.1);
    let test = Governed::over(world(), &policy).unwrap();
    let index = test.world.node_ns.ifindex("up0").unwrap();
    let own: Ipv4Addr = NODE_V4.parse().unwrap();
    for (from, group) in [(peer().into(), groups.0.into()), (peer_6(), groups.1.into())] {
        let join = |socket: &UdpSocket| match group {
            IpAddr::V4(group) => socket.join_multicast_v4(&group, &own),
            IpAddr::V6(group) => socket.join_multicast_v6(&group, index),
        };
        let outcome = sends_after(&test.inside, from, Duration::from_secs(2), |socket| {
            join(socket)?;
            as_container()?;
            let forger = bound_to_anothers(from)?;
            sends_to_groups_by(&forger, index)?;
            forger.send_to(b"call", (group, PORT))?;
            Ok(())
        });
        assert_eq!(outcome, (true, Some(ErrorKind::PermissionDenied)), "{group}");
        test.world.sniffer.assert_none("the answer", |frame| frame.destination == Some(from.ip()));
    }
}

/// P1, P3: such a packet comes back without a link header, and its first bytes are no Ethernet header, though any user can have them look like one.
#[test]
fn what_comes_back_of_a_group_is_not_taken_for_a_frame() {
    let test = Governed::over(world(), POLICY).unwrap();
    let index = test.world.node_ns.ifindex("up0").unwrap();
    let own: Ipv4Addr = NODE_V4.parse().unwrap();
    // Outside of the governed cgroup: the uplink alone judges.
    let calls = || {
        as_nobody()?;
        let socket = UdpSocket::bind((own, PORT))?;
        send_looped(index, peer(), SocketAddrV4::new(own, PORT), b"call")?;
        Ok(socket.send_to(b"out", peer()).is_ok())
    };
    test.beside.fork(LIMIT, calls).unwrap();
    test.world.sniffer.assert_none("the answer", |frame| frame.destination == Some(EVIL.into()));

    let name = "looped.wild.example.com";
    test.world.dns.fault(name, Fault::Silent);
    let resolver = SocketAddrV4::new(DNS_V4.parse().unwrap(), 53);
    let answers = || {
        as_nobody()?;
        let socket = UdpSocket::bind((own, 0))?;
        let SocketAddr::V4(local) = socket.local_addr()? else { anyhow::bail!("an IPv4 socket") };
        let query = dns_query(name);
        socket.send_to(&query, resolver)?;
        std::thread::sleep(Duration::from_millis(20));
        Ok(send_looped(index, resolver, local, &answer(&query, EVIL))?)
    };
    test.beside.fork(LIMIT, answers).unwrap();
    assert_harmless(&test, "an answer that a group gave back");
}

/// P3: on the node itself, with CAP_NET_RAW: an answer in the resolver's name, to a neighbour that sends it back.
#[test]
fn an_answer_for_a_neighbour_to_send_back_does_not_leave() {
    let test = Governed::over(world(), POLICY).unwrap();
    let gateway = test.world.world_ns.mac("wup0").unwrap();
    let resolver = SocketAddrV4::new(DNS_V4.parse().unwrap(), 53);
    let own = SocketAddrV4::new(NODE_V4.parse().unwrap(), 123);
    for place in [&test.inside, &test.beside] {
        let attack = || {
            as_container()?;
            let packet = forged(resolver, own, &answer(&dns_query("x.wild.example.com"), EVIL));
            // A packet that a program drops there is an error of the sender's.
            Ok(send_frame("up0", gateway, &packet).is_err_and(|error| error.raw_os_error() == Some(libc::ENOBUFS)))
        };
        assert!(place.fork(LIMIT, attack).unwrap(), "it is dropped");
    }
    let told = test.event(|event| event["reason"] == "forged-resolver" && event["hook"] == "uplink-egress");
    assert!(told.unwrap().is_some(), "{:?}", test.daemon.events(true));
    test.world.sniffer.assert_none("the answer", |frame| frame.destination == NODE_V4.parse().ok());
}

/// P1, P4: DHCP's builtin lets a client ask its server, and nobody talk to whoever listens at its port.
#[test]
fn the_port_of_dhcp_is_no_way_out() {
    let test = Governed::over(world(), POLICY).unwrap();
    let pod = test.world.pod().in_cgroup(&test.cgroup);
    let (all, inside, outside) = (Ipv4Addr::BROADCAST, Ipv4Addr::new(192, 168, 255, 254), Ipv4Addr::from(EVIL));
    let send = |place: &Place, port: u16, to: Ipv4Addr, connects: bool| -> Option<i32> {
        let send = || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.set_broadcast(true)?;
            let sent = if connects {
                socket.connect((to, 67)).and_then(|()| socket.send(b"data"))
            } else {
                socket.send_to(b"data", (to, 67))
            };
            Ok(sent.err().map(|error| error.raw_os_error().unwrap_or(0)))
        };
        place.fork(LIMIT, send).unwrap()
    };
    for connects in [false, true] {
        assert_eq!(send(&test.inside, 68, all, connects), None, "a client asks everybody");
        assert_eq!(send(&test.inside, 68, inside, connects), None, "and its server");
        assert_eq!(send(&test.inside, 69, inside, connects), Some(libc::EPERM), "no other port may");
        assert_eq!(send(&pod, 68, inside, connects), Some(libc::EPERM), "nor another than the host");
        for place in [&test.inside, &pod] {
            assert_eq!(send(place, 68, outside, connects), Some(libc::EPERM));
        }
    }
    test.world.sniffer.assert_none("DHCP's port", |frame| frame.destination == Some(EVIL.into()));
}
