//! P1: programs and filters of others that come after ours, go before ours, or stand in clsact beside tcx.

use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::time::Duration;

use egress_tests::bench::raw;
use egress_tests::daemon::patient;
use egress_tests::mntns::BPFFS;
use egress_tests::probe::{tcp, udp};
use egress_tests::skip::has_tcx;
use egress_tests::world::UPLINK;
use egress_tests::{Governed, Service, World};
use egress_user::datapath::sys::{self, AttachType};

const POLICY: &str = "version: 1\nrules:\n  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}\n";
const LIMIT: Duration = Duration::from_secs(5);

/// TC_ACT_OK and TC_ACT_SHOT of linux/pkt_cls.h.
const ACCEPT: i32 = 0;
const DROP: i32 = 2;

/// A classifier that says the same of every packet, for `tc` to find in the world's bpffs.
fn pin(world: &World, name: &str, answer: i32) {
    let program = raw::constant(raw::CLASSIFIER, answer).unwrap();
    world.mounts.run(|| sys::pin(program.as_fd(), &Path::new(BPFFS).join(name))).unwrap();
}

fn filters(program: &str) -> String {
    format!(
        "for way in ingress egress; do tc filter replace dev up0 $way pref 1 handle 1 bpf da pinned {BPFFS}/{program}; done"
    )
}

fn sh(test: &Governed, script: &str) {
    let run = test.beside.run("sh", &["-ec", script], patient(LIMIT)).unwrap();
    assert!(run.ok(), "{script}: {run:?}");
}

#[track_caller]
fn assert_judged(test: &Governed, when: &str) {
    test.world.sniffer.clear();
    for (place, who) in [(&test.inside, "inside"), (&test.beside, "beside")] {
        let allowed = tcp(place, "203.0.113.10:7000").unwrap();
        assert!(allowed.echoed, "{when}, {who}: {allowed:?}");
        assert!(!tcp(place, "198.51.100.77:7000").unwrap().echoed, "{when}, {who}");
    }
    let denied = "198.51.100.77".parse().unwrap();
    test.world.sniffer.assert_none(when, |frame| frame.destination == Some(denied));
}

/// Whether the interface's programs of ours are there, by `status`.
fn present(test: &Governed) -> bool {
    let status = test.daemon.status().unwrap();
    let points = status["attach_points"].as_array().unwrap();
    points.iter().all(|point| point["present"] == true) && status["health"]["healthy"] == true
}

/// What is attached after ours, at the cgroup (its links are called in order of attachment), by tcx and as clsact filters that
/// accept everything, changes nothing, nor does its going away.
#[test]
fn programs_that_come_later_and_go_earlier_change_nothing() {
    if !has_tcx("programs_that_come_later_and_go_earlier_change_nothing", "the whole test") {
        return;
    }
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    // Before ours: filters that end clsact's chain.
    pin(&world, "accept", ACCEPT);
    pin(&world, "accept-too", ACCEPT);
    let run = world.node().run(
        "sh",
        &["-ec", &format!("tc qdisc add dev up0 clsact; {}", filters("accept"))],
        patient(LIMIT),
    );
    assert!(run.as_ref().unwrap().ok(), "{run:?}");
    let test = Governed::over(world, POLICY).unwrap();
    assert_judged(&test, "beside clsact filters that were there");

    let directory = File::open(test.cgroup.path()).unwrap();
    let (socket, classifier) = (raw::empty(raw::CGROUP_SKB).unwrap(), raw::empty(raw::CLASSIFIER).unwrap());
    let index = test.world.node_ns.ifindex(UPLINK).unwrap();
    let mut links = Vec::new();
    for attach in [AttachType::CgroupIngress, AttachType::CgroupEgress] {
        links.push(sys::link_create(socket.as_fd(), directory.as_raw_fd() as u32, attach).unwrap());
    }
    for attach in [AttachType::TcxIngress, AttachType::TcxEgress] {
        links.push(test.world.node_ns.run(|| raw::tcx_last(classifier.as_fd(), index, attach as u32)).unwrap());
    }
    assert_judged(&test, "beside programs that came later");
    sh(&test, &filters("accept-too"));
    assert_judged(&test, "beside filters that were replaced");
    drop(links);
    sh(&test, "tc qdisc del dev up0 clsact");
    assert_judged(&test, "after others went");
    assert!(present(&test));
}

/// A foreign filter that drops is heard: both must let a packet pass.
#[test]
fn a_filter_of_others_that_drops_is_heard() {
    if !has_tcx("a_filter_of_others_that_drops_is_heard", "the whole test") {
        return;
    }
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let test = Governed::over(world, POLICY).unwrap();
    assert!(tcp(&test.beside, "203.0.113.10:7000").unwrap().echoed);
    pin(&test.world, "drop", DROP);
    sh(&test, &format!("tc qdisc add dev up0 clsact; {}", filters("drop")));
    assert!(!tcp(&test.beside, "203.0.113.10:7000").unwrap().echoed);
}

/// A program that accepts for good before ours takes the uplink's word away, as operations.md says; not the cgroup's.
#[test]
fn sockets_are_judged_whatever_stands_before_the_uplinks_program() {
    if !has_tcx("sockets_are_judged_whatever_stands_before_the_uplinks_program", "the whole test") {
        return;
    }
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let test = Governed::over(world, POLICY).unwrap();
    let classifier = raw::constant(raw::CLASSIFIER, ACCEPT).unwrap();
    let index = test.world.node_ns.ifindex(UPLINK).unwrap();
    let _first = test.world.node_ns.run(|| sys::link_create(classifier.as_fd(), index, AttachType::TcxEgress)).unwrap();
    assert!(tcp(&test.inside, "203.0.113.10:7000").unwrap().echoed);
    for to in ["198.51.100.77:7000", "203.0.113.10:7001"] {
        assert!(tcp(&test.inside, to).unwrap().refused());
        assert!(udp(&test.inside, to, 5).unwrap().refused());
    }
    assert!(!udp(&test.inside, "198.51.100.77:7000", 5).unwrap().echoed);
    let denied = "198.51.100.77".parse().unwrap();
    test.world.sniffer.assert_none("a socket's", |frame| frame.destination == Some(denied));
}

/// P2: who detaches our links by hand is told of by `status`; the next change of a link puts the uplink's back, the next
/// start the cgroup's.
#[test]
fn links_that_others_detach_are_missed_and_put_back() {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let mut test = Governed::over(world, POLICY).unwrap();
    let list = test.beside.run("sh", &["-c", &format!("ls {BPFFS}/egress/v*/links/*")], patient(LIMIT)).unwrap().stdout;
    let detach = |test: &Governed, what: &str| {
        let paths: Vec<_> = list.lines().filter(|path| path.contains(what)).collect();
        assert!(!paths.is_empty(), "{what} in {list}");
        for path in paths {
            test.world.mounts.run(|| sys::link_detach(sys::open_pin(Path::new(path)).unwrap().as_fd())).unwrap();
        }
        assert!(!present(test), "{what}");
    };
    if has_tcx("links_that_others_detach_are_missed_and_put_back", "the uplink's links") {
        detach(&test, "uplink_egress");
        test.world.node_ns.ip("link set up0 mtu 1400").unwrap();
        test.status_until(|status| status["health"]["healthy"] == true).unwrap();
        assert_judged(&test, "after the uplink's program was detached");
    }

    detach(&test, "socket_egress");
    test.daemon.kill().unwrap();
    test.restart().unwrap();
    assert!(present(&test));
    assert_judged(&test, "after the cgroup's program was detached");
}
