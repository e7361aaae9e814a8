//! Resolvers on the node: systemd-resolved, dnsmasq, a node-local cache, a cluster's DNS behind a translated address. With
//! each an allowed name is reached with the first packet (P4), a forbidden one is answered and not asked outside (P5), and
//! refused candidates of a search list do not hold a lookup up.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use egress_tests::clients::{Library, look_up};
use egress_tests::local_stubs::LocalStub;
use egress_tests::mntns::BPFFS;
use egress_tests::model::wire::dns_query;
use egress_tests::resolvers::Resolver;
use egress_tests::stub::{Style, resolve};
use egress_tests::world::{DNS_V4, NODE_V4, NODE_V6};
use egress_tests::{Cgroup, Daemon, Governed, MountNs, Place, Service, World};
use egress_user::datapath::{Pins, sys};
use hickory_proto::rr::RecordType;

const LIMIT: Duration = Duration::from_secs(30);
/// Well below the 5 s that every one of these libraries waits for one answer.
const STALL: Duration = Duration::from_secs(1);
const ALLOWED: &str = "www.example.com";
const RULES: &str = "rules: [{name: web, to: [www.example.com, '*.cdn.example.net'], ports: [7000/tcp]}]\n";

fn world() -> World {
    let world = World::new().unwrap();
    world.dns.set_text(ALLOWED, 30, &["203.0.113.80", "2001:db8::80"]);
    for n in 0..20 {
        world.dns.set_text(&format!("n{n}.cdn.example.net"), 30, &[&format!("198.51.100.{}", 10 + n)]);
    }
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world
}

/// The node under a policy, its resolv.conf naming `stub`, and the daemon taking the system's resolvers.
fn governed(world: World, cgroup: Cgroup, stub: &str, dns: &str) -> Governed {
    world.set_resolvers(&[stub]).unwrap();
    let policy = format!("version: 1\n{dns}{RULES}");
    let daemon = Daemon::builder(&world).policy_text(&policy).cgroup(&cgroup).resolvers(&[]).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    Governed { daemon, inside, beside, cgroup, world }
}

/// A place with another resolv.conf, as a container with the host's network has one.
fn pod_like(test: &Governed, stub: &str) -> Place {
    let dir = test.world.dir().join("container");
    std::fs::create_dir(&dir).unwrap();
    let mounts = MountNs::new(&dir, &test.world.node_ns).unwrap();
    let search = "search apps.svc.cluster.local svc.cluster.local cluster.local some.corp\noptions ndots:5\n";
    mounts.set_resolv_conf(&format!("nameserver {stub}\n{search}")).unwrap();
    test.inside.clone().with_mounts(&mounts)
}

/// Names never asked before: resolved, and a connection begun at once.
fn first_packets_pass(test: &Governed, place: &Place, stub: &str) {
    let server = SocketAddr::new(stub.parse().unwrap(), 53);
    for n in 0..20 {
        let style = if n % 2 == 0 { Style::Go } else { Style::Musl };
        let name = format!("n{n}.cdn.example.net");
        let echoed = place.fork(LIMIT, || {
            let address = resolve_v4(style, server, &name)?;
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, 7000), Duration::from_secs(3))?;
            stream.set_read_timeout(Some(Duration::from_secs(3)))?;
            stream.write_all(b"hello")?;
            let mut back = [0; 5];
            stream.read_exact(&mut back)?;
            Ok(back == *b"hello")
        });
        let log = || std::fs::read_to_string(test.world.dir().join(format!("stub-{stub}.log"))).unwrap_or_default();
        assert!(matches!(echoed, Ok(true)), "{name}: {echoed:?}\n{:#?}\n{}", test.daemon.events(true), log());
    }
}

fn resolve_v4(style: Style, server: SocketAddr, name: &str) -> anyhow::Result<IpAddr> {
    let found = resolve(style, server, name)?;
    found.into_iter().find(IpAddr::is_ipv4).ok_or_else(|| anyhow::anyhow!("no IPv4 address"))
}

/// A forbidden name and the candidates of a search list: answered, each within milliseconds, and nothing of them leaves.
fn refused_names_are_answered(test: &Governed, place: &Place) {
    for library in Library::ALL {
        let lookups = look_up(library, place, &[ALLOWED, "forbidden.example.com"], LIMIT).unwrap();
        let (allowed, refused) = (&lookups[0], &lookups[1]);
        println!(
            "{library:?}: {:?} behind refused candidates, {:?} refused: {}",
            allowed.took, refused.took, refused.error
        );
        assert!(!allowed.addresses.is_empty() && allowed.error.is_empty(), "{library:?}: {allowed:?}");
        assert!(refused.addresses.is_empty(), "{library:?}: {refused:?}");
        assert!(allowed.took < STALL && refused.took < STALL, "{library:?}: {lookups:?}");
    }
    for word in [&b"corp"[..], b"cluster", b"forbidden"] {
        let leaked = |frame: &egress_tests::Frame| frame.bytes.windows(word.len()).any(|bytes| bytes == word);
        test.world.sniffer.assert_none("a refused question", leaked);
    }
}

#[test]
fn systemd_resolved_works_by_default() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let stub = LocalStub::resolved(&world, &world.node().in_cgroup(&cgroup)).unwrap();
    let test = governed(world, cgroup, "127.0.0.53", "");
    first_packets_pass(&test, &test.inside, "127.0.0.53");
    refused_names_are_answered(&test, &pod_like(&test, "127.0.0.53"));
    drop(stub);
}

#[test]
fn dnsmasq_works_at_loopback_and_at_the_nodes_address() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let place = world.node().in_cgroup(&cgroup);
    let stubs = ["127.0.0.1", NODE_V4].map(|at| LocalStub::dnsmasq(&world, &place, at).unwrap());
    let dns = format!("dns: {{resolvers: [127.0.0.1, {NODE_V4}, 203.0.113.53]}}\n");
    let test = governed(world, cgroup, "127.0.0.1", &dns);
    first_packets_pass(&test, &test.inside, "127.0.0.1");
    first_packets_pass(&test, &test.inside, NODE_V4);
    let place = pod_like(&test, "127.0.0.1");
    refused_names_are_answered(&test, &place);
    let text = std::fs::read_to_string(test.world.dir().join("container/resolv.conf")).unwrap();
    std::fs::write(test.world.dir().join("container/resolv.conf"), text.replace("127.0.0.1", NODE_V4)).unwrap();
    refused_names_are_answered(&test, &place);
    drop(stubs);
}

/// By IPv6's loopback the same.
#[test]
fn dnsmasq_works_at_the_ipv6_loopback() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let stub = LocalStub::dnsmasq(&world, &world.node().in_cgroup(&cgroup), "::1").unwrap();
    let test = governed(world, cgroup, "::1", "dns: {resolvers: ['::1', 203.0.113.53]}\n");
    first_packets_pass(&test, &test.inside, "::1");
    refused_names_are_answered(&test, &pod_like(&test, "::1"));
    drop(stub);
}

/// Who takes loopback's program away by hand is told of in `status`; with the next change of a link it is back.
#[test]
fn loopbacks_program_is_put_back() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let stub = LocalStub::dnsmasq(&world, &world.node().in_cgroup(&cgroup), "127.0.0.1").unwrap();
    let test = governed(world, cgroup, "127.0.0.1", "dns: {resolvers: [127.0.0.1, 203.0.113.53]}\n");
    let present = |status: &serde_json::Value| {
        let points = status["attach_points"].as_array().unwrap();
        let lo = points.iter().find(|point| point["target"] == "lo").unwrap_or_else(|| panic!("{status:#}"));
        lo["present"].as_bool().unwrap()
    };
    assert!(present(&test.daemon.status().unwrap()));
    let taken = || {
        let path = Pins::new(Path::new(BPFFS)).link("if1-denial_egress");
        sys::link_detach(sys::open_pin(&path)?.as_fd())?;
        Ok(std::fs::remove_file(&path)?)
    };
    test.beside.fork(LIMIT, taken).unwrap();
    let status = test.daemon.status().unwrap();
    assert!(!present(&status) && status["health"]["healthy"] == false, "{status:#}");
    test.world.node_ns.ip("link set up0 mtu 1400").unwrap();
    test.status_until(|status| present(status)).unwrap();
    refused_names_are_answered(&test, &pod_like(&test, "127.0.0.1"));
    drop(stub);
}

#[test]
fn a_node_local_cache_works() {
    let world = world();
    world
        .node_ns
        .ip("link add nodelocaldns type bridge\naddr add 169.254.20.10/32 dev nodelocaldns\nlink set nodelocaldns up")
        .unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let stub = LocalStub::dnsmasq(&world, &world.node().in_cgroup(&cgroup), "169.254.20.10").unwrap();
    let test = governed(world, cgroup, "169.254.20.10", "dns: {resolvers: [169.254.20.10, 203.0.113.53]}\n");
    first_packets_pass(&test, &test.inside, "169.254.20.10");
    refused_names_are_answered(&test, &pod_like(&test, "169.254.20.10"));
    drop(stub);
}

/// A stub outside of the governed cgroup, under `exec` and `--interface none`: nobody judges what it asks, so what it is asked
/// for is (P5).
#[test]
fn a_stub_that_is_not_governed_is_no_tunnel() {
    let world = world();
    let stub = LocalStub::dnsmasq(&world, &world.node(), "127.0.0.1").unwrap();
    world.set_resolvers(&["127.0.0.1"]).unwrap();
    let (_cgroup, place) = world.governed("exec").unwrap();
    let said = |name: &str| {
        let dig = ["dig", "+time=2", "+tries=1", name];
        let args = [&["exec", "--allow", "*.cdn.example.net:7000", "--"][..], &dig[..]].concat();
        egress_tests::daemon::egress(&place, &args, LIMIT).unwrap()
    };
    assert!(said("n1.cdn.example.net").stdout.contains("198.51.100.11"));
    assert_eq!(world.dns.count("n1.cdn.example.net"), 1);
    let refused = said("secret.forbidden.example.com");
    assert!(refused.stdout.contains("NXDOMAIN"), "{refused:?}");
    assert_eq!(world.dns.count("secret.forbidden.example.com"), 0, "asked at {DNS_V4}");
    drop(stub);
}

/// What the stub has in its cache from before the start is learned from the stub's own answer (P4).
#[test]
fn what_a_stub_has_in_its_cache_is_learned() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let stub = LocalStub::dnsmasq(&world, &world.node().in_cgroup(&cgroup), "127.0.0.1").unwrap();
    for n in 0..20 {
        let server = SocketAddr::new(stub.address, 53);
        let found = world.node().fork(LIMIT, || resolve(Style::Go, server, &format!("n{n}.cdn.example.net")));
        assert_eq!(found.unwrap().len(), 1);
    }
    let test = governed(world, cgroup, "127.0.0.1", &format!("dns: {{resolvers: [127.0.0.1, {DNS_V4}]}}\n"));
    test.world.dns.forget();
    first_packets_pass(&test, &test.inside, "127.0.0.1");
    // That there is no AAAA record was said without an SOA record, so it is asked for again; and the daemon asks for its exact names.
    let cached = |name: &str| name.ends_with(".cdn.example.net");
    let asked = test.world.dns.asked().into_iter().filter(|asked| asked.kind == RecordType::A && cached(&asked.name));
    let asked: Vec<_> = asked.collect();
    assert!(asked.is_empty(), "the stub's cache did not answer: {asked:?}");
}

/// The address that a cluster gives its DNS; nobody has it, the node translates it.
const CLUSTER: &str = "10.96.0.10";

fn translate(world: &World, to: &str) {
    let rules = format!("ip daddr {CLUSTER} udp dport 53 dnat to {to}\nip daddr {CLUSTER} tcp dport 53 dnat to {to}");
    translate_by(world, "ip", &rules);
}

fn translate_by(world: &World, family: &str, rules: &str) {
    let rules =
        format!("table {family} cluster {{ chain output {{ type nat hook output priority -100;\n{rules}\n}}\n}}\n");
    let file = world.dir().join("nat.nft");
    std::fs::write(&file, rules).unwrap();
    let run = world.node().run("nft", &["-f", &file.to_string_lossy()], LIMIT).unwrap();
    assert!(run.ok(), "{run:?}");
}

/// The hooks at sockets see the cluster's address, those below the translation the resolver's: the policy names both, and
/// the answer is learned where it enters.
#[test]
fn a_cluster_address_of_a_resolver_outside_works() {
    let world = world();
    let resolver = Resolver::unbound(&world, "203.0.113.54").unwrap();
    translate(&world, "203.0.113.54");
    let cgroup = Cgroup::new("governed").unwrap();
    let test = governed(world, cgroup, CLUSTER, &format!("dns: {{resolvers: [{CLUSTER}, 203.0.113.54]}}\n"));
    first_packets_pass(&test, &test.inside, CLUSTER);
    refused_names_are_answered(&test, &pod_like(&test, CLUSTER));
    drop(resolver);
}

/// The same with the resolver on this node: names are learned from what it asks itself, and a refused name's answer is
/// translated back, where loopback takes it (decision 0048).
#[test]
fn a_cluster_address_of_a_stub_on_the_node_works() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let stub = LocalStub::dnsmasq(&world, &world.node().in_cgroup(&cgroup), NODE_V4).unwrap();
    translate(&world, NODE_V4);
    world.node_ns.sysctl("ipv4/conf/lo/accept_local", "1").unwrap();
    let dns = format!("dns: {{resolvers: [{CLUSTER}, {NODE_V4}, {DNS_V4}]}}\n");
    let test = governed(world, cgroup, CLUSTER, &dns);
    first_packets_pass(&test, &test.inside, CLUSTER);
    let place = pod_like(&test, CLUSTER);
    refused_names_are_answered(&test, &place);
    // The stub's own address is asked as it is, by the same sockets and by others.
    refused_by_turns(&test, &[CLUSTER, NODE_V4, CLUSTER]);
    drop(stub);
}

/// By IPv6, and with the port translated too.
#[test]
fn a_cluster_address_and_port_of_a_stub_on_the_node_works_by_ipv6() {
    const CLUSTER_6: &str = "fd00:96::a";
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let stub = LocalStub::dnsmasq_at_port(&world, &world.node().in_cgroup(&cgroup), NODE_V6, 5353).unwrap();
    let rule = format!("ip6 daddr {CLUSTER_6} udp dport 53 dnat to [{NODE_V6}]:5353");
    translate_by(&world, "ip6", &rule);
    let dns = format!("dns: {{resolvers: ['{CLUSTER_6}', '[{NODE_V6}]:5353', {DNS_V4}]}}\n");
    let test = governed(world, cgroup, CLUSTER_6, &dns);
    refused_names_are_answered(&test, &pod_like(&test, CLUSTER_6));
    refused_by_turns(&test, &[CLUSTER_6]);
    drop(stub);
}

/// One unconnected socket asks these resolvers for a refused name by turns: each answer comes from the address that was asked.
fn refused_by_turns(test: &Governed, resolvers: &[&str]) {
    let query = dns_query("forbidden.example.com");
    let resolvers: Vec<SocketAddr> = resolvers.iter().map(|at| SocketAddr::new(at.parse().unwrap(), 53)).collect();
    let by_turns = || {
        let any = if resolvers[0].is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(STALL))?;
        for resolver in &resolvers {
            socket.send_to(&query, resolver)?;
            let mut answer = [0; 512];
            let (len, from) = socket.recv_from(&mut answer)?;
            // The same message with an answer's flags and NXDOMAIN.
            let right = from == *resolver && len == query.len() && answer[2..4] == [0x81, 0x83];
            anyhow::ensure!(right && answer[4..len] == query[4..], "{resolver}: {from} {:?}", &answer[..len]);
        }
        Ok(())
    };
    for _ in 0..3 {
        test.inside.fork(LIMIT, by_turns).unwrap();
    }
}
