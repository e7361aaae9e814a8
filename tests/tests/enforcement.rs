//! What leaves and what does not: the rules of DESIGN section 1 against real sockets and hand-made packets (P1).
//!
//! Every denial is judged twice, by what the sender was told and by what arrived in the world.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use egress_tests::probe::{self, V4, attempt, datagram, ipv4, ipv6, send_frame, send_ip, tcp, udp, udp_connected};
use egress_tests::world::{NODE_V4, NODE_V6, UPLINK};
use egress_tests::{Frame, Governed, Place, World};

const POLICY: &str = "version: 1
rules:
  - {name: echo, to: [203.0.113.0/24, '2001:db8:1::/48'], ports: [7000/tcp, 7000/udp, icmp]}
  - {name: bad-one, action: deny, to: [203.0.113.99]}
";
const ALLOWED: [&str; 2] = ["203.0.113.10:7000", "[2001:db8:1::10]:7000"];
const DENIED: [&str; 2] = ["198.51.100.77:7000", "[2001:db8:77::77]:7000"];
const ALLOWED_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const DENIED_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
const LIMIT: Duration = Duration::from_secs(5);
const AT_ONCE: u64 = 500;

fn served(world: World) -> World {
    world.serve_echoes(&[&ALLOWED[..], &DENIED, &["203.0.113.99:7000", "203.0.113.10:7001"]].concat()).unwrap();
    world
}

fn governed() -> Governed {
    Governed::over(served(World::new().unwrap()), POLICY).unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// P1: an address rule lets TCP through, and the rest fails at once with EPERM; a process beside the cgroup is stopped by
/// the uplink.
#[test]
fn tcp_passes_by_rule_and_fails_at_once() {
    let test = governed();
    for to in ALLOWED {
        for place in [&test.inside, &test.beside] {
            let got = tcp(place, to).unwrap();
            assert!(got.echoed, "{to}: {got:?}");
        }
    }
    for to in DENIED.iter().chain(&["203.0.113.10:7001"]) {
        test.world.sniffer.clear();
        let got = tcp(&test.inside, to).unwrap();
        assert!(got.refused() && got.took < AT_ONCE, "{to}: {got:?}");
        assert!(!tcp(&test.beside, to).unwrap().echoed);
        test.assert_nothing_arrived(to, address(to), 6);
    }
}

/// P1: UDP by `sendto` and by a connected socket.
#[test]
fn udp_passes_by_rule_and_fails_at_once() {
    let test = governed();
    for to in ALLOWED {
        for got in [udp(&test.inside, to, 5), udp_connected(&test.inside, to), udp(&test.beside, to, 5)] {
            assert!(got.as_ref().unwrap().echoed, "{to}: {got:?}");
        }
    }
    for to in DENIED.iter().chain(&["203.0.113.10:7001"]) {
        test.world.sniffer.clear();
        for got in [udp(&test.inside, to, 5), udp_connected(&test.inside, to)] {
            let got = got.unwrap();
            assert!(got.refused() && got.took < AT_ONCE, "{to}: {got:?}");
        }
        assert!(!udp(&test.beside, to, 5).unwrap().echoed);
        test.assert_nothing_arrived(to, address(to), 17);
    }
}

/// P1: a deny rule wins over an allow rule that covers the same address.
#[test]
fn a_deny_rule_beats_an_allow_rule() {
    let test = governed();
    let to = "203.0.113.99:7000";
    assert!(tcp(&test.inside, to).unwrap().refused());
    assert!(udp(&test.inside, to, 5).unwrap().refused());
    assert!(!udp(&test.beside, to, 5).unwrap().echoed);
    test.world.sniffer.assert_none("a denied address", |frame| frame.destination == Some(address(to).ip()));
    let event = test.event(|event| event["reason"] == "denied" && event["destination"] == "203.0.113.99").unwrap();
    assert_eq!(event.expect("an event about the deny rule")["rule"], "bad-one");
}

/// P1: an AF_INET6 socket that speaks IPv4 is judged as IPv4.
#[test]
fn mapped_sockets_are_judged_as_ipv4() {
    let test = governed();
    assert!(tcp(&test.inside, "[::ffff:203.0.113.10]:7000").unwrap().echoed);
    assert!(udp(&test.inside, "[::ffff:203.0.113.10]:7000", 5).unwrap().echoed);
    let denied = "[::ffff:198.51.100.77]:7000";
    for got in [tcp(&test.inside, denied), udp(&test.inside, denied, 5), udp_connected(&test.inside, denied)] {
        assert!(got.as_ref().unwrap().refused(), "{got:?}");
    }
    test.world.sniffer.assert_none("a mapped address", |frame| frame.destination == Some(DENIED_V4.into()));
}

/// P1: TCP Fast Open sends its SYN by `sendto`, without `connect`.
#[test]
fn tcp_fast_open_is_no_way_round_connect() {
    let test = governed();
    let fast = |to: SocketAddr| {
        move || {
            let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
            let socket = probe::open(family, libc::SOCK_STREAM, 0)?;
            probe::send(&socket, b"hello", to, libc::MSG_FASTOPEN)?;
            probe::converse(&mut socket.into(), b"").map(|_| true)
        }
    };
    for to in ALLOWED {
        assert!(attempt(&test.inside, fast(address(to))).unwrap().echoed, "{to}");
    }
    for to in DENIED {
        let got = attempt(&test.inside, fast(address(to))).unwrap();
        assert!(got.errno.is_some() && got.took < AT_ONCE, "{to}: {got:?}");
        test.assert_nothing_arrived(to, address(to), 6);
    }
}

/// P1: UDP GSO hands the hooks one packet that holds many datagrams.
#[test]
fn udp_gso_is_judged_like_single_datagrams() {
    let test = governed();
    let many = |to: SocketAddr| {
        move || {
            let socket = UdpSocket::bind(probe::any(to))?;
            let size: libc::c_int = 500;
            // SAFETY: the option is one c_int and its size is given.
            let set = unsafe {
                let value = (&raw const size).cast();
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, 4)
            };
            if set != 0 {
                return Err(io::Error::last_os_error());
            }
            socket.send_to(&[7; 2000], to)?;
            probe::echoed(&socket, &[7; 500])
        }
    };
    for place in [&test.inside, &test.beside] {
        for to in ALLOWED {
            let got = attempt(place, many(address(to))).unwrap();
            assert!(got.echoed, "{to}: {got:?}");
        }
        for to in DENIED {
            assert!(!attempt(place, many(address(to))).unwrap().echoed);
            test.assert_nothing_arrived(to, address(to), 17);
        }
    }
}

/// P1: `icmp` is a port like others, for both families.
#[test]
fn ping_passes_by_an_icmp_rule_only() {
    let test = governed();
    let ping = |place: &Place, to: &str| place.run("ping", &["-c1", "-W0.4", "-n", to], LIMIT).unwrap();
    for place in [&test.inside, &test.beside] {
        for to in ["203.0.113.10", "2001:db8:1::10"] {
            let run = ping(place, to);
            assert!(run.ok(), "{to}: {run:?}");
        }
        for (to, protocol) in [("198.51.100.77", 1), ("2001:db8:77::77", 58)] {
            assert!(!ping(place, to).ok());
            test.assert_nothing_arrived(to, SocketAddr::new(to.parse().unwrap(), 0), protocol);
        }
    }
}

/// P1: a datagram that is cut into fragments arrives whole where it may, and no piece of it where it may not.
#[test]
fn large_datagrams_arrive_whole_or_not_at_all() {
    let test = governed();
    for place in [&test.inside, &test.beside] {
        for to in ALLOWED {
            let got = udp(place, to, 8000).unwrap();
            assert!(got.echoed, "{to}: {got:?}");
        }
        for to in DENIED {
            assert!(!udp(place, to, 8000).unwrap().echoed);
            test.assert_nothing_arrived(to, address(to), 17);
        }
    }
}

/// A packet that must not get out: what it is, its bytes, and how it is known in the world.
struct Forbidden {
    what: &'static str,
    to: IpAddr,
    packet: Vec<u8>,
    is: fn(&Frame) -> bool,
}

/// A way to send; the bytes are the gateway's hardware address.
type Send = fn(&Forbidden, [u8; 6]) -> io::Result<()>;

fn forbidden() -> Vec<Forbidden> {
    let node: Ipv4Addr = NODE_V4.parse().unwrap();
    let node6: Ipv6Addr = NODE_V6.parse().unwrap();
    let allowed6: Ipv6Addr = "2001:db8:1::10".parse().unwrap();
    let hello = datagram(40_000, 7000, b"hand-made");
    let v4 = |to, protocol, id, fragment, options: &[u8], payload: &[u8]| {
        ipv4(node, to, &V4 { protocol, id, fragment, options }, payload)
    };
    let to4 = |what, to: Ipv4Addr, packet, is| Forbidden { what, to: to.into(), packet, is };
    let to6 = |what, next, payload: Vec<u8>, is| Forbidden {
        what,
        to: allowed6.into(),
        packet: ipv6(node6, allowed6, next, &payload),
        is,
    };
    let to_denied: fn(&Frame) -> bool = |frame| frame.destination == Some(DENIED_V4.into());
    let inner = v4(DENIED_V4, 17, 1, 0, &[], &hello);
    // Routing header (RFC 8200, 4.4): next header UDP, length 2, type 0 or 4, one segment left, the true destination.
    let routing = |kind: u8| {
        let far: Ipv6Addr = "2001:db8:77::77".parse().unwrap();
        [&[17, 2, kind, 1, 0, 0, 0, 0][..], &far.octets(), &hello].concat()
    };
    // Options that reroute (RFC 791, 3.1): loose and strict source route with one hop, padded to eight bytes.
    let route = |kind: u8| [&[kind, 7, 4][..], &DENIED_V4.octets(), &[0]].concat();
    vec![
        to4("a raw datagram", DENIED_V4, v4(DENIED_V4, 17, 2, 0, &[], &hello), to_denied),
        to4(
            "a first fragment",
            DENIED_V4,
            v4(DENIED_V4, 17, 3, 0x2000, &[], &[&hello[..], &[1; 15]].concat()),
            to_denied,
        ),
        to4("a later fragment", DENIED_V4, v4(DENIED_V4, 17, 3, 4, &[], &[1; 32]), to_denied),
        to4(
            "a later fragment without a first, to an allowed address",
            ALLOWED_V4,
            v4(ALLOWED_V4, 17, 4, 4, &[], b"0123456789abcdef"),
            |frame| frame.payload == b"0123456789abcdef",
        ),
        to4(
            "a first fragment of eight bytes less than the ports",
            ALLOWED_V4,
            v4(ALLOWED_V4, 6, 5, 0x2000, &[], &[0x9c, 0x40, 0x1b, 0x58, 0, 0, 0, 1]),
            |frame| frame.protocol == Some(6),
        ),
        to4("a loose source route", ALLOWED_V4, v4(ALLOWED_V4, 17, 6, 0, &route(131), &hello), |frame| {
            frame.bytes[14] == 0x47 && frame.bytes[34] == 131
        }),
        to4("a strict source route", ALLOWED_V4, v4(ALLOWED_V4, 17, 7, 0, &route(137), &hello), |frame| {
            frame.bytes[14] == 0x47 && frame.bytes[34] == 137
        }),
        to4(
            "GRE to an allowed address",
            ALLOWED_V4,
            v4(ALLOWED_V4, 47, 8, 0, &[], &[&[0, 0, 8, 0][..], &inner].concat()),
            |frame| frame.protocol == Some(47),
        ),
        to4("IPIP to an allowed address", ALLOWED_V4, v4(ALLOWED_V4, 4, 9, 0, &[], &inner), |frame| {
            frame.protocol == Some(4)
        }),
        to4("ESP to an allowed address", ALLOWED_V4, v4(ALLOWED_V4, 50, 10, 0, &[], &[0; 32]), |frame| {
            frame.protocol == Some(50)
        }),
        to6("a routing header of type 0", 43, routing(0), |frame| frame.bytes[20] == 43 && frame.bytes[56] == 0),
        to6("a routing header of type 4", 43, routing(4), |frame| frame.bytes[20] == 43 && frame.bytes[56] == 4),
    ]
}

/// P1: raw sockets and AF_PACKET send whatever they like; none of it gets out. That each of these packets does leave
/// without enforcement is shown first.
#[test]
fn hand_made_packets_do_not_get_out() {
    let world = served(World::new().unwrap());
    let gateway = world.world_ns.mac("wup0").unwrap();
    let ways: [(&str, Send); 2] = [
        ("a raw socket", |this, _| send_ip(&this.packet, this.to)),
        ("AF_PACKET", |this, gateway| send_frame(UPLINK, gateway, &this.packet)),
    ];
    for this in forbidden() {
        for (way, send) in ways {
            world.sniffer.clear();
            let sent = attempt(&world.node(), || send(&this, gateway).map(|()| true)).unwrap();
            assert!(sent.echoed, "{} by {way}: {sent:?}", this.what);
            let seen = world.sniffer.wait_for(Duration::from_secs(1), |frame| (this.is)(frame));
            assert!(seen.is_some(), "{} by {way} does not even leave without enforcement", this.what);
        }
    }
    let test = Governed::over(world, POLICY).unwrap();
    for this in forbidden() {
        for (way, send) in ways {
            for (where_, place) in [("inside", &test.inside), ("beside", &test.beside)] {
                test.world.sniffer.clear();
                attempt(place, || send(&this, gateway).map(|()| true)).unwrap();
                let what = format!("{} by {way}, {where_} the cgroup", this.what);
                test.world.sniffer.assert_none(&what, |frame| (this.is)(frame));
            }
        }
    }
}

/// P1: what is made by hand and allowed passes all the same, fragments in order included.
#[test]
fn hand_made_packets_that_a_rule_allows_pass() {
    let test = governed();
    let gateway = test.world.world_ns.mac("wup0").unwrap();
    let node: Ipv4Addr = NODE_V4.parse().unwrap();
    let whole = datagram(40_000, 7000, &[9; 40]);
    let packet =
        |id, fragment, part: &[u8]| ipv4(node, ALLOWED_V4, &V4 { protocol: 17, id, fragment, options: &[] }, part);
    for (id, place) in [(21, &test.inside), (22, &test.beside)] {
        for way in 0..2_u16 {
            test.world.hits.clear();
            let (first, second) = (packet(id + way * 8, 0x2000, &whole[..24]), packet(id + way * 8, 3, &whole[24..]));
            let sent = attempt(place, || {
                for part in [&first, &second] {
                    if way == 0 { send_ip(part, ALLOWED_V4.into())? } else { send_frame(UPLINK, gateway, part)? }
                }
                Ok(true)
            });
            assert!(sent.as_ref().unwrap().echoed, "{sent:?}");
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(test.world.hits.all().len(), 1, "id {id}, way {way}: the datagram did not come together");
        }
    }
    // A destination options header (RFC 8200, 4.6) with padding alone, then UDP with its checksum.
    let (from, to): (Ipv6Addr, Ipv6Addr) = (NODE_V6.parse().unwrap(), "2001:db8:1::10".parse().unwrap());
    let options = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &datagram(40_001, 7000, b"options")].concat();
    let sent = attempt(&test.inside, || send_ip(&ipv6(from, to, 60, &options), to.into()).map(|()| true)).unwrap();
    assert!(sent.echoed, "{sent:?}");
    let seen = test.world.sniffer.wait_for(Duration::from_secs(1), |frame| frame.bytes.get(20) == Some(&60));
    assert!(seen.is_some(), "a destination options header to an allowed address was dropped");
}

/// P1: what a pod sends is forwarded by the node, and judged on its uplink.
#[test]
fn forwarded_traffic_is_judged_on_the_uplink() {
    let test = Governed::over(served(World::with_pod().unwrap()), POLICY).unwrap();
    let pod = test.world.pod();
    for to in ALLOWED {
        assert!(tcp(&pod, to).unwrap().echoed && udp(&pod, to, 5).unwrap().echoed, "{to}");
        assert!(udp(&pod, to, 8000).unwrap().echoed, "{to} in fragments");
    }
    test.world.sniffer.clear();
    for to in DENIED.iter().chain(&["203.0.113.99:7000"]) {
        assert!(!tcp(&pod, to).unwrap().echoed && !udp(&pod, to, 5).unwrap().echoed, "{to}");
        test.world.sniffer.assert_none(to, |frame| frame.destination == Some(address(to).ip()));
    }
    let event = test.event(|event| event["hook"] == "uplink-egress" && event["destination"] == "198.51.100.77");
    assert!(event.unwrap().is_some(), "no event about the pod's packet: {:?}", test.daemon.events(false).unwrap());
}

/// P1, section 1: audit lets everything through, and says what it would have dropped.
#[test]
fn audit_passes_and_reports() {
    let world = served(World::new().unwrap());
    let test = Governed::over(world, &POLICY.replace("version: 1", "version: 1\nmode: audit")).unwrap();
    for to in DENIED {
        for place in [&test.inside, &test.beside] {
            assert!(tcp(place, to).unwrap().echoed && udp(place, to, 5).unwrap().echoed, "{to}");
        }
        let ip = address(to).ip().to_string();
        let found = test.event(|event| event["kind"] == "would-drop" && event["destination"] == ip.as_str()).unwrap();
        let found = found.unwrap_or_else(|| panic!("nothing about {ip}: {:?}", test.daemon.events(false)));
        assert_eq!(found["verdict"], "pass");
    }
    assert!(test.daemon.events(false).unwrap().iter().all(|event| event["kind"] != "dropped"));
    assert!(test.daemon.events(false).unwrap().iter().all(|event| event["destination"] != "203.0.113.10"));
    let dropped = test.daemon.status().unwrap();
    assert_eq!(dropped["mode"], "audit");
}
