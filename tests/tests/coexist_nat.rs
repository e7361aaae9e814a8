//! Address translation beside Egress, as Docker (masquerade, published ports) and kube-proxy (service addresses, node ports)
//! write it: which address each program sees, P1 and P8 with it, and that replies come back.

use std::process::Stdio;
use std::time::Duration;

use egress_tests::held::EchoServer;
use egress_tests::probe::{tcp, udp};
use egress_tests::world::{NODE_V4, POD_VETH};
use egress_tests::{Governed, Held, Place, Service, World};

/// Services 1 to 4 stand at `10.96.0.N:80` and `fd00:96::N`, and are translated to the [`backend`] of that number. The policy
/// has both ends of the first, the service's address alone of the second, the backend's alone of the third, none of the fourth.
const POLICY: &str = "version: 1
rules:
  - {name: services, to: [10.96.0.1, 10.96.0.2, 10.96.0.5, 'fd00:96::1', 'fd00:96::2'], ports: [80/tcp, 80/udp]}
  - {name: backends, to: [203.0.113.1, 203.0.113.3, '2001:db8::1', '2001:db8::3'], ports: [7000/tcp, 7000/udp]}
";
const BOTH: u8 = 1;
/// A service whose backend is the container on the node; the policy has the service's address.
const LOCAL_SERVICE: &str = "10.96.0.5";
const LIMIT: Duration = Duration::from_secs(5);

fn service(n: u8, v6: bool) -> String {
    if v6 { format!("[fd00:96::{n}]:80") } else { format!("10.96.0.{n}:80") }
}

fn backend(n: u8, v6: bool) -> String {
    if v6 { format!("2001:db8::{n}") } else { format!("203.0.113.{n}") }
}

/// One translation of a destination: address, protocol and port, and what they become.
fn translations(v6: bool) -> Vec<(String, &'static str, u16, String)> {
    let mut all = Vec::new();
    for protocol in ["tcp", "udp"] {
        for n in 1..=4 {
            let to = backend(n, v6);
            let to = if v6 { format!("[{to}]:7000") } else { format!("{to}:7000") };
            let service = if v6 { format!("fd00:96::{n}") } else { format!("10.96.0.{n}") };
            all.push((service, protocol, 80, to.clone()));
            if !v6 {
                // A node port.
                all.push((NODE_V4.to_owned(), protocol, 30_000 + u16::from(n), to));
            }
        }
    }
    if !v6 {
        all.push((NODE_V4.to_owned(), "tcp", 8080, "10.244.0.2:7100".to_owned()));
        all.push((LOCAL_SERVICE.to_owned(), "tcp", 80, "10.244.0.2:7100".to_owned()));
    }
    all
}

fn nftables() -> String {
    let mut text = String::new();
    for (family, word, v6, pods) in [("ip", "ip", false, "10.244.0.0/24"), ("ip6", "ip6", true, "fd00:244::/64")] {
        let dnat: String = translations(v6)
            .iter()
            .map(|(to, protocol, port, end)| {
                format!("  {word} daddr {to} {protocol} dport {port} meta mark set 0x4000 dnat to {end}\n")
            })
            .collect();
        text += &format!(
            "table {family} nat {{
 chain services {{\n{dnat} }}
 chain pre {{ type nat hook prerouting priority dstnat; jump services; }}
 chain out {{ type nat hook output priority -100; jump services; }}
 chain post {{ type nat hook postrouting priority srcnat; meta mark 0x4000 masquerade; {word} saddr {pods} oifname \"up0\" masquerade; }}
}}\n"
        );
    }
    text
}

fn iptables(v6: bool) -> String {
    let pods = if v6 { "fd00:244::/64" } else { "10.244.0.0/24" };
    let mut text = "*nat\n:SERVICES - [0:0]\n-A PREROUTING -j SERVICES\n-A OUTPUT -j SERVICES\n".to_owned();
    for (to, protocol, port, end) in translations(v6) {
        let rule = format!("-A SERVICES -d {to} -p {protocol} --dport {port}");
        text += &format!("{rule} -j MARK --set-mark 0x4000\n{rule} -j DNAT --to-destination {end}\n");
    }
    text + &format!(
        "-A POSTROUTING -m mark --mark 0x4000 -j MASQUERADE\n-A POSTROUTING -s {pods} -o up0 -j MASQUERADE\nCOMMIT\n"
    )
}

fn feed(place: &Place, program: &str, args: &[&str], text: &str) {
    let mut command = place.command(program);
    let mut child = command.args(args).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let run = egress_tests::place::wait_limited(child, LIMIT).unwrap();
    assert!(run.ok(), "{program}: {run:?}\n{text}");
}

/// What each of services 1 to 4 answers to this place: `y` an echo, `r` refused by the system call, `-` nothing.
fn seen(place: &Place, v6: bool) -> String {
    let letter = |attempt: &egress_tests::probe::Attempt| match (attempt.echoed, attempt.refused()) {
        (true, _) => 'y',
        (_, true) => 'r',
        _ => '-',
    };
    // All at once: what is dropped is waited for.
    std::thread::scope(|scope| {
        let attempts: Vec<_> = (0..8)
            .map(|i| {
                let to = service(i % 4 + 1, v6);
                scope.spawn(move || if i < 4 { tcp(place, &to) } else { udp(place, &to, 5) })
            })
            .collect();
        let letters: Vec<_> = attempts.into_iter().map(|one| letter(&one.join().unwrap().unwrap())).collect();
        letters[..4].iter().chain(&[' ']).chain(&letters[4..]).collect()
    })
}

fn translated(load: impl FnOnce(&World)) {
    let world = World::with_pod().unwrap();
    for at in ["0.0.0.0:7000", "[::]:7000"] {
        world.serve(Service::TcpEcho, at).unwrap();
    }
    // Not by one socket for all: it would answer from the gateway's address.
    for n in 1..=4 {
        world.serve(Service::UdpEcho, &format!("{}:7000", backend(n, false))).unwrap();
        world.serve(Service::UdpEcho, &format!("[{}]:7000", backend(n, true))).unwrap();
    }
    load(&world);
    let mut test = Governed::over(world, POLICY).unwrap();
    let pod = test.world.pod();
    let governed_pod = test.world.pod().in_cgroup(&test.cgroup);
    let _published = EchoServer::start(&pod, 7100).unwrap();
    let mut held = [&test.inside, &test.beside, &pod].map(|place| Held::connect(place, "10.96.0.1", 80).unwrap());
    test.world.sniffer.clear();

    for v6 in [false, true] {
        // A system call is judged by the address that it was given. The packet of a socket on the node is judged after the
        // translation; so a socket needs both. What is connected, and then dropped, hears nothing; sendmsg hears it.
        assert_eq!(seen(&test.inside, v6), "y-rr yrrr", "a governed socket on the node, IPv6: {v6}");
        // No governed socket: the uplink sees the backend's address.
        assert_eq!(seen(&test.beside, v6), "y-y- y-y-", "another process of the node, IPv6: {v6}");
        assert_eq!(seen(&pod, v6), "y-y- y-y-", "a container beside the cgroup, IPv6: {v6}");
        // A container's socket has the service's address, its packet at the uplink the backend's.
        assert_eq!(seen(&governed_pod, v6), "y-rr y-rr", "a governed container, IPv6: {v6}");
    }

    // Who comes in by a node port is sent on to a backend: judged there like what the node forwards.
    let outside = test.world.outside();
    let ports: Vec<_> = (1..=4).map(|n| tcp(&outside, &format!("{NODE_V4}:{}", 30_000 + n)).unwrap().echoed).collect();
    assert_eq!(ports, [true, false, true, false], "node ports");
    // A published port needs no rule from outside, and none on its way back to the node's own containers.
    for (place, who) in [(&outside, "outside"), (&pod, "the container itself"), (&test.beside, "the node")] {
        assert!(tcp(place, &format!("{NODE_V4}:8080")).unwrap().echoed, "the published port, from {who}");
    }
    let local = format!("{LOCAL_SERVICE}:80");
    assert!(tcp(&governed_pod, &local).unwrap().echoed, "a service on this node, from a governed container");
    assert!(!tcp(&test.inside, &local).unwrap().echoed, "the same, from a socket that is judged after translation");
    // The sockets of the governed cgroup need one: for the container behind it.
    assert!(!tcp(&test.inside, &format!("{NODE_V4}:8080")).unwrap().echoed);

    // What was translated stays so over a crash, in between, and after the restart.
    test.daemon.kill().unwrap();
    assert!(held.iter_mut().all(|held| held.say("without").unwrap() == "echo"));
    test.restart().unwrap();
    assert!(held.iter_mut().all(|held| held.say("after").unwrap() == "echo"));

    // P1: neither what the policy does not allow arrived, nor anything untranslated.
    let forbidden: Vec<std::net::IpAddr> =
        [false, true].iter().flat_map(|&v6| [2, 4].map(|n| backend(n, v6).parse().unwrap())).collect();
    test.world.sniffer.assert_none("past a translation", |frame| {
        let pods = |ip: Option<std::net::IpAddr>| ip.is_some_and(|ip| ip.to_string().starts_with("10.244."));
        frame.destination.is_some_and(|to| forbidden.contains(&to) || to.to_string().starts_with("10."))
            || pods(frame.source)
    });
    let allowed = backend(BOTH, false).parse().unwrap();
    let node = NODE_V4.parse().ok();
    let came = |frame: &egress_tests::Frame| frame.goes_to(allowed, 6, Some(7000)) && frame.source == node;
    assert!(!test.world.sniffer.matching(Duration::ZERO, came).is_empty(), "the sniffer sees what is masqueraded");
    let status = test.daemon.status().unwrap();
    assert!(status["attach_points"].to_string().contains(POD_VETH), "the container's veth is governed: {status:#}");
}

/// P1, P8: kube-proxy's and Docker's rules as nftables.
#[test]
fn nftables_translates_and_what_is_judged_is_known() {
    translated(|world| feed(&world.node(), "nft", &["-f", "-"], &nftables()));
}

/// P1, P8: the same by iptables over nf_tables.
#[test]
fn iptables_over_nf_tables_translates_the_same_way() {
    translated(|world| {
        feed(&world.node(), "iptables-nft-restore", &[], &iptables(false));
        feed(&world.node(), "ip6tables-nft-restore", &[], &iptables(true));
    });
}

/// P1, P8: the same by the kernel's own iptables.
#[test]
fn legacy_iptables_translates_the_same_way() {
    translated(|world| {
        feed(&world.node(), "iptables-legacy-restore", &[], &iptables(false));
        feed(&world.node(), "ip6tables-legacy-restore", &[], &iptables(true));
    });
}

/// P8: a connection that comes in to another port than the listener's is answered as any other.
#[test]
fn what_is_redirected_to_a_listener_of_the_node_is_answered() {
    let test = Governed::new("version: 1\n").unwrap();
    let rules = format!(
        "table ip nat {{\n chain pre {{\n type nat hook prerouting priority dstnat\n ip daddr {NODE_V4} tcp dport 80 redirect to :2200\n }}\n}}\n"
    );
    feed(&test.world.node(), "nft", &["-f", "-"], &rules);
    let _server = EchoServer::start(&test.inside, 2200).unwrap();
    for port in [2200, 80] {
        let got = tcp(&test.world.outside(), &format!("{NODE_V4}:{port}")).unwrap();
        assert!(got.echoed, "port {port}: {got:?}");
    }
    assert!(!tcp(&test.inside, "203.0.113.10:7000").unwrap().echoed, "nothing opens outwards by it");
}
