//! Names: no answer is lost, the first packet included (P4), and DNS is no way out (P5).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;
use std::time::Duration;

use egress_tests::held::python;
use egress_tests::place::wait_limited;
use egress_tests::probe::tcp;
use egress_tests::resolvers::Resolver;
use egress_tests::{Cgroup, Daemon, Fault, Frame, Governed, Held, Place, Service, World};

const LIMIT: Duration = Duration::from_secs(8);
const POLICY: &str = "version: 1
rules:
  - {name: wild, to: ['*.wild.example.com'], ports: [7000/tcp, 7000/udp, 80/tcp]}
  - {name: exact, to: [www.example.com], ports: [80/tcp, 7000/tcp]}
";

fn world() -> World {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.serve(Service::Http, "0.0.0.0:80").unwrap();
    world
}

/// What dig was answered, in short form; its complaints, which begin with a semicolon and name the resolver, left out.
fn dig(place: &Place, args: &[&str]) -> String {
    let run = place.run("dig", &[&["+short", "+time=1", "+tries=1"], args].concat(), LIMIT).unwrap();
    run.stdout.lines().filter(|line| !line.starts_with(';')).map(|line| format!("{line}\n")).collect()
}

/// P4: two processes resolve 250 fresh names each, and send a datagram at once; every one arrives.
#[test]
fn the_first_packet_after_an_answer_is_never_lost() {
    let test = Governed::over(world(), POLICY).unwrap();
    for n in 0..500_u32 {
        test.world.dns.set(&format!("n{n}.wild.example.com"), 30, &[Ipv4Addr::from(0x1400_0001 + n).into()]);
    }
    let script = "import socket, sys
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(int(sys.argv[1]), 500, 2):
    a = socket.getaddrinfo('n%d.wild.example.com' % n, 7000, socket.AF_INET, socket.SOCK_DGRAM)[0][4]
    u.sendto(b'first', a)
print('done')
";
    let children: Vec<_> = ["0", "1"]
        .map(|first| {
            let mut command = test.inside.command(python());
            command.args(["-c", script, first]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .into_iter()
        .collect();
    for child in children {
        let run = wait_limited(child, LIMIT).unwrap();
        assert_eq!(run.stdout, "done\n", "{run:?}");
    }
    let frames = test.world.sniffer.matching(Duration::from_millis(50), |frame| frame.destination_port == Some(7000));
    let arrived: HashSet<IpAddr> = frames.iter().filter_map(|frame| frame.destination).collect();
    assert_eq!(arrived.len(), 500);
}

/// P4: what was resolved in the moment before a policy changes is known to the next one, though its rule has other ports there.
#[test]
fn what_is_resolved_while_the_policy_changes_is_not_lost() {
    const NAMES: u32 = 2000;
    let policy = |round: u32| {
        let filler: String = (0..3000).map(|n| format!("'*.f{n}.example.net', ")).collect();
        format!(
            "version: 1
rules:
  - {{name: wild, to: ['*.wild.example.com'], ports: [7000/udp, {}/udp]}}
  - {{name: filler, to: [{filler}'*.f.example.net'], ports: [{}/tcp]}}
",
            8000 + round,
            8000 + round
        )
    };
    let test = Governed::over(world(), &policy(0)).unwrap();
    for n in 0..NAMES {
        test.world.dns.set(&format!("n{n}.wild.example.com"), 300, &[Ipv4Addr::from(0x1400_0001 + n).into()]);
    }
    let script = "import socket, sys, time
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
known = []
for n in range(int(sys.argv[1])):
    known.append(socket.getaddrinfo('n%d.wild.example.com' % n, 7000, socket.AF_INET, socket.SOCK_DGRAM)[0][4])
    time.sleep(0.001)
lost = []
for a in known:
    try:
        u.sendto(b'later', a)
    except PermissionError:
        lost.append(a[0])
print(lost)
";
    let mut command = test.inside.command(python());
    command.args(["-c", script, &NAMES.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    for round in 1..=6 {
        let generation = test.daemon.status().unwrap()["generation"].clone();
        test.reload(&policy(round), |status| status["generation"] != generation).unwrap();
    }
    let run = wait_limited(child, Duration::from_secs(60)).unwrap();
    assert_eq!(run.stdout, "[]\n", "{run:?}");
}

/// P4: resolvers as people run them, in front of the name's own servers, with chains of aliases.
#[test]
fn unbound_and_dnsmasq_are_believed() {
    let world = world();
    world.dns.cname("www.example.com", 20, "www.example.com.edge.example.net");
    world.dns.cname("www.example.com.edge.example.net", 20, "e1.a.example.org");
    world.dns.set_text("e1.a.example.org", 20, &["203.0.113.80", "203.0.113.81"]);
    world.dns.cname("x.wild.example.com", 20, "y.other.example.net");
    world.dns.set_text("y.other.example.net", 20, &["203.0.113.82"]);
    let _running =
        (Resolver::unbound(&world, "203.0.113.54").unwrap(), Resolver::dnsmasq(&world, "203.0.113.55").unwrap());
    for resolver in ["203.0.113.54", "203.0.113.55"] {
        let cgroup = Cgroup::new("governed").unwrap();
        let inside = world.node().in_cgroup(&cgroup);
        world.set_resolvers(&[resolver]).unwrap();
        let mut daemon =
            Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).resolvers(&[resolver]).start().unwrap();
        for url in ["http://www.example.com/", "http://x.wild.example.com/"] {
            let run = inside.run("curl", &["-sS", "--noproxy", "*", "--max-time", "3", url], LIMIT).unwrap();
            assert_eq!(run.stdout, "ok\n", "{resolver} {url}: {run:?}");
        }
        // The other one is not asked.
        let other = if resolver.ends_with("54") { "@203.0.113.55" } else { "@203.0.113.54" };
        assert_eq!(dig(&inside, &[other, "www.example.com"]), "");
        daemon.stop().unwrap();
        assert!(daemon.detach().unwrap().ok());
    }
}

/// Section 1: the target of an allowed name may be asked for, and its addresses count for that name, once an answer has
/// named it; not before.
#[test]
fn a_chain_over_several_answers_counts_for_the_name_that_was_asked() {
    let world = world();
    world.dns.cname("a.wild.example.com", 20, "b.example.net");
    world.dns.cname("b.example.net", 20, "c.example.org");
    world.dns.set_text("c.example.org", 20, &["203.0.113.90"]);
    for name in ["a.wild.example.com", "b.example.net"] {
        world.dns.fault(name, Fault::NoChase);
    }
    let test = Governed::over(world, POLICY).unwrap();
    assert_eq!(dig(&test.inside, &["c.example.org"]), "");
    assert_eq!(test.world.dns.count("c.example.org"), 0);
    assert_eq!(dig(&test.inside, &["a.wild.example.com"]), "b.example.net.\n");
    assert_eq!(dig(&test.inside, &["b.example.net"]), "c.example.org.\n");
    assert_eq!(dig(&test.inside, &["c.example.org"]), "203.0.113.90\n");
    assert!(tcp(&test.inside, "203.0.113.90:7000").unwrap().echoed);
    assert!(tcp(&test.inside, "203.0.113.90:7001").unwrap().refused());
}

const PRIVATE: &str = "version: 1
dns:
  allowPrivate: [db.corp.example, '*.sub.corp.example', 'pg-*.corp.example', 'pg-*.inner.example']
rules:
  - {name: corp, to: ['*.corp.example', '*.wild.example'], ports: [7000/tcp]}
  - {name: inner, to: ['pg-*.inner.example'], ports: [7000/tcp]}
";

/// Whether a client that asks for the name gets to the address.
fn reaches(test: &Governed, name: &str, address: &str) -> bool {
    assert!(dig(&test.inside, &[name]).ends_with(&format!("{address}\n")), "{name}");
    tcp(&test.inside, &format!("{address}:7000")).unwrap().echoed
}

/// P3: `dns.allowPrivate` is for the names that it says, whatever wildcard they are allowed by.
#[test]
fn private_addresses_are_for_the_names_that_may_have_them() {
    let world = world();
    world.world_ns.ip("route add local 10.8.0.0/24 dev lo").unwrap();
    let names = [
        ("db.corp.example", "10.8.0.1", true),
        ("a.db.corp.example", "10.8.0.2", false),
        ("a.sub.corp.example", "10.8.0.3", true),
        ("sub.corp.example", "10.8.0.4", false),
        ("pg-1.corp.example", "10.8.0.5", true),
        ("a.pg-1.corp.example", "10.8.0.6", false),
        ("pg-1.inner.example", "10.8.0.7", true),
        ("web.corp.example", "10.8.0.8", false),
    ];
    for (name, address, _) in names {
        world.dns.set_text(name, 30, &[address]);
    }
    let test = Governed::over(world, PRIVATE).unwrap();
    for (name, address, private) in names {
        assert_eq!(reaches(&test, name, address), private, "{name}");
    }
}

/// P3: what a name that may have private addresses lends to its alias ends with the policy that says so.
#[test]
fn an_alias_has_no_private_addresses_once_the_policy_names_none() {
    let policy = "version: 1
dns: {allowPrivate: [app.corp.example]}
rules:
  - {name: wild, to: ['*.corp.example', '*.wild.example'], ports: [7000/tcp]}
";
    let world = world();
    world.world_ns.ip("route add local 10.8.0.0/24 dev lo").unwrap();
    world.dns.cname("app.corp.example", 30, "t.wild.example");
    world.dns.fault("app.corp.example", Fault::NoChase);
    world.dns.set_text("t.wild.example", 30, &["10.8.0.1"]);
    let test = Governed::over(world, policy).unwrap();
    assert!(!reaches(&test, "t.wild.example", "10.8.0.1"), "before app led there");
    assert_eq!(dig(&test.inside, &["app.corp.example"]), "t.wild.example.\n");
    assert!(reaches(&test, "t.wild.example", "10.8.0.1"), "led there by app");
    let apply = |text: &str| {
        let path = test.world.dir().join("other.yaml");
        std::fs::write(&path, text).unwrap();
        let run = test.daemon.egress(&["apply", path.to_str().unwrap()]).unwrap();
        assert!(run.ok(), "{run:?}");
    };
    apply(&policy.replace("dns: {allowPrivate: [app.corp.example]}\n", ""));
    test.world.dns.set_text("t.wild.example", 30, &["10.8.0.2"]);
    assert!(!reaches(&test, "t.wild.example", "10.8.0.2"), "the policy names none");
    // And app lends it anew.
    apply(policy);
    test.world.dns.set_text("t.wild.example", 30, &["10.8.0.3"]);
    assert!(!reaches(&test, "t.wild.example", "10.8.0.3"), "app was not asked since");
    assert_eq!(dig(&test.inside, &["app.corp.example"]), "t.wild.example.\n");
    assert!(reaches(&test, "t.wild.example", "10.8.0.3"), "app leads there again");
}

/// P3: private addresses that a name has by `dns.allowPrivate` end with the policy that says so, what is known of them and what was learned
/// while it was on trial too.
#[test]
fn private_addresses_end_with_the_policy_that_allows_them() {
    let listed = "version: 1
dns: {allowPrivate: [db.corp.example, a.sub.corp.example, b.sub.corp.example]}
rules:
  - {name: exact, to: [db.corp.example], ports: [7000/tcp]}
  - {name: wild, to: ['*.sub.corp.example'], ports: [7000/tcp]}
";
    let fewer = listed.replace("[db.corp.example, a.sub.corp.example, b.sub.corp.example]", "[b.sub.corp.example]");
    let world = world();
    world.world_ns.ip("route add local 10.8.0.0/24 dev lo").unwrap();
    world.dns.set_text("db.corp.example", 300, &["10.8.0.1"]);
    world.dns.set_text("a.sub.corp.example", 300, &["10.8.0.2", "203.0.113.82"]);
    world.dns.set_text("b.sub.corp.example", 300, &["10.8.0.3"]);
    let test = Governed::over(world, listed).unwrap();
    let reaches = |address: &str| tcp(&test.inside, &format!("{address}:7000")).unwrap().echoed;
    let apply = |text: &str, more: &[&str]| {
        let path = test.world.dir().join("other.yaml");
        std::fs::write(&path, text).unwrap();
        let run = test.daemon.egress(&[&["apply", path.to_str().unwrap()], more].concat()).unwrap();
        assert!(run.ok(), "{run:?}");
    };
    for name in ["db.corp.example", "a.sub.corp.example", "b.sub.corp.example"] {
        assert_ne!(dig(&test.inside, &[name]), "");
    }
    assert!(reaches("10.8.0.1") && reaches("10.8.0.2") && reaches("203.0.113.82"));
    apply(&fewer, &[]);
    assert!(!reaches("10.8.0.1"), "of an exact name");
    assert!(!reaches("10.8.0.2"), "below a wildcard");
    assert!(reaches("203.0.113.82") && reaches("10.8.0.3"), "a public address, and one of a name that is still listed");
    // Not even though nobody answers any more, which keeps what was known.
    test.world.dns.fault_everywhere(Fault::ServFail);
    apply(listed, &["--confirm", "60s"]);
    test.world.dns.fault_everywhere(None);
    for name in ["db.corp.example", "a.sub.corp.example"] {
        assert_ne!(dig(&test.inside, &[name]), "");
    }
    test.status_until(|_| reaches("10.8.0.1")).unwrap();
    assert!(reaches("10.8.0.2"));
    // The daemon asks for exact names itself, and writes what it hears for either policy.
    std::thread::sleep(Duration::from_secs(3));
    assert!(test.daemon.egress(&["rollback"]).unwrap().ok());
    assert!(!reaches("10.8.0.1"), "an exact name after a rollback");
    assert!(!reaches("10.8.0.2"), "below a wildcard, after a rollback");
}

/// P5: a tunnel asks for names that nobody allowed; no such question leaves, over UDP or TCP, nor does one to another
/// resolver for a name that is allowed.
fn tunnel_fails(test: &Governed, place: &Place) {
    test.world.dns.set_text("*.tunnel.example", 1, &["203.0.113.66"]);
    test.world.other_dns("9.9.9.9").unwrap().set_text("*.wild.example.com", 1, &["203.0.113.66"]);
    test.world.dns.set_text("*.wild.example.com", 1, &["203.0.113.67"]);
    for (way, option) in [("udp", "+notcp"), ("tcp", "+tcp")] {
        let name = format!("secret-{way}.tunnel.example");
        assert_eq!(dig(place, &[option, "TXT", &name]), "", "{name}");
        let fine = format!("fine-{way}.wild.example.com");
        assert_eq!(dig(place, &[option, "@9.9.9.9", &fine]), "", "{fine} from another resolver");
        assert_eq!(dig(place, &[option, &fine]), "203.0.113.67\n", "{fine}");
    }
    let leaked = |frame: &Frame| frame.bytes.windows(6).any(|bytes| bytes.eq_ignore_ascii_case(b"tunnel"));
    test.world.sniffer.assert_none("a tunnel's question", leaked);
    test.world
        .sniffer
        .assert_none("a question to another resolver", |frame| frame.destination == Some("9.9.9.9".parse().unwrap()));
    let about = |event: &serde_json::Value| event.to_string().contains("secret-udp.tunnel.example");
    let event = test.event(|event| event["kind"] == "dropped" && about(event)).unwrap();
    assert!(event.is_some(), "{:#?}", test.daemon.events(false));
}

#[test]
fn names_that_no_rule_allows_are_not_asked() {
    let test = Governed::over(world(), POLICY).unwrap();
    tunnel_fails(&test, &test.inside);
}

#[test]
fn names_that_no_rule_allows_are_not_asked_beside_the_cgroup() {
    let test = Governed::over(world(), POLICY).unwrap();
    tunnel_fails(&test, &test.beside);
}

/// Section 1: an address that expired opens no new connection; one that was open goes on.
#[test]
fn an_expired_address_keeps_its_open_connections_alone() {
    let world = world();
    world.dns.set_text("brief.wild.example.com", 1, &["203.0.113.95"]);
    let strict = POLICY.replace("rules:", "dns: {minTtl: 1s, grace: 0s}\nrules:");
    let test = Governed::over(world, &strict).unwrap();
    let mut held = Held::connect(&test.inside, "brief.wild.example.com", 7000).unwrap();
    assert!(tcp(&test.inside, "203.0.113.95:7000").unwrap().echoed);
    // A tick is 1.07 s: an expiry is rounded up to one.
    std::thread::sleep(Duration::from_millis(3300));
    let got = tcp(&test.inside, "203.0.113.95:7000").unwrap();
    assert!(got.refused(), "{got:?}");
    assert_eq!(held.say("still").unwrap(), "echo");
    assert!(Held::connect(&test.inside, "brief.wild.example.com", 7000).is_ok(), "asked again");
}

/// P4, P6: answers of a resolver behind an interface that is no default route's (a management network, a VPN) teach nothing until it is named,
/// and that is told.
#[test]
fn a_resolver_beside_the_uplinks_is_told_and_believed_once_its_interface_is_named() {
    const RESOLVER: &str = "192.168.77.53";
    let world = world();
    // A macvlan of the world's: no veth, which would be taken for a workload's.
    let far = "link add d0 type veth peer name d1\nlink set d0 up\nlink set d1 up
link add mva link d0 type macvlan mode bridge\nlink add mgmt0 link d0 type macvlan mode bridge\nlink set mva up";
    let node = world.node_ns.path().display().to_string();
    world.world_ns.ip(&format!("{far}\nlink set mgmt0 netns {node}\naddr add {RESOLVER}/24 dev mva")).unwrap();
    world.node_ns.ip("addr add 192.168.77.10/24 dev mgmt0\nlink set mgmt0 up").unwrap();
    world.other_dns(RESOLVER).unwrap().set_text("a.wild.example.com", 30, &["203.0.113.82"]);
    let cgroup = Cgroup::new("governed").unwrap();
    let inside = world.node().in_cgroup(&cgroup);
    for named in [false, true] {
        let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).resolvers(&[RESOLVER]);
        let builder = if named { builder.interfaces(&["up0", "mgmt0"]) } else { builder.default_routes() };
        let mut daemon = builder.start().unwrap();
        assert_eq!(dig(&inside, &[&format!("@{RESOLVER}"), "a.wild.example.com"]), "203.0.113.82\n");
        assert_eq!(tcp(&inside, "203.0.113.82:7000").unwrap().echoed, named);
        let warnings = daemon.status().unwrap()["warnings"].to_string();
        assert_eq!(warnings.contains(RESOLVER) && warnings.contains("mgmt0"), !named, "{warnings}");
        daemon.stop().unwrap();
        assert!(daemon.detach().unwrap().ok());
    }
}
