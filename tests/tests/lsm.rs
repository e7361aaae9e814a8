//! P1, of the sockets that would send past every egress hook: BPF LSM refuses them to governed processes, to no others.

use std::time::Duration;

use anyhow::Result;
use egress_tests::skip::{bpf_lsm, skip};
use egress_tests::{Cgroup, Daemon, Place, World};
use serde::{Deserialize, Serialize};

const LIMIT: Duration = Duration::from_secs(5);
const OFF: &str = "BPF LSM is not on here; boot with `lsm=...,bpf`";
const FORBIDDEN: &str = "this machine lets not even root load an LSM program (EPERM)";
const DENY_ALL: &str = "version: 1\n";
const AUDIT: &str = "version: 1\nmode: audit\n";

/// Whether the daemon was refused an LSM program for lack of privilege, and says so where an operator looks.
fn forbidden(daemon: &Daemon) -> bool {
    let warnings = daemon.status().unwrap()["warnings"].to_string();
    warnings.contains("cannot use BPF LSM") && warnings.contains("missing privilege")
}

/// What the kernel says to each call: 0, or the error number.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Said {
    xdp: i32,
    packet: i32,
    version: i32,
    bypass: i32,
}

fn errno(result: i32) -> i32 {
    if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

fn ask(place: &Place) -> Said {
    let said = place.fork(LIMIT, || -> Result<Said> {
        // SAFETY: plain system calls; the descriptors go with the process, and the options are of the length given.
        unsafe {
            let xdp = errno(libc::socket(libc::AF_XDP, libc::SOCK_RAW, 0));
            let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
            let packet = errno(socket);
            let set = |option, value: i32| {
                errno(libc::setsockopt(socket, libc::SOL_PACKET, option, (&raw const value).cast(), 4))
            };
            let version = set(libc::PACKET_VERSION, libc::tpacket_versions::TPACKET_V3 as i32);
            let bypass = set(libc::PACKET_QDISC_BYPASS, 1);
            Ok(Said { xdp, packet, version, bypass })
        }
    });
    said.unwrap()
}

const NOTHING_REFUSED: Said = Said { xdp: 0, packet: 0, version: 0, bypass: 0 };
const BYPASS_REFUSED: Said = Said { xdp: libc::EPERM, packet: 0, version: 0, bypass: libc::EPERM };

#[test]
fn a_governed_process_gets_no_socket_past_the_hooks() {
    if !bpf_lsm() {
        return skip("a_governed_process_gets_no_socket_past_the_hooks", OFF);
    }
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("lsm").unwrap();
    let below = cgroup.child("below").unwrap();
    let other = Cgroup::new("free").unwrap();
    let node = world.node();
    assert_eq!(ask(&node.in_cgroup(&cgroup)), NOTHING_REFUSED, "without a daemon");

    let mut daemon = Daemon::builder(&world).policy_text(DENY_ALL).cgroup(&cgroup).start().unwrap();
    if forbidden(&daemon) {
        return skip("a_governed_process_gets_no_socket_past_the_hooks", FORBIDDEN);
    }
    assert_eq!(ask(&world.node().in_cgroup(&cgroup)), BYPASS_REFUSED);
    assert_eq!(ask(&world.node().in_cgroup(&below)), BYPASS_REFUSED);
    assert_eq!(ask(&world.node().in_cgroup(&other)), NOTHING_REFUSED);
    assert_eq!(ask(&world.node()), NOTHING_REFUSED);
    let told = daemon.events(true).unwrap();
    assert!(told.iter().any(|event| event["reason"] == "bypass-socket"), "{told:?}");
    let warnings = daemon.status().unwrap()["warnings"].to_string();
    assert!(!warnings.contains("LSM"), "{warnings}");

    // P2: enforcement outlives the daemon; a second one takes its place.
    daemon.kill().unwrap();
    assert_eq!(ask(&world.node().in_cgroup(&cgroup)), BYPASS_REFUSED, "after the daemon was killed");
    let second = Daemon::builder(&world).policy_text(AUDIT).cgroup(&cgroup).start().unwrap();
    assert_eq!(ask(&world.node().in_cgroup(&cgroup)), NOTHING_REFUSED, "audit refuses nothing");
    let told = second.events(true).unwrap();
    assert!(told.iter().any(|event| event["reason"] == "bypass-socket"), "{told:?}");
    assert!(second.detach().unwrap().ok());
}

/// A daemon in a cgroup namespace cannot know how deep its cgroup is.
#[test]
fn a_cgroup_namespaces_processes_get_none_either() {
    let name = "a_cgroup_namespaces_processes_get_none_either";
    if !bpf_lsm() {
        return skip(name, OFF);
    }
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("lsm").unwrap();
    let below = cgroup.child("below").unwrap();
    let other = Cgroup::new("free").unwrap();
    let container = world.node().in_cgroup(&cgroup).in_cgroup_namespace().unwrap();
    let daemon = Daemon::builder(&world).policy_text(DENY_ALL).default_cgroup().place(container).start().unwrap();
    if forbidden(&daemon) {
        return skip(name, FORBIDDEN);
    }
    assert_eq!(ask(&world.node().in_cgroup(&below)), BYPASS_REFUSED);
    assert_eq!(ask(&world.node().in_cgroup(&other)), NOTHING_REFUSED);
    assert_eq!(ask(&world.node()), NOTHING_REFUSED);
}

#[test]
fn detach_ends_it_beside_a_running_daemon() {
    if !bpf_lsm() {
        return skip("detach_ends_it_beside_a_running_daemon", OFF);
    }
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("lsm").unwrap();
    let daemon = Daemon::builder(&world).policy_text(DENY_ALL).cgroup(&cgroup).start().unwrap();
    if forbidden(&daemon) {
        return skip("detach_ends_it_beside_a_running_daemon", FORBIDDEN);
    }
    assert_eq!(ask(&world.node().in_cgroup(&cgroup)), BYPASS_REFUSED);
    assert!(daemon.detach().unwrap().ok());
    assert_eq!(ask(&world.node().in_cgroup(&cgroup)), NOTHING_REFUSED);
}
