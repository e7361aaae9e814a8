//! P1: fragments and extension headers, made by hand, by every way out of the node. Each packet is counted in the world.

mod big;
mod cases;
mod made;
mod six;
mod ways;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use egress_tests::daemon::patient;
use egress_tests::probe::udp;
use egress_tests::world::{DNS_V4, DNS_V6, NODE_V4, NODE_V6, POD_V4, POD_V6};
use egress_tests::{Cgroup, Daemon, Frame, Governed, World};

use made::{Case, Maker, Part, Then};
use ways::{WAYS, Way};

const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10, 203.0.113.11, '2001:db8:1::/48'], ports: [7000/tcp, 7000/udp, icmp]}
";

/// A world with a pod, whose neighbours know each other: what is sent first must not wait for them.
fn world() -> World {
    let world = World::with_pod().unwrap();
    for place in [world.node(), world.pod()] {
        for to in ["203.0.113.10:7000", "[2001:db8:1::10]:7000"] {
            udp(&place, to, 5).unwrap();
        }
    }
    world
}

fn govern(world: World) -> Governed {
    let cgroup = Cgroup::new("governed").unwrap();
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).resolvers(&[DNS_V4, DNS_V6]);
    let daemon = builder.start().unwrap();
    Governed { daemon, inside: world.node().in_cgroup(&cgroup), beside: world.node(), cgroup, world }
}

/// The cases of a family that this way can send, each with identifications of its own.
fn tried(way: Way, six: bool) -> Vec<(&'static str, Vec<Part>)> {
    let from = match (way.is_pods(), six) {
        (false, false) => NODE_V4,
        (false, true) => NODE_V6,
        (true, false) => POD_V4,
        (true, true) => POD_V6,
    };
    let of_six: &[Case] = if six { six::CASES } else { &[] };
    let sent = cases::CASES.iter().chain(of_six).filter(|case| !case.lies || way.keeps_lies(six));
    let make = |index: usize| Maker { from: from.parse().unwrap(), id: way as u32 * 0x1000 + 0x100 + index as u32 * 4 };
    sent.enumerate().map(|(index, case)| (case.name, (case.parts)(&make(index)))).collect()
}

/// The packet as every hop sees it: without the TTL, and without the checksum that covers it.
fn fixed(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[8] = 0;
        packet[10..12].fill(0);
    } else {
        packet[7] = 0;
    }
    packet
}

fn count(frames: &[Frame], packet: &[u8]) -> usize {
    let wanted = fixed(packet);
    frames.iter().filter(|frame| frame.bytes.len() >= 14 + 20 && fixed(&frame.bytes[14..]) == wanted).count()
}

/// Sends everything by one way and says, packet by packet, what arrived otherwise than expected.
fn differences(world: &World, governed: Option<&Governed>, way: Way, six: bool) -> Vec<String> {
    let cases = tried(way, six);
    let parts: Vec<&Part> = cases.iter().flat_map(|(_, parts)| parts).collect();
    let passes = |part: &Part| governed.is_none() || part.then == Then::Passes;
    let expected = |packet: &[u8]| parts.iter().filter(|part| passes(part) && part.packet == packet).count();
    world.sniffer.clear();
    let errors = way.send(world, governed, &parts);
    let start = Instant::now();
    let all_there = |frames: &[Frame]| parts.iter().all(|part| count(frames, &part.packet) >= expected(&part.packet));
    while !all_there(&world.sniffer.frames()) && start.elapsed() < patient(Duration::from_secs(8)) {
        std::thread::sleep(Duration::from_millis(5));
    }
    // For what is on its way and should not be.
    std::thread::sleep(Duration::from_millis(60));
    let frames = world.sniffer.frames();
    let mut wrong = Vec::new();
    let mut errors = errors.iter();
    for (name, parts) in &cases {
        for (index, part) in parts.iter().enumerate() {
            let (error, seen) = (errors.next().unwrap(), count(&frames, &part.packet));
            let what = format!("{way:?}, IPv{}: {name}, packet {index}", if six { 6 } else { 4 });
            if seen != expected(&part.packet) {
                wrong.push(format!("{what}: {seen} of it arrived, {} should: error {error}", expected(&part.packet)));
            }
            // A raw socket of the cgroup is told; below it nobody is.
            if way == Way::Raw && governed.is_some() && (*error == libc::EPERM) == passes(part) {
                wrong.push(format!("{what}: its sender got error {error}"));
            }
        }
    }
    wrong
}

#[test]
fn each_packet_leaves_without_enforcement() {
    let world = world();
    for way in WAYS {
        for six in [false, true] {
            let wrong = differences(&world, None, way, six);
            assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        }
    }
}

/// How many packets were dropped for each reason that only these tests' packets have.
fn dropped(test: &Governed) -> BTreeMap<String, u64> {
    let status = test.daemon.status().unwrap();
    let counters = status["counters"].as_array().unwrap().clone();
    let told = counters.iter().map(|counter| (counter["reason"].as_str().unwrap().to_owned(), counter));
    let counted = told.map(|(reason, counter)| (reason, counter["packets"].as_u64().unwrap()));
    counted.filter(|(reason, _)| REASONS.contains(&reason.as_str())).collect()
}

const REASONS: [&str; 4] = ["orphan-fragment", "malformed", "source-route", "bad-query"];

/// Every case, by every way: what arrives, what the sender is told, and what was counted as the reason.
fn judged(ways: &[Way]) {
    let test = govern(world());
    let mut wrong = Vec::new();
    for &way in ways {
        for six in [false, true] {
            let before = dropped(&test);
            wrong.extend(differences(&test.world, Some(&test), way, six));
            let after = dropped(&test);
            for reason in REASONS {
                let cases = tried(way, six);
                let parts = cases.iter().flat_map(|(_, parts)| parts);
                let expected = parts.filter(|part| part.then == Then::Drops(reason)).count() as u64;
                let of = |counts: &BTreeMap<String, u64>| counts.get(reason).copied().unwrap_or_default();
                let counted = of(&after) - of(&before);
                if counted != expected {
                    wrong.push(format!("{way:?}, six {six}: {counted} dropped as {reason}, {expected} should be"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn fragments_of_a_governed_process_are_judged() {
    judged(&[Way::Raw, Way::Packet]);
}

#[test]
fn fragments_at_the_uplink_are_judged_whoever_sends_them() {
    judged(&[Way::Beside, Way::BesidePacket]);
}

#[test]
fn forwarded_fragments_are_judged() {
    judged(&[Way::Forwarded, Way::Container]);
}
