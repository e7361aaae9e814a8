//! P5: what the cgroup's hook lets go for the program at the veth's host side ends there, whatever is done inside the pod or to its
//! veth. What arrives is counted at the resolver.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use egress_tests::attacker::{as_container, forged, frame, send_bypassing};
use egress_tests::model::wire::dns_query;
use egress_tests::probe::{attempt, send_frame};
use egress_tests::world::{DNS_V4, POD_V4, POD_VETH};
use egress_tests::{NetNs, Place};

use crate::{ALLOWED, CLUSTER_DNS, Node, assert_not_asked, policy};

const LIMIT: Duration = Duration::from_secs(20);
const REFUSED: &str = "forbidden.example.com";

/// What became of some queries.
#[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Asked {
    nxdomain: u32,
    answered: u32,
    eperm: u32,
    silence: u32,
    other: u32,
}

/// How queries are sent.
#[derive(Clone, Copy, Default)]
struct How {
    mark: u32,
    /// Bound to the address that the pod has at its veth, whichever way the route goes.
    bound: bool,
    for_at_least: Duration,
}

fn ask(place: &Place, name: &str, how: How) -> Asked {
    let query = dns_query(name);
    let ask = || {
        let resolver: SocketAddr = (CLUSTER_DNS.parse::<IpAddr>()?, 53).into();
        let (mut asked, start) = (Asked::default(), Instant::now());
        let mut turns = 0;
        while turns < 5 || start.elapsed() < how.for_at_least {
            turns += 1;
            let own = if how.bound { format!("{POD_V4}:0") } else { "0.0.0.0:0".to_owned() };
            let socket = UdpSocket::bind(own)?;
            socket.set_read_timeout(Some(Duration::from_millis(30)))?;
            nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::Mark, &how.mark)?;
            match socket.send_to(&query, resolver) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => asked.eperm += 1,
                Err(_) => asked.other += 1,
                Ok(_) => match socket.recv(&mut [0; 512]) {
                    Ok(len) if len == query.len() => asked.nxdomain += 1,
                    Ok(_) => asked.answered += 1,
                    Err(_) => asked.silence += 1,
                },
            }
        }
        Ok(asked)
    };
    place.fork(LIMIT, ask).unwrap()
}

fn refused(place: &Place) -> Asked {
    ask(place, REFUSED, How::default())
}

/// A pod whose way was taken and is known.
fn known() -> Node {
    let node = Node::new(&[CLUSTER_DNS]);
    assert_eq!(refused(&node.pod), Asked { nxdomain: 5, ..Asked::default() });
    assert_eq!(ask(&node.pod, ALLOWED, How::default()), Asked { answered: 5, ..Asked::default() });
    node
}

/// An interface of the pod's that leads past the host straight to the resolver, as a card of its own would.
fn second_interface(node: &Node) {
    let pod = node.test.world.pod_ns.as_ref().unwrap();
    pod.veth("net1", &["10.99.0.2/24"], &node.resolver, "net1", &["10.99.0.53/24"]).unwrap();
    node.resolver.ip(&format!("route add {POD_V4}/32 via 10.99.0.2")).unwrap();
    pod.ip(&format!("route add {CLUSTER_DNS}/32 via 10.99.0.53")).unwrap();
}

#[test]
fn an_interface_that_nobody_governs_gets_errors() {
    let node = known();
    second_interface(&node);
    for bound in [false, true] {
        let asked = ask(&node.pod, REFUSED, How { bound, ..How::default() });
        assert_eq!(asked, Asked { eperm: 5, ..Asked::default() }, "bound: {bound}");
        let asked = ask(&node.pod, ALLOWED, How { bound, ..How::default() });
        assert_eq!(asked, Asked { answered: 5, ..Asked::default() }, "bound: {bound}");
        let asked = ask(&node.pod, REFUSED, How { bound, ..How::default() });
        assert_eq!(asked, Asked { eperm: 5, ..Asked::default() }, "after an allowed one, bound: {bound}");
    }
    assert_not_asked(&node, "by another interface");
}

/// A socket that asks by both interfaces in turn, and at once from two threads, is no proof that one leads where the other does.
#[test]
fn a_socket_that_asks_by_two_interfaces_proves_neither() {
    let node = known();
    second_interface(&node);
    let (allowed, forbidden) = (dns_query(ALLOWED), dns_query(REFUSED));
    let mix = || {
        let pick = |name: &str| nix::net::if_::if_nametoindex(name).map(u32::cast_signed);
        let ways = [pick("eth0")?, pick("net1")?];
        let resolver = SocketAddrV4::new(CLUSTER_DNS.parse()?, 53);
        let start = Instant::now();
        let mut left = 0_u32;
        while start.elapsed() < Duration::from_secs(1) {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            std::thread::scope(|scope| {
                for way in ways {
                    let (socket, allowed) = (&socket, &allowed);
                    scope.spawn(move || (0..20).for_each(|_| _ = send_by(socket, way, allowed, resolver)));
                }
            });
            for _ in 0..3 {
                left += u32::from(send_by(&UdpSocket::bind("0.0.0.0:0")?, ways[1], &forbidden, resolver).is_ok());
            }
        }
        Ok(left)
    };
    assert_eq!(node.pod.fork(LIMIT, mix).unwrap(), 0, "let go by an interface that nobody governs");
    assert!(node.test.world.dns.count(ALLOWED) > 50, "few queries arrived");
    assert_not_asked(&node, "two interfaces");
}

/// Sends by an interface of the message's own choice (IP_PKTINFO), which needs no privilege.
fn send_by(socket: &UdpSocket, interface: i32, payload: &[u8], to: SocketAddrV4) -> nix::Result<usize> {
    use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
    let any = libc::in_addr { s_addr: 0 };
    let info = libc::in_pktinfo { ipi_ifindex: interface, ipi_spec_dst: any, ipi_addr: any };
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    let parts = [std::io::IoSlice::new(payload)];
    sendmsg(socket.as_raw_fd(), &parts, &control, MsgFlags::empty(), Some(&SockaddrIn::from(to)))
}

/// Root of the pod with CAP_NET_ADMIN: the veth goes to a namespace of its own, and another interface takes its index and its
/// address, which leads there.
#[test]
fn interfaces_rearranged_inside_lead_to_the_host_all_the_same() {
    let node = known();
    let pod = node.test.world.pod_ns.as_ref().unwrap();
    let index = pod.ifindex("eth0").unwrap();
    let inner = NetNs::new("inner").unwrap();
    pod.ip(&format!("link set eth0 netns {}", inner.name())).unwrap();
    pod.ip(&format!("link add mine index {index} type veth peer name theirs netns {}", inner.name())).unwrap();
    assert_eq!(pod.ifindex("mine").unwrap(), index);
    pod.ip(&format!("link set mine up\naddr add {POD_V4}/32 dev mine\nroute add default dev mine")).unwrap();
    inner
        .ip("link set theirs up\nlink set eth0 up\naddr add 10.244.0.3/24 dev eth0\nroute add default via 10.244.0.1")
        .unwrap();
    inner.ip(&format!("route add {POD_V4}/32 dev theirs")).unwrap();
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/proxy_arp", "1"),
        // Else an answer for another comes up to 0.8 s later.
        ("ipv4/neigh/eth0/proxy_delay", "0"),
        ("ipv4/neigh/theirs/proxy_delay", "0"),
    ] {
        inner.sysctl(key, value).unwrap();
    }
    let start = Instant::now();
    while ask(&node.pod, ALLOWED, How { bound: true, ..How::default() }).answered == 0 {
        assert!(start.elapsed() < LIMIT, "there is no way through the namespace of its own");
    }
    for mark in [0, 0xe6e5_0053] {
        let asked = ask(&node.pod, REFUSED, How { mark, bound: true, for_at_least: Duration::from_millis(500) });
        println!("{asked:?}");
        assert_eq!(asked.answered, 0, "{asked:?}");
    }
    assert_not_asked(&node, "rearranged");
}

/// A mark of the sender's own, and sending below the sockets with a container's capabilities.
#[test]
fn marks_and_packet_sockets_change_nothing() {
    let node = known();
    for mark in [1, 0xe6e5_0053] {
        let asked = ask(&node.pod, REFUSED, How { mark, ..How::default() });
        assert_eq!(asked, Asked { nxdomain: 5, ..Asked::default() }, "{mark:#x}");
    }
    let gateway = node.test.world.node_ns.mac(POD_VETH).unwrap();
    let own = node.test.world.pod_ns.as_ref().unwrap().mac("eth0").unwrap();
    let packet = |name: &str| {
        let (from, to): (Ipv4Addr, Ipv4Addr) = (POD_V4.parse().unwrap(), CLUSTER_DNS.parse().unwrap());
        forged(SocketAddrV4::new(from, 40_000), SocketAddrV4::new(to, 53), &dns_query(name))
    };
    let before = node.test.world.dns.count(ALLOWED);
    for name in [REFUSED, ALLOWED] {
        let packet = packet(name);
        let sent = attempt(&node.pod, || {
            as_container().map_err(std::io::Error::other)?;
            send_frame("eth0", gateway, &packet)?;
            send_bypassing("eth0", &frame(own, gateway, &packet))?;
            Ok(true)
        });
        assert!(sent.unwrap().echoed);
    }
    let start = Instant::now();
    while node.test.world.dns.count(ALLOWED) < before + 2 && start.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(node.test.world.dns.count(ALLOWED), before + 2, "packets arrive this way");
    assert_not_asked(&node, "below the sockets");
}

/// Without a daemon, the veth is deleted and another one gets both its indexes and its addresses.
#[test]
fn another_veth_with_the_same_indexes_gets_errors() {
    let mut node = known();
    node.test.daemon.kill().unwrap();
    assert_eq!(refused(&node.pod), Asked { nxdomain: 5, ..Asked::default() }, "without a daemon");
    let (host, pod) = (&node.test.world.node_ns, node.test.world.pod_ns.as_ref().unwrap());
    let (outer, inner) = (host.ifindex(POD_VETH).unwrap(), pod.ifindex("eth0").unwrap());
    host.ip(&format!("link del {POD_VETH}")).unwrap();
    host.ip(&format!("link add {POD_VETH} index {outer} type veth peer name eth0 index {inner} netns {}", pod.name()))
        .unwrap();
    assert_eq!((host.ifindex(POD_VETH).unwrap(), pod.ifindex("eth0").unwrap()), (outer, inner));
    host.ip(&format!("link set {POD_VETH} up\naddr add 10.244.0.1/24 dev {POD_VETH}")).unwrap();
    pod.ip(&format!("link set eth0 up\naddr add {POD_V4}/24 dev eth0\nroute add default via 10.244.0.1")).unwrap();
    assert_eq!(refused(&node.pod), Asked { eperm: 5, ..Asked::default() }, "nobody governs this veth");
    // A link that was just set up may carry nothing for a moment: it was seen once, on a busy machine.
    let start = Instant::now();
    let mut asked = ask(&node.pod, ALLOWED, How::default());
    while asked.answered != 5 && start.elapsed() < Duration::from_secs(5) {
        asked = ask(&node.pod, ALLOWED, How::default());
    }
    assert_eq!(asked, Asked { answered: 5, ..Asked::default() });
    assert_not_asked(&node, "another veth");
}

/// The resolver goes and comes with the policy: what was let go under one is not let pass under the next.
#[test]
fn what_was_let_go_stays_when_the_resolver_is_changed() {
    let node = known();
    std::thread::scope(|scope| {
        let pod = &node.pod;
        let how = How { for_at_least: Duration::from_secs(2), ..How::default() };
        let asking = scope.spawn(move || ask(pod, REFUSED, how));
        let mut other = false;
        while !asking.is_finished() {
            other = !other;
            let resolver = if other { DNS_V4 } else { CLUSTER_DNS };
            let policy = policy(if other { "other" } else { "web" }, &[resolver]);
            node.test.write_policy(&policy).unwrap();
            node.test.daemon.signal(nix::sys::signal::Signal::SIGHUP).unwrap();
            std::thread::sleep(Duration::from_millis(60));
        }
        let asked = asking.join().unwrap();
        println!("{asked:?}");
        assert!(asked.nxdomain > 0, "{asked:?}");
    });
    assert_not_asked(&node, "the resolver changes");
}
