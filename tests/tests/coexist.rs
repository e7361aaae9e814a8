//! Programs of others at the same places: they go on being called, and change nothing of ours.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use egress_tests::bench::raw;
use egress_tests::mntns::BPFFS;
use egress_tests::probe::tcp;
use egress_tests::skip::has_tcx;
use egress_tests::world::UPLINK;
use egress_tests::{Cgroup, Daemon, Governed, Service, World};
use egress_user::datapath::{
    Pins,
    sys::{self, AttachType},
};

const LIMIT: Duration = Duration::from_secs(5);
const POLICY: &str = "version: 1\nrules:\n  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}\n";

/// Links of programs that let everything pass: both ways at a cgroup and, with tcx, at the uplink.
fn foreign(world: &World, cgroup: &Cgroup, tcx: bool) -> Vec<OwnedFd> {
    let directory = File::open(cgroup.path()).unwrap();
    let (socket, link) = (raw::empty(raw::CGROUP_SKB).unwrap(), raw::empty(raw::CLASSIFIER).unwrap());
    let index = world.node_ns.ifindex(UPLINK).unwrap();
    let mut links = Vec::new();
    for attach in [AttachType::CgroupIngress, AttachType::CgroupEgress] {
        links.push(sys::link_create(socket.as_fd(), directory.as_raw_fd() as u32, attach).unwrap());
    }
    for attach in [AttachType::TcxIngress, AttachType::TcxEgress].into_iter().filter(|_| tcx) {
        links.push(world.node_ns.run(|| sys::link_create(link.as_fd(), index, attach)).unwrap());
    }
    links
}

/// P1: programs that were there before ours, at the cgroup, at the one above it and at the uplink, open nothing, though at the
/// uplink they end the chain of calls (they return 1, not "next"), and are still attached when Egress is gone.
#[test]
fn programs_of_others_stay_and_open_nothing() {
    let tcx = has_tcx("programs_of_others_stay_and_open_nothing", "programs at the uplink");
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let above = Cgroup::new("above").unwrap();
    let cgroup = above.child("governed").unwrap();
    let mut links = foreign(&world, &above, tcx);
    links.extend(foreign(&world, &cgroup, tcx));
    let test = Governed::with(world, cgroup, POLICY).unwrap();
    test.world.sniffer.clear();
    assert!(tcp(&test.inside, "203.0.113.10:7000").unwrap().echoed);
    assert!(tcp(&test.inside, "198.51.100.77:7000").unwrap().refused());
    assert!(!tcp(&test.beside, "198.51.100.77:7000").unwrap().echoed);
    let denied = "198.51.100.77".parse().unwrap();
    test.world.sniffer.assert_none("past a program of others", |frame| frame.destination == Some(denied));
    assert!(test.daemon.detach().unwrap().ok());
    assert!(tcp(&test.inside, "198.51.100.77:7000").unwrap().echoed);
    let standing = links.iter().filter(|link| sys::link_info(link.as_fd()).is_ok_and(|info| info.target != 0)).count();
    assert_eq!(standing, if tcx { 8 } else { 4 });
}

/// P1: where a program of somebody else lets no other beside it, the start says so, and leaves nothing behind that judges: the node goes on
/// as before.
#[test]
fn a_start_that_cannot_attach_leaves_nothing_behind() {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let cgroup = Cgroup::new("alone").unwrap();
    let [_, (connect, at)] = raw::empty_hooks().unwrap();
    raw::attach_alone(connect.as_fd(), File::open(cgroup.path()).unwrap().as_fd(), at as u32).unwrap();
    let run = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).run_to_end(LIMIT).unwrap();
    assert_eq!(run.code(), Some(3), "{run:?}");
    assert!(run.stderr.contains("connect4") && run.stderr.contains(&*cgroup.path().to_string_lossy()), "{run:?}");
    for place in [world.node().in_cgroup(&cgroup), world.node()] {
        assert!(tcp(&place, "203.0.113.11:7000").unwrap().echoed, "what no rule allows");
    }
    let left = world.mounts.run(|| Pins::new(Path::new(BPFFS)).detach_all().unwrap());
    assert!(left.is_empty(), "pinned still: {left:?}");
}

/// Takes a hook of the daemon's cgroup away from it, and gives it to a program that lets no other beside it: the next start gives the hooks
/// before it their new programs, and fails at this one.
fn block_connect4(test: &Governed) {
    let id = test.cgroup.id().unwrap();
    test.world.mounts.run(|| Pins::new(Path::new(BPFFS)).detach(&format!("cgroup-{id}-connect4")).unwrap());
    let [_, (connect, at)] = raw::empty_hooks().unwrap();
    raw::attach_alone(connect.as_fd(), File::open(test.cgroup.path()).unwrap().as_fd(), at as u32).unwrap();
}

/// P7: a start with another policy that fails when half of its programs are in force leaves the policy of the daemon before, by which the
/// node is judged on; in audit mode too.
#[test]
fn a_start_that_fails_half_way_leaves_the_policy_before_in_force() {
    const OTHER: &str = "version: 1\nrules:\n  - {name: other, to: [198.51.100.77], ports: [7000/tcp]}\n";
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let mut test = Governed::over(world, POLICY).unwrap();
    test.daemon.kill().unwrap();
    block_connect4(&test);
    for text in [OTHER.to_owned(), format!("{OTHER}mode: audit\n")] {
        let builder = Daemon::builder(&test.world);
        let file = builder.policy_file(1);
        std::fs::write(&file, &text).unwrap();
        let run = builder.policy(file).cgroup(&test.cgroup).run_to_end(LIMIT).unwrap();
        assert_eq!(run.code(), Some(3), "{run:?}");
        assert!(run.stderr.contains("connect4"), "{run:?}");
        for place in [&test.inside, &test.beside] {
            assert!(tcp(place, "203.0.113.10:7000").unwrap().echoed, "what the policy before allows: {text}");
            assert!(!tcp(place, "198.51.100.77:7000").unwrap().echoed, "what it does not: {text}");
        }
    }
}
