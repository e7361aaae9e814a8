//! Programs of others at the same places: they go on being called, and change nothing of ours.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use egress_tests::bench::raw;
use egress_tests::daemon::{READY, binary, patient};
use egress_tests::held::python;
use egress_tests::mntns::BPFFS;
use egress_tests::probe::tcp;
use egress_tests::skip::has_tcx;
use egress_tests::world::{POD_VETH, UPLINK};
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
    let run = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).run_to_end(patient(LIMIT)).unwrap();
    assert_eq!(run.code(), Some(3), "{run:?}");
    assert!(run.stderr.contains("connect4") && run.stderr.contains(&*cgroup.path().to_string_lossy()), "{run:?}");
    for place in [world.node().in_cgroup(&cgroup), world.node()] {
        assert!(tcp(&place, "203.0.113.11:7000").unwrap().echoed, "what no rule allows");
    }
    let mut left = Vec::new();
    world.mounts.run(|| Pins::new(Path::new(BPFFS)).detach_all(&mut left).unwrap());
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
        let run = builder.policy(file).cgroup(&test.cgroup).run_to_end(patient(LIMIT)).unwrap();
        assert_eq!(run.code(), Some(3), "{run:?}");
        assert!(run.stderr.contains("connect4"), "{run:?}");
        for place in [&test.inside, &test.beside] {
            assert!(tcp(place, "203.0.113.10:7000").unwrap().echoed, "what the policy before allows: {text}");
            assert!(!tcp(place, "198.51.100.77:7000").unwrap().echoed, "what it does not: {text}");
        }
    }
}

/// The program of each pinned link, and the map that is pinned as this one.
fn pinned(world: &World, map: &str) -> (BTreeMap<String, u32>, u32) {
    world.mounts.run(|| {
        let pins = Pins::new(Path::new(BPFFS));
        let links = pins.links().unwrap().into_iter();
        let programs = links.map(|(name, link)| (name, sys::link_info(link.as_fd()).unwrap().program)).collect();
        let map = sys::open_pin(&pins.map(map)).unwrap();
        (programs, sys::map_shape(map.as_fd()).unwrap().id)
    })
}

/// P4, P7: a start for larger tables that fails half-way leaves the tables of the daemon before, and the programs that use them: names are
/// learned on.
#[test]
fn a_start_with_larger_tables_that_fails_half_way_leaves_those_before() {
    const NAMED: &str = "version: 1\nrules:\n  - {name: wild, to: ['*.wild.example.com'], ports: [7000/tcp]}\n";
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.dns.set_text("*.wild.example.com", 30, &["203.0.113.30"]);
    let mut test = Governed::over(world, NAMED).unwrap();
    test.daemon.kill().unwrap();
    block_connect4(&test);
    let before = pinned(&test.world, "NAMES");
    let builder = Daemon::builder(&test.world);
    let file = builder.policy_file(0);
    let builder = builder.policy(file).cgroup(&test.cgroup).arg("--max-addresses").arg("500000");
    let run = builder.run_to_end(patient(LIMIT)).unwrap();
    assert_eq!(run.code(), Some(3), "{run:?}");
    assert!(run.stderr.contains("connect4") && run.stderr.contains("making new ones"), "{run:?}");
    assert_eq!(pinned(&test.world, "NAMES"), before);
    let script = "import socket\nsocket.create_connection(('late.wild.example.com', 7000), 2)\nprint('yes')";
    let run = test.inside.run(python(), &["-c", script], patient(LIMIT)).unwrap();
    assert_eq!(run.stdout, "yes\n", "a name that is learned with the daemon dead: {run:?}");
}

/// `egress` with so many descriptors.
fn limited(world: &World, descriptors: u32) -> PathBuf {
    let limited = world.dir().join("limited.sh");
    let script = format!("#!/bin/sh\nulimit -n {descriptors}\nexec {} \"$@\"\n", binary().unwrap().display());
    std::fs::write(&limited, script).unwrap();
    std::fs::set_permissions(&limited, std::fs::Permissions::from_mode(0o755)).unwrap();
    limited
}

/// P4, P7: nor does a start that is short of descriptors, wherever that is noticed, give up the tables of the daemon before.
#[test]
fn a_start_short_of_descriptors_leaves_the_tables_before() {
    let mut test = Governed::new(POLICY).unwrap();
    test.daemon.kill().unwrap();
    let before = pinned(&test.world, "NAMES");
    let mut ended = 0;
    let larger = ["--max-addresses", "500000"];
    for (descriptors, more) in [(24, &[][..]), (40, &[]), (56, &[]), (84, &larger), (96, &larger)] {
        let limited = limited(&test.world, descriptors);
        let builder = Daemon::builder(&test.world).binary(&limited);
        let file = builder.policy_file(0);
        let builder = more.iter().fold(builder.policy(file).cgroup(&test.cgroup), |builder, arg| builder.arg(*arg));
        let run = builder.run_to_end(patient(LIMIT)).unwrap();
        println!("{descriptors}: {run:?}");
        if run.code() == Some(3) {
            ended += 1;
            assert_eq!(pinned(&test.world, "NAMES"), before, "{descriptors}: {run:?}");
        }
    }
    assert!(ended > 3, "the limits are too high to show anything");
    // With what it needs it makes its larger tables, which the next one takes up.
    test.restart_with(|builder| larger.iter().fold(builder, |builder, arg| builder.arg(*arg))).unwrap();
    assert_eq!(test.daemon.status().unwrap()["health"]["healthy"], true);
    let (_, names) = pinned(&test.world, "NAMES");
    assert_ne!(names, before.1);
    test.daemon.kill().unwrap();
    test.restart().unwrap();
    assert_eq!(pinned(&test.world, "NAMES").1, names);
}

/// Whether a start with so many descriptors succeeds, and what it says.
fn starts(test: &Governed, policy: &Path, descriptors: u32) -> (bool, String) {
    let limited = limited(&test.world, descriptors);
    let daemon = Daemon::builder(&test.world).binary(&limited).policy(policy).cgroup(&test.cgroup).spawn().unwrap();
    let until = Instant::now() + patient(4 * LIMIT);
    let ends = [READY, "error:", "panicked"];
    while !ends.iter().any(|end| daemon.output().contains(end)) {
        assert!(Instant::now() < until, "{descriptors}: {}", daemon.output());
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = daemon.output();
    // A panic is told before what it unwinds is put back.
    if output.contains("panicked") {
        std::thread::sleep(Duration::from_millis(500));
    }
    daemon.crash().unwrap();
    (output.contains(READY), output)
}

/// P7: a start that fails when all is attached, as where descriptors end while it gives up its rights, leaves the policy before in force too.
#[test]
fn a_start_that_fails_late_leaves_the_policy_before_in_force() {
    const OTHER: &str = "version: 1\nrules:\n  - {name: other, to: [198.51.100.77], ports: [7000/tcp]}\n";
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let mut test = Governed::over(world, POLICY).unwrap();
    test.daemon.kill().unwrap();
    let builder = Daemon::builder(&test.world);
    let (own, other) = (builder.policy_file(0), builder.policy_file(1));
    std::fs::write(&other, OTHER).unwrap();
    let (mut few, mut enough) = (60, 300);
    while few + 1 < enough {
        let middle = (few + enough) / 2;
        *(if starts(&test, &own, middle).0 { &mut enough } else { &mut few }) = middle;
    }
    let mut late = 0;
    for descriptors in enough - 9..enough {
        let (ready, output) = starts(&test, &other, descriptors);
        println!("{descriptors}: {output}");
        // The bound is not the same each time.
        if ready {
            break;
        }
        late += usize::from(output.contains("landlock"));
        for place in [&test.inside, &test.beside] {
            assert!(
                tcp(place, "203.0.113.10:7000").unwrap().echoed,
                "what the policy before allows, {descriptors}: {output}"
            );
            assert!(!tcp(place, "198.51.100.77:7000").unwrap().echoed, "what it does not, {descriptors}: {output}");
        }
    }
    assert!(late > 0, "no start failed while it gave up its rights");
    assert!(starts(&test, &other, 2 * enough).0);
    assert!(tcp(&test.inside, "198.51.100.77:7000").unwrap().echoed, "the start with all that it needs");
}

/// P1: a first start that cannot attach to a workload's veth leaves nothing behind either.
#[test]
fn a_start_that_cannot_attach_to_a_veth_leaves_nothing_behind() {
    if !has_tcx("a_start_that_cannot_attach_to_a_veth_leaves_nothing_behind", "the whole test") {
        return;
    }
    let world = World::with_pod().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let index = world.node_ns.ifindex(POD_VETH).unwrap();
    let attach = || sys::link_create(raw::empty(raw::CLASSIFIER)?.as_fd(), index, AttachType::TcxIngress);
    // As many as the kernel lets be there (BPF_MPROG_MAX).
    let links: Vec<_> = world.node_ns.run(|| std::iter::repeat_with(attach).map_while(Result::ok).collect());
    assert!(links.len() > 50, "{}", links.len());
    let run = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).run_to_end(patient(LIMIT)).unwrap();
    assert_eq!(run.code(), Some(3), "{run:?}");
    assert!(run.stderr.contains(POD_VETH) && run.stderr.contains("--interface none"), "{run:?}");
    for place in [world.node().in_cgroup(&cgroup), world.node()] {
        assert!(tcp(&place, "203.0.113.11:7000").unwrap().echoed, "what no rule allows");
    }
    let mut left = Vec::new();
    world.mounts.run(|| Pins::new(Path::new(BPFFS)).detach_all(&mut left).unwrap());
    assert!(left.is_empty(), "pinned still: {left:?}");
}
