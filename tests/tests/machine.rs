//! What the machine lacks is said, or made: each in the world's own mount namespace.

use std::time::{Duration, Instant};

use egress_tests::mntns::BPFFS;
use egress_tests::probe::tcp;
use egress_tests::{Cgroup, Daemon, Service, World, cgroup, daemon};

const POLICY: &str = "version: 1\nrules:\n  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}\n";
const LIMIT: Duration = Duration::from_secs(5);

fn sh(world: &World, script: &str) {
    let run = world.node().run("sh", &["-ec", script], LIMIT).unwrap();
    assert!(run.ok(), "{script}: {run:?}");
}

/// Section 4: without cgroup v2 `run` ends with 3 and says what to mount.
#[test]
fn without_cgroup_v2_run_says_what_to_mount() {
    let world = World::new().unwrap();
    let group = Cgroup::new("governed").unwrap();
    sh(&world, &format!("umount -l {}", cgroup::mount_point().unwrap().display()));
    let run = Daemon::builder(&world).policy_text(POLICY).cgroup(&group).run_to_end(LIMIT).unwrap();
    assert_eq!(run.code(), Some(3), "{run:?}");
    assert!(run.stderr.contains("mount -t cgroup2"), "{run:?}");
    // Root is not told to be root.
    let exec = daemon::egress(&world.node(), &["exec", "--allow", "192.0.2.1", "--", "true"], LIMIT).unwrap();
    for run in [run, exec] {
        assert_eq!(run.code(), Some(3), "{run:?}");
        assert!(run.stderr.contains("mount -t cgroup2") && !run.stderr.contains("help:"), "{run:?}");
    }
}

/// Where the governed cgroup is gone nothing is enforced any more, and nobody says that it is.
#[test]
fn without_its_cgroup_no_enforcement_is_said_to_stay() {
    let world = World::new().unwrap();
    let group = Cgroup::new("governed").unwrap();
    let mut daemon = Daemon::builder(&world).policy_text(POLICY).cgroup(&group).interfaces(&[]).start().unwrap();
    let stays = |daemon: &Daemon| daemon.egress(&["status"]).unwrap().stderr.contains("enforcement stays on");
    daemon.stop().unwrap();
    assert!(daemon.output().contains("enforcement stays on") && stays(&daemon), "{}", daemon.output());
    let mut daemon = Daemon::builder(&world).policy_text(POLICY).cgroup(&group).interfaces(&[]).start().unwrap();
    std::fs::remove_dir(group.path()).unwrap();
    let until = Instant::now() + LIMIT;
    while daemon.status().unwrap()["enforcing"] == true {
        assert!(Instant::now() < until, "the links of a cgroup that is gone");
    }
    daemon.stop().unwrap();
    assert!(!daemon.output().contains("enforcement stays on") && !stays(&daemon), "{}", daemon.output());
}

/// P2: without bpffs `run` mounts it, and what it pins there outlives it.
#[test]
fn without_bpffs_run_mounts_it() {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let group = Cgroup::new("governed").unwrap();
    sh(&world, &format!("umount {BPFFS}; umount -l {BPFFS} 2>/dev/null || true"));
    let mut daemon = Daemon::builder(&world).policy_text(POLICY).cgroup(&group).start().unwrap();
    sh(&world, &format!("test -d {BPFFS}/egress && grep -q ' {BPFFS} bpf ' /proc/mounts"));
    daemon.kill().unwrap();
    let inside = world.node().in_cgroup(&group);
    assert!(tcp(&inside, "198.51.100.77:7000").unwrap().refused());
    assert!(tcp(&inside, "203.0.113.10:7000").unwrap().echoed);
}
