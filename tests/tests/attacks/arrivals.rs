//! P1, P3: what never came from outside is no arrival: a container's packet with somebody else's source, an answer that a neighbour
//! sends back, a connection in a namespace of one's own.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use egress_tests::attacker::{answer, as_container, forged};
use egress_tests::model::wire::dns_query;
use egress_tests::probe::send_frame;
use egress_tests::world::{DNS_V4, NODE_V4, POD_VETH};
use egress_tests::{Governed, Place};

use crate::{EVIL, LIMIT, POLICY, world};

const PORT: u16 = 4242;

/// Where the attacker's peer listens, outside.
fn peer() -> SocketAddrV4 {
    SocketAddrV4::new(EVIL.into(), 5353)
}

/// What came of a datagram to the peer, from a socket at [`PORT`] that was sent another one before, if any came.
fn sends_after_a_call(place: &Place, wait: Duration) -> (bool, Option<ErrorKind>) {
    let outcome = place.fork(LIMIT, || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
        socket.set_read_timeout(Some(wait))?;
        let called = socket.recv_from(&mut [0; 64]).is_ok();
        let refused = socket.send_to(b"out", peer()).err().map(|error| error.raw_os_error().unwrap_or(0));
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
