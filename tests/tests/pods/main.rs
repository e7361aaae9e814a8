//! Containers with network namespaces of their own inside the governed cgroup: the normal case on a node that is governed at its
//! cgroup's root. A name that no rule allows is answered to them at the host side of their veth (decision 0047), so that
//! search lists go on at once (P4), and reaches no resolver (P5).

mod answers;
mod attacks;
mod limits;

use std::net::IpAddr;

use egress_tests::{Cgroup, Daemon, Governed, NetNs, Place, World};

const ALLOWED: &str = "www.example.com";
/// The resolver of the cluster: in a container on the same node, so that no uplink sees what it is asked.
const CLUSTER_DNS: &str = "10.244.1.53";

fn policy(rule: &str, resolvers: &[&str]) -> String {
    let resolvers = resolvers.join("', '");
    format!(
        "version: 1\ndns: {{resolvers: ['{resolvers}']}}\nrules: [{{name: {rule}, to: [{ALLOWED}], ports: [80/tcp]}}]\n"
    )
}

/// A node with a pod inside the governed cgroup and a resolver in another container.
struct Node {
    test: Governed,
    /// In the pod, inside the governed cgroup.
    pod: Place,
    resolver: NetNs,
}

impl Node {
    fn new(resolvers: &[&str]) -> Self {
        let world = World::with_pod().unwrap();
        world.dns.set_text(ALLOWED, 30, &["203.0.113.80", "2001:db8::80"]);
        let resolver = NetNs::new("dnspod").unwrap();
        world.node_ns.veth("vdns0", &["10.244.1.1/24"], &resolver, "eth0", &["10.244.1.53/24"]).unwrap();
        resolver.ip("route add default via 10.244.1.1").unwrap();
        world.dns.listen(&resolver, world.runtime(), (CLUSTER_DNS.parse::<IpAddr>().unwrap(), 53).into()).unwrap();
        let cgroup = Cgroup::new("governed").unwrap();
        let policy = policy("web", resolvers);
        let daemon = Daemon::builder(&world).policy_text(&policy).cgroup(&cgroup).resolvers(&[]).start().unwrap();
        let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
        let pod = world.pod().in_cgroup(&cgroup);
        Self { test: Governed { daemon, inside, beside, cgroup, world }, pod, resolver }
    }
}

/// Nothing of a refused name reached a resolver, on the node or outside.
#[track_caller]
fn assert_not_asked(node: &Node, when: &str) {
    let asked: Vec<_> = node.test.world.dns.asked().into_iter().filter(|asked| asked.name != ALLOWED).collect();
    assert!(asked.is_empty(), "{when}: {asked:?}");
    for word in [&b"corp"[..], b"cluster", b"forbidden"] {
        let leaked = |frame: &egress_tests::Frame| frame.bytes.windows(word.len()).any(|bytes| bytes == word);
        node.test.world.sniffer.assert_none(when, leaked);
    }
}
