//! Search lists (`ndots:5`), with real resolver libraries: a name that a rule allows is found behind the candidates that
//! come before it, without a stall (P4).

use std::net::IpAddr;
use std::time::Duration;

use egress_tests::clients::{Library, Lookup, look_up};
use egress_tests::{Governed, MountNs, Place, World};

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
