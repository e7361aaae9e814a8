//! P5: segments of TCP that a container makes itself and the node forwards, so that no socket puts them in order (decision 0004).

use std::time::Duration;

use egress_tests::Governed;
use egress_tests::daemon::patient;
use egress_tests::model::wire::dns_query;
use egress_tests::probe::{V4, ipv4, send_ip};
use egress_tests::world::{DNS_V4, POD_V4};

use crate::{LIMIT, POLICY, world};

/// Of the stream's first byte.
const FIRST: u32 = 1000;

fn framed(name: &str) -> Vec<u8> {
    let message = dns_query(name);
    [&(message.len() as u16).to_be_bytes()[..], &message].concat()
}

/// A segment to the resolver with an acknowledgement, its payload `at` bytes from the stream's first one.
fn segment(at: usize, payload: &[u8]) -> Vec<u8> {
    let mut tcp = [40_000_u16.to_be_bytes(), 53_u16.to_be_bytes()].concat();
    tcp.extend((FIRST + at as u32).to_be_bytes());
    tcp.extend([0, 0, 0, 1, 5 << 4, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    ipv4(POD_V4.parse().unwrap(), DNS_V4.parse().unwrap(), &V4 { protocol: 6, ..V4::default() }, &tcp)
}

/// Segments that go over bytes which were sent before, and one with a message's length alone: each must be whole allowed
/// queries, wherever in the stream it stands.
#[test]
fn forwarded_segments_that_overlap_are_judged_each_by_itself() {
    let test = Governed::over(world(), POLICY).unwrap();
    let (good, evil) = (framed("aaaa.wild.example.com"), framed("aaaa.wild.example.org"));
    assert_eq!(good.len(), evil.len());
    let changed = (0..good.len()).find(|&at| good[at] != evil[at]).unwrap();
    // What it is, where it stands, its payload, whether it may leave.
    let sent: [(&str, usize, &[u8], bool); 9] = [
        ("a query", 0, &good, true),
        ("the same again", 0, &good, true),
        ("another name over it", 0, &evil, false),
        ("the end of another name over its end", changed, &evil[changed..], false),
        ("all but its length over it", 2, &evil[2..], false),
        ("a length alone, before the query it is of", good.len(), &evil[..2], false),
        ("a length alone, over the first", 0, &good[..2], false),
        ("half a length", good.len(), &good[..1], false),
        ("an allowed query, and over its end half of one", changed, &[&good[..], &evil[..20]].concat(), false),
    ];
    let bad_query = || {
        let status = test.daemon.status().unwrap();
        let counters = status["counters"].as_array().unwrap();
        let counted = counters.iter().filter(|counter| counter["reason"] == "bad-query");
        counted.map(|counter| counter["packets"].as_u64().unwrap()).sum::<u64>()
    };
    let before = bad_query();
    test.world.sniffer.clear();
    let packets: Vec<_> = sent.iter().map(|(_, at, payload, _)| segment(*at, payload)).collect();
    // What is allowed comes last too: when it is seen, what was sent before it would have been.
    let last = segment(good.len(), &good);
    test.world
        .pod()
        .fork(LIMIT, || {
            for packet in packets.iter().chain([&last]) {
                send_ip(packet, DNS_V4.parse()?)?;
            }
            Ok(())
        })
        .unwrap();
    // From the TCP header on nothing changes on the way.
    let count =
        |packet: &[u8]| test.world.sniffer.frames().iter().filter(|it| it.bytes.ends_with(&packet[20..])).count();
    let limit = patient(Duration::from_secs(5));
    let arrived = test.world.sniffer.wait_for(limit, |frame| frame.bytes.ends_with(&last[20..]));
    assert!(arrived.is_some(), "an allowed query did not arrive");
    test.world.sniffer.assert_none("a segment that is not whole allowed queries", |frame| {
        sent.iter().zip(&packets).any(|((.., passes), packet)| !passes && frame.bytes.ends_with(&packet[20..]))
    });
    assert_eq!(count(&packets[0]), 2, "a query that is sent again passes");
    // The other name is whole, and refused as a name.
    assert_eq!(bad_query() - before, 6, "{:#}", test.daemon.status().unwrap()["counters"]);
}
