//! Search lists (`ndots:5`), with real resolver libraries: a name that a rule allows is found behind the candidates that
//! come before it, without a stall (P4).

use std::net::IpAddr;
use std::time::Duration;

use egress_tests::clients::{Library, Lookup, look_up};
use egress_tests::world::{DNS_V4, DNS_V6};
use egress_tests::{Cgroup, Daemon, Governed, MountNs, Place, World};

const LIMIT: Duration = Duration::from_secs(30);
/// Well below the 5 s that every one of these libraries waits for one answer.
const STALL: Duration = Duration::from_secs(1);
const ALLOWED: &str = "www.example.com";
/// As the kubelet writes it for a pod, with a domain of the node's own at the end.
const POD: &str = "nameserver 203.0.113.53
search apps.svc.cluster.local svc.cluster.local cluster.local some.corp
options ndots:5
";

fn world() -> World {
    let world = World::new().unwrap();
    world.dns.set_text(ALLOWED, 30, &["203.0.113.80", "2001:db8::80"]);
    world
}

/// A place with the same network and another resolv.conf, as a container on the node has one.
fn with_resolv_conf(world: &World, place: &Place, text: &str) -> Place {
    let dir = world.dir().join("container");
    std::fs::create_dir(&dir).unwrap();
    let mounts = MountNs::new(&dir, &world.node_ns).unwrap();
    mounts.set_resolv_conf(text).unwrap();
    place.clone().with_mounts(&mounts)
}

/// The fastest of some lookups.
fn best(library: Library, place: &Place, name: &str) -> Lookup {
    let all = look_up(library, place, &[name; 7], LIMIT).unwrap();
    all.into_iter().min_by_key(|lookup| lookup.took).unwrap()
}

fn addresses() -> Vec<IpAddr> {
    ["203.0.113.80", "2001:db8::80"].map(|address| address.parse().unwrap()).to_vec()
}

/// Domains of a search list are `dns.internal`, the node's own without being named: every candidate is asked for.
#[test]
fn candidates_of_a_search_list_do_not_hold_a_lookup_up() {
    let world = world();
    let free = with_resolv_conf(&world, &world.node(), POD);
    let before = Library::ALL.map(|library| best(library, &free, ALLOWED));
    world.mounts.set_resolv_conf("nameserver 203.0.113.53\nsearch some.corp\n").unwrap();
    let policy = "version: 1
dns: {internal: [cluster.local]}
rules: [{name: web, to: [www.example.com], ports: [80/tcp]}]
";
    let test = Governed::over(world, policy).unwrap();
    let inside = free.in_cgroup(&test.cgroup);
    for (library, before) in Library::ALL.into_iter().zip(before) {
        test.world.dns.forget();
        let lookup = best(library, &inside, ALLOWED);
        println!("{library:?}: {:?} governed, {:?} without", lookup.took, before.took);
        assert_eq!((&lookup.addresses, &lookup.error), (&addresses(), &String::new()), "{library:?}");
        assert!(lookup.took < STALL, "{library:?}: {lookup:?}");
        for domain in ["apps.svc.cluster.local", "svc.cluster.local", "cluster.local", "some.corp"] {
            assert!(test.world.dns.count(&format!("{ALLOWED}.{domain}")) > 0, "{library:?} {domain}");
        }
    }
}

const STRICT: &str = "version: 1\nrules: [{name: web, to: [www.example.com], ports: [80/tcp]}]\n";

/// A candidate that no rule allows is answered by the uplink's program, so that the library goes on to the next one; the
/// question does not leave (P5).
fn refused_candidates_are_answered(test: &Governed, place: &Place) {
    for library in Library::ALL {
        let lookup = best(library, place, ALLOWED);
        println!("{library:?}: {:?} behind refused candidates", lookup.took);
        assert_eq!((&lookup.addresses, &lookup.error), (&addresses(), &String::new()), "{library:?}");
        let refused = best(library, place, "forbidden.example.com");
        println!("{library:?}: {:?} for a refused name: {}", refused.took, refused.error);
        assert!(refused.addresses.is_empty(), "{library:?}: {refused:?}");
        assert!(lookup.took < STALL && refused.took < STALL, "{library:?}: {lookup:?} {refused:?}");
    }
    for word in [&b"corp"[..], b"cluster", b"forbidden"] {
        let leaked = |frame: &egress_tests::Frame| frame.bytes.windows(word.len()).any(|bytes| bytes == word);
        test.world.sniffer.assert_none("a refused question", leaked);
    }
}

#[test]
fn refused_candidates_are_answered_to_governed_sockets() {
    let test = Governed::over(world(), STRICT).unwrap();
    let place = with_resolv_conf(&test.world, &test.inside, POD);
    refused_candidates_are_answered(&test, &place);
    let about = |event: &serde_json::Value| event.to_string().contains("forbidden.example.com");
    let event = test.event(|event| event["kind"] == "dropped" && about(event)).unwrap();
    assert!(event.is_some_and(|event| event.to_string().contains("\"pid\"")), "{:#?}", test.daemon.events(true));
}

#[test]
fn refused_candidates_are_answered_beside_the_cgroup() {
    let test = Governed::over(world(), STRICT).unwrap();
    let place = with_resolv_conf(&test.world, &test.beside, POD);
    refused_candidates_are_answered(&test, &place);
}

#[test]
fn refused_candidates_are_answered_to_a_pod_and_over_ipv6() {
    let world = World::with_pod().unwrap();
    world.dns.set_text(ALLOWED, 30, &["203.0.113.80", "2001:db8::80"]);
    let cgroup = Cgroup::new("governed").unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.pod());
    let daemon =
        Daemon::builder(&world).policy_text(STRICT).cgroup(&cgroup).resolvers(&[DNS_V4, DNS_V6]).start().unwrap();
    let test = Governed { daemon, inside, beside, cgroup, world };
    let pod = with_resolv_conf(&test.world, &test.beside, &POD.replace(DNS_V4, DNS_V6));
    refused_candidates_are_answered(&test, &pod);
    std::fs::write(test.world.dir().join("container/resolv.conf"), POD).unwrap();
    refused_candidates_are_answered(&test, &pod);
}

/// The cgroup's hook leaves refused queries to an uplink's program only while that uplink is governed (P2, P5).
#[test]
fn refused_queries_do_not_leave_by_an_uplink_that_was_let_go() {
    let world = world();
    let other = world.add_uplink(1).unwrap();
    let mut test = Governed::over(world, STRICT).unwrap();
    let dig = |place: &Place| {
        let args = ["+time=1", "+tries=1", "forbidden.example.com"];
        place.run("dig", &args, LIMIT).unwrap().stdout
    };
    assert!(dig(&test.inside).contains("NXDOMAIN"), "{}", dig(&test.inside));
    test.daemon.stop().unwrap();
    test.restart_with(|builder| builder.interfaces(&[&other])).unwrap();
    assert!(!dig(&test.inside).contains("NXDOMAIN"), "{}", dig(&test.inside));
    let leaked = |frame: &egress_tests::Frame| frame.bytes.windows(9).any(|bytes| bytes == b"forbidden");
    test.world.sniffer.assert_none("a refused question", leaked);
}
