//! What is tried in both families.

use egress_tests::probe::datagram;
use egress_tests::world::{DNS_V4, DNS_V6};

use crate::made::Then::{Drops, Passes};
use crate::made::{Case, Maker, TCP, UDP, ends_after, syn};

/// A datagram of 48 bytes: its header, and a payload that is like no header.
pub fn to_port(port: u16) -> Vec<u8> {
    datagram(40_000, port, &[0xee; 40])
}

const ORPHAN: crate::made::Then = Drops("orphan-fragment");
const MALFORMED: crate::made::Then = Drops("malformed");

pub const CASES: &[Case] = &[
    Case {
        name: "a datagram that a rule allows, in three",
        parts: |make| {
            let whole = to_port(7000);
            vec![
                make.cut(UDP, 0, true, &whole[..16], Passes),
                make.cut(UDP, 16, true, &whole[16..32], Passes),
                make.cut(UDP, 32, false, &whole[32..], Passes),
            ]
        },
        lies: false,
    },
    Case {
        name: "a TCP segment that a rule allows, in two",
        parts: |make| {
            vec![
                make.cut(TCP, 0, true, &[syn(5), vec![1; 4]].concat(), Passes),
                make.cut(TCP, 24, false, &[1; 24], Passes),
            ]
        },
        lies: false,
    },
    Case {
        name: "an echo request that a rule allows, in two",
        parts: |make| {
            let kind = if make.six() { 128 } else { 8 };
            vec![
                make.cut(make.icmp(), 0, true, &[kind, 0, 0, 0, 0, 9, 0, 1], Passes),
                make.cut(make.icmp(), 8, false, &[1; 16], Passes),
            ]
        },
        lies: false,
    },
    Case {
        name: "a forbidden port",
        parts: |make| {
            let whole = to_port(7001);
            vec![make.cut(UDP, 0, true, &whole[..24], Drops("no-port")), make.cut(UDP, 24, false, &whole[24..], ORPHAN)]
        },
        lies: false,
    },
    Case {
        name: "a forbidden address",
        parts: |make| {
            let (to, whole) = (make.denied(), to_port(7000));
            vec![
                make.cut_to(to, UDP, 0, true, &whole[..24], Drops("no-rule")),
                make.cut_to(to, UDP, 24, false, &whole[24..], ORPHAN),
            ]
        },
        lies: false,
    },
    Case {
        name: "a later fragment without a first one",
        parts: |make| vec![make.cut(UDP, 24, false, &[1; 24], ORPHAN), make.cut(UDP, 24, true, &[1; 24], ORPHAN)],
        lies: false,
    },
    Case {
        name: "the later fragment before the first one",
        parts: |make| {
            let whole = to_port(7000);
            vec![
                make.cut(UDP, 24, false, &whole[24..], ORPHAN),
                make.cut(UDP, 0, true, &whole[..24], Passes),
                make.cut(UDP, 24, false, &whole[24..], Passes),
            ]
        },
        lies: false,
    },
    Case {
        // RFC 1858, 3: the flags are in the second fragment.
        name: "a first fragment of eight bytes of TCP",
        parts: |make| {
            vec![make.cut(TCP, 0, true, &syn(6)[..8], MALFORMED), make.cut(TCP, 8, false, &[1; 16], MALFORMED)]
        },
        lies: false,
    },
    Case {
        name: "a first fragment of sixteen bytes of TCP",
        parts: |make| {
            vec![make.cut(TCP, 0, true, &syn(6)[..16], MALFORMED), make.cut(TCP, 16, false, &[1; 8], MALFORMED)]
        },
        lies: false,
    },
    Case {
        name: "a first fragment with half of TCP's options",
        parts: |make| {
            vec![make.cut(TCP, 0, true, &syn(10)[..24], MALFORMED), make.cut(TCP, 24, false, &[1; 16], ORPHAN)]
        },
        lies: false,
    },
    Case {
        // RFC 3128: whole headers first, and then over them. 16 overlaps the checksum and the urgent pointer.
        name: "fragments over the header of TCP",
        parts: |make| {
            vec![
                make.cut(TCP, 0, true, &[syn(5), vec![1; 4]].concat(), Passes),
                make.cut(TCP, 8, true, &[1; 8], MALFORMED),
                make.cut(TCP, 8, false, &[1; 32], MALFORMED),
                make.cut(TCP, 16, false, &[1; 32], MALFORMED),
                make.cut(TCP, 24, false, &[1; 8], Passes),
            ]
        },
        lies: false,
    },
    Case {
        // RFC 5722: what comes second would say another port.
        name: "a second first fragment, with a forbidden port",
        parts: |make| {
            let (good, bad) = (to_port(7000), to_port(7001));
            vec![
                make.cut(UDP, 0, true, &good[..24], Passes),
                make.cut(UDP, 0, true, &bad[..24], Drops("no-port")),
                make.cut(UDP, 0, true, &bad[..8], Drops("no-port")),
                make.cut(UDP, 0, false, &bad, Drops("no-port")),
            ]
        },
        lies: false,
    },
    Case {
        name: "later fragments of another datagram than the one that is allowed",
        parts: |make| {
            let other = Maker { id: make.id + 1, ..*make };
            let elsewhere = Maker { from: make.of("192.0.2.99", "3fff:0:0:1::99"), ..*make };
            vec![
                make.cut(UDP, 0, true, &to_port(7000)[..24], Passes),
                other.cut(UDP, 24, false, &[1; 24], ORPHAN),
                elsewhere.cut(UDP, 24, false, &[1; 24], ORPHAN),
                make.cut_to(make.denied(), UDP, 24, false, &[1; 24], ORPHAN),
                make.cut_to(make.of("203.0.113.11", "2001:db8:1::11"), UDP, 24, false, &[1; 24], ORPHAN),
                make.cut(TCP, 24, false, &[1; 24], ORPHAN),
                make.cut(make.icmp(), 24, false, &[1; 24], ORPHAN),
                make.cut(47, 24, false, &[1; 24], ORPHAN),
            ]
        },
        lies: false,
    },
    Case {
        name: "another protocol than TCP, UDP and ICMP",
        parts: |make| {
            vec![make.cut(47, 0, true, &[0; 16], Drops("protocol")), make.cut(47, 16, false, &[1; 16], ORPHAN)]
        },
        lies: false,
    },
    Case {
        // A query is read when it is whole, so that its name can be judged.
        name: "a query to a trusted resolver, in two",
        parts: |make| {
            let (to, query) = (make.of(DNS_V4, DNS_V6), egress_tests::model::wire::dns_query("allowed.example"));
            let whole = datagram(40_000, 53, &query);
            vec![
                make.cut_to(to, UDP, 0, true, &whole[..16], Drops("bad-query")),
                make.cut_to(to, UDP, 16, false, &whole[16..], ORPHAN),
            ]
        },
        lies: false,
    },
    Case {
        // The ports that are read stand behind the packet's end: its receiver takes them from the next fragment.
        name: "a first fragment that ends before its ports",
        parts: |make| {
            let header = if make.six() { 8 } else { 0 };
            vec![
                ends_after(make.cut(UDP, 0, true, &to_port(7000)[..24], MALFORMED), header),
                make.cut(UDP, 24, false, &[1; 8], ORPHAN),
                ends_after(make.cut(TCP, 0, true, &[syn(5), vec![1; 4]].concat(), MALFORMED), header + 8),
                make.cut(TCP, 24, false, &[1; 8], ORPHAN),
            ]
        },
        lies: true,
    },
];
