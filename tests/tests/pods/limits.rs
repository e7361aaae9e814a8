//! P6: the tables that the answers at veths rest on, when they hold what they can.

use std::path::Path;
use std::time::Duration;

use egress_ebpf::abi::{self, InsideKey, PathKey};
use egress_tests::mntns::BPFFS;
use egress_user::datapath::{Pins, Plain, Table, sys};

use crate::{ALLOWED, CLUSTER_DNS, Node, assert_not_asked};

const LIMIT: Duration = Duration::from_secs(20);

fn table<K: Plain, V: Plain>(node: &Node, name: &'static str) -> Table<K, V> {
    let pin = node.test.world.mounts.run(|| sys::open_pin(&Pins::new(Path::new(BPFFS)).map(name)).unwrap());
    Table::new(name, pin).unwrap()
}

/// Whether the pod's question for a refused name is answered; else the sender got an error.
fn is_answered(node: &Node) -> bool {
    let server = format!("@{CLUSTER_DNS}");
    let run = node.pod.run("dig", &[&server, "+tries=1", "+time=2", "forbidden.example.com", "A"], LIMIT).unwrap();
    run.stdout.contains("NXDOMAIN")
}

/// The addresses of pods, and the ways that were seen, have no room for this one: its refused names get an error until an allowed
/// one was asked, and reach no resolver.
#[test]
fn a_pod_without_room_gets_errors_until_an_allowed_name_was_asked() {
    let node = Node::new(&[CLUSTER_DNS]);
    assert!(is_answered(&node), "known by its address");
    let insides = table::<InsideKey, u32>(&node, "INSIDES");
    assert!(insides.remove_where(|_| true).unwrap() > 0);
    // As the kernel gives up the one unheard of for longest; it keeps those in use, so that filling the table would not do it.
    assert!(table::<PathKey, abi::Path>(&node, "PATHS").remove_where(|_| true).unwrap() > 0);
    assert!(!is_answered(&node), "nothing says where it leads");
    assert_not_asked(&node, "without a way");
    let server = format!("@{CLUSTER_DNS}");
    let allowed = node.pod.run("dig", &[&server, "+short", "+tries=2", ALLOWED, "A"], LIMIT).unwrap();
    assert_eq!(allowed.stdout, "203.0.113.80\n", "{allowed:?}");
    assert!(is_answered(&node), "seen to arrive");
    assert_not_asked(&node, "with a way");
}

/// The host side of its veth has no room in the table of those where queries are judged again: errors, and nothing gets out.
#[test]
fn a_pod_behind_a_veth_without_room_gets_errors() {
    let node = Node::new(&[CLUSTER_DNS]);
    assert!(is_answered(&node));
    assert!(table::<u32, u64>(&node, "VETHS").remove_where(|_| true).unwrap() > 0);
    for _ in 0..3 {
        assert!(!is_answered(&node), "nothing there would judge it again");
    }
    assert_not_asked(&node, "without the veth");
}
