use std::{fs, time::Duration};

use crate::events::pods::{PodName, Pods};

const UID: &str = "1b2c3d4e-0000-4000-8000-0123456789ab";
/// A static pod's: the hash of its manifest.
const HASH: &str = "0123456789abcdef0123456789abcdef";

fn pod(namespace: &str, name: &str) -> PodName {
    PodName { namespace: namespace.into(), name: name.into() }
}

#[test]
fn pods_are_found_by_their_directories() {
    let root = tempfile::tempdir().unwrap();
    let mut pods = Pods::new(root.path()).with_pause(Duration::ZERO);
    assert_eq!(pods.find(UID), None);
    fs::create_dir(root.path().join(format!("kube-system_coredns-5d78c9869d-abcde_{UID}"))).unwrap();
    fs::create_dir(root.path().join(format!("kube-system_etcd-node1.example_{HASH}"))).unwrap();
    assert_eq!(pods.find(UID), Some(pod("kube-system", "coredns-5d78c9869d-abcde")));
    assert_eq!(pods.find(HASH), Some(pod("kube-system", "etcd-node1.example")));
    // A pod that is gone is remembered; another one is not found in its place.
    fs::remove_dir(root.path().join(format!("kube-system_coredns-5d78c9869d-abcde_{UID}"))).unwrap();
    assert_eq!(pods.find(UID), Some(pod("kube-system", "coredns-5d78c9869d-abcde")));
    assert_eq!(pods.find("1b2c3d4e-0000-4000-8000-0123456789ff"), None);
}

#[test]
fn what_is_no_pods_directory_is_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let long = "a".repeat(64);
    for name in [
        "readme",
        "a_b",
        &format!("a_b_c_{UID}"),
        &format!("A_b_{UID}"),
        &format!("a_b\u{1b}_{UID}"),
        &format!("_b_{UID}"),
        &format!("a__{UID}"),
        &format!("{long}_b_{UID}"),
    ] {
        fs::create_dir(root.path().join(name)).unwrap();
    }
    assert_eq!(Pods::new(root.path()).find(UID), None);
}

#[test]
fn a_missing_directory_is_listed_seldom() {
    let root = tempfile::tempdir().unwrap();
    let mut pods = Pods::new(root.path().join("pods")).with_pause(Duration::from_secs(3600));
    assert_eq!(pods.find(UID), None);
    fs::create_dir_all(root.path().join(format!("pods/a_b_{UID}"))).unwrap();
    assert_eq!(pods.find(UID), None, "not before the pause is over");
}
