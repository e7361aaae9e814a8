//! Real resolver libraries in a pod.

use std::time::Duration;

use egress_tests::clients::{Library, look_up};
use egress_tests::world::{DNS_V4, DNS_V6};
use egress_tests::{MountNs, Place};

use crate::{ALLOWED, CLUSTER_DNS, Node, assert_not_asked};

const LIMIT: Duration = Duration::from_secs(30);
/// Well below the 5 s that every one of these libraries waits for one answer.
const STALL: Duration = Duration::from_secs(1);

/// The pod with a resolv.conf as the kubelet writes it, and a domain of the node's own at the end.
fn pod_with(node: &Node, resolver: &str) -> Place {
    let dir = node.test.world.dir().join(resolver.replace(':', "_"));
    std::fs::create_dir(&dir).unwrap();
    let mounts = MountNs::new(&dir, &node.test.world.node_ns).unwrap();
    let search = "search apps.svc.cluster.local svc.cluster.local cluster.local some.corp\noptions ndots:5\n";
    mounts.set_resolv_conf(&format!("nameserver {resolver}\n{search}")).unwrap();
    node.pod.clone().with_mounts(&mounts)
}

/// The very first thing that `library` asks in this pod is a refused candidate; none of its lookups fails or waits.
fn lookups_go_on(node: &Node, place: &Place, library: Library) {
    let lookups = look_up(library, place, &[ALLOWED, "forbidden.example.com", ALLOWED], LIMIT).unwrap();
    let [first, refused, again] = lookups.as_slice() else { unreachable!("look_up counts") };
    println!(
        "{library:?}: first {:?}, refused {:?} ({}), again {:?}",
        first.took, refused.took, refused.error, again.took
    );
    for lookup in [first, again] {
        assert!(!lookup.addresses.is_empty() && lookup.error.is_empty(), "{library:?}: {lookup:?}\n{}", events(node));
    }
    assert!(refused.addresses.is_empty(), "{library:?}: {refused:?}");
    assert!(lookups.iter().all(|lookup| lookup.took < STALL), "{library:?}: {lookups:?}");
    assert_not_asked(node, &format!("{library:?}"));
}

fn events(node: &Node) -> String {
    format!("{:#?}\n{}", node.test.daemon.events(true), node.test.daemon.output())
}

#[test]
fn a_resolver_on_the_same_node() {
    let node = Node::new(&[CLUSTER_DNS]);
    let place = pod_with(&node, CLUSTER_DNS);
    for library in Library::ALL {
        lookups_go_on(&node, &place, library);
    }
    assert!(node.test.world.dns.count(ALLOWED) > 0);
}

#[test]
fn a_resolver_outside_by_both_families() {
    let node = Node::new(&[DNS_V4, DNS_V6]);
    for resolver in [DNS_V6, DNS_V4] {
        let place = pod_with(&node, resolver);
        for library in [Library::CAres, Library::Glibc] {
            lookups_go_on(&node, &place, library);
        }
    }
}
