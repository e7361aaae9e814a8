//! P4: what is resolved over TCP can be reached at once, in however many segments the answer came.

use std::net::IpAddr;
use std::time::Duration;

use egress_tests::clients::{Library, look_up};
use egress_tests::resolvers::Resolver;
use egress_tests::{Cgroup, Daemon, Governed, MountNs, Service, World};

const LIMIT: Duration = Duration::from_secs(15);
const UNBOUND: &str = "203.0.113.54";
const POLICY: &str = "version: 1\nrules: [{name: wild, to: ['*.wild.example.com'], ports: [80/tcp]}]\n";

/// Sixty addresses, an answer of about 1,000 bytes.
fn addresses() -> Vec<IpAddr> {
    (1..=60).map(|n| format!("203.0.113.{}", 100 + n).parse().unwrap()).collect()
}

/// A world whose resolvers send 536 bytes of TCP in a packet at most, and each packet by itself.
fn world() -> World {
    let world = World::new().unwrap();
    world.serve(Service::Http, "0.0.0.0:80").unwrap();
    world.world_ns.ip("link set wup0 gso_max_segs 1").unwrap();
    world.node_ns.ip("route replace 203.0.113.48/28 via 192.0.2.1 dev up0 advmss 536").unwrap();
    world
}

fn start(world: World, arguments: &[&str]) -> Governed {
    let cgroup = Cgroup::new("governed").unwrap();
    world.set_resolvers(&[UNBOUND]).unwrap();
    let mut builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).resolvers(&[UNBOUND]);
    if !arguments.is_empty() {
        builder = builder.interfaces(arguments);
    }
    let daemon = builder.start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    Governed { daemon, inside, beside, cgroup, world }
}

/// The answer does not fit UDP, so that glibc asks again over TCP; then the last address of it is connected to.
fn a_truncated_answer_counts(interfaces: &[&str]) {
    let world = world();
    for n in 0..20 {
        world.dns.set(&format!("n{n}.wild.example.com"), 30, &addresses());
    }
    let unbound = Resolver::unbound(&world, UNBOUND).unwrap();
    let test = start(world, interfaces);
    let script = "import socket, sys
for n in range(20):
    all = sorted({a[4] for a in socket.getaddrinfo('n%d.wild.example.com' % n, 80, socket.AF_INET, socket.SOCK_STREAM)})
    assert len(all) == 60, all
    for address in all[n::20]:
        socket.create_connection(address, 3).close()
print('done')
";
    let run = test.inside.run(egress_tests::held::python(), &["-c", script], LIMIT).unwrap();
    assert_eq!(run.stdout, "done\n", "{run:?} {:#}", test.daemon.status().unwrap());
    drop(unbound);
}

#[test]
fn a_truncated_answer_in_several_segments_counts_at_an_uplink() {
    a_truncated_answer_counts(&[]);
}

#[test]
fn a_truncated_answer_in_several_segments_counts_at_the_socket() {
    a_truncated_answer_counts(&["none"]);
}

/// Which libraries ask over TCP when they are told to (`use-vc`), and that they write a query and its length at once: none is
/// refused.
#[test]
fn libraries_that_ask_over_tcp_are_answered() {
    let world = world();
    world.dns.set("a.wild.example.com", 30, &addresses());
    let resolvers = (Resolver::unbound(&world, UNBOUND).unwrap(), MountNs::new(&directory(&world), &world.node_ns));
    let test = start(world, &[]);
    let mounts = resolvers.1.unwrap();
    mounts.set_resolv_conf(&format!("nameserver {UNBOUND}\noptions use-vc\n")).unwrap();
    let place = test.inside.clone().with_mounts(&mounts);
    // musl first: the end of another one's connection, seen late, is not taken for one of its own.
    let others = Library::ALL.into_iter().filter(|library| *library != Library::Musl);
    for library in [Library::Musl].into_iter().chain(others) {
        test.world.sniffer.clear();
        let lookup = look_up(library, &place, &["a.wild.example.com"], LIMIT).unwrap().remove(0);
        let unbound: IpAddr = UNBOUND.parse().unwrap();
        // The sniffer can be a moment behind.
        let limit = Duration::from_millis(if library == Library::Musl { 100 } else { 3000 });
        let over_tcp = test.world.sniffer.wait_for(limit, |frame| frame.goes_to(unbound, 6, Some(53))).is_some();
        println!("{library:?}: over TCP {over_tcp}, {} addresses {}", lookup.addresses.len(), lookup.error);
        // musl 1.2.3 knows no TCP, and unbound puts nothing into an answer that is cut short.
        let expected = if library == Library::Musl { 0 } else { 60 };
        assert_eq!((over_tcp, lookup.addresses.len()), (expected != 0, expected), "{library:?}: {lookup:?}");
    }
    let refused = test.daemon.events(true).unwrap();
    assert!(!refused.iter().any(|event| event.to_string().contains("bad-query")), "{refused:#?}");
}

fn directory(world: &World) -> std::path::PathBuf {
    let dir = world.dir().join("container");
    std::fs::create_dir(&dir).unwrap();
    dir
}
