//! What must not be asked (P5) and must not be learned (P3).

use egress_ebpf::abi::{LearnCount, NameValue, RING_SLOTS};

use crate::{
    kernel::{CLIENT, DROP, Kernel, LIVE, PASS, PORT, RESOLVER, allow},
    wire::{self, Data::Address, raw_answer, raw_name, raw_query, record, wire_name},
};

fn kernel() -> Kernel {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "*.example.com", allow(7));
    kernel
}

const POINTER: &[u8] = &[0xc0, 12];
const EVIL: &[u8] = &[198, 51, 100, 66];

#[test]
fn malformed_and_forbidden_queries_do_not_leave() {
    let mut kernel = kernel();
    let name = wire_name("a.example.com");
    let one = [1, 0, 0, 0];
    assert!(kernel.query(&raw_query(1, one, &name, 1, 1, &[])));
    let opt = [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];
    assert!(kernel.query(&raw_query(1, [1, 0, 0, 1], &name, 28, 1, &opt)));
    let many = raw_name(&[&[b'a'; 1][..]; 127]);
    let forged = raw_name(&[b"evil.example", b"com"]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("another name", wire::query(1, "evil.test")),
        ("the apex", wire::query(1, "example.com")),
        ("a longer name that ends alike", wire::query(1, "badexample.com")),
        ("a tunnel", wire::query(1, "mfrggzdfmztwq2lkmfrggzdfmztwq2lk.t.evil.test")),
        ("a dot inside a label", raw_query(1, one, &forged, 1, 1, &[])),
        (
            "a dot inside a label below the suffix",
            raw_query(1, one, &raw_name(&[b"a.b", b"example", b"com"]), 1, 1, &[]),
        ),
        ("a 0 byte inside a label", raw_query(1, one, &raw_name(&[b"a\0b", b"example", b"com"]), 1, 1, &[])),
        ("a byte above 127", raw_query(1, one, &raw_name(&[b"a\xe1b", b"example", b"com"]), 1, 1, &[])),
        ("127 labels", raw_query(1, one, &many, 1, 1, &[])),
        ("the root", raw_query(1, one, &[0], 2, 1, &[])),
        ("256 octets", raw_query(1, one, &raw_name(&[&[b'a'; 63][..]; 4]), 1, 1, &[])),
        ("a pointer as question", raw_query(1, one, &[0xc0, 4], 1, 1, &[])),
        ("a pointer to itself", raw_query(1, one, &[0xc0, 12], 1, 1, &[])),
        ("a name with no end", raw_query(1, one, &name[..name.len() - 1], 1, 1, &[])),
        ("no question", raw_query(1, [0, 0, 0, 0], &name, 1, 1, &[])),
        ("two questions", raw_query(1, [2, 0, 0, 0], &name, 1, 1, &[&name[..], &[0, 1, 0, 1]].concat())),
        ("an answer in a query", raw_query(1, [1, 1, 0, 0], &name, 1, 1, &record(POINTER, 1, 1, 1, EVIL))),
        ("authority in a query", raw_query(1, [1, 0, 1, 0], &name, 1, 1, &record(POINTER, 1, 1, 1, EVIL))),
        (
            "an additional record that is not OPT",
            raw_query(1, [1, 0, 0, 1], &name, 1, 1, &record(&[0], 250, 1, 1, EVIL)),
        ),
        ("two OPT records", raw_query(1, [1, 0, 0, 2], &name, 1, 1, &[opt, opt].concat())),
        (
            "an OPT record that is too long",
            raw_query(1, [1, 0, 0, 1], &name, 1, 1, &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 1]),
        ),
        ("bytes behind OPT", raw_query(1, [1, 0, 0, 1], &name, 1, 1, &[&opt[..], b"x"].concat())),
        ("bytes behind the question", raw_query(1, one, &name, 1, 1, b"secret")),
        ("class CH", raw_query(1, one, &name, 1, 3, &[])),
        ("a header alone", raw_query(1, one, &[], 1, 1, &[])[..12].to_vec()),
        ("an answer", {
            let mut m = wire::query(1, "a.example.com");
            m[2] = 0x81;
            m
        }),
        ("opcode UPDATE", {
            let mut m = wire::query(1, "a.example.com");
            m[2] = 5 << 3;
            m
        }),
        ("more than 512 bytes", {
            let mut opt = opt.to_vec();
            opt[9..11].copy_from_slice(&480_u16.to_be_bytes());
            raw_query(1, [1, 0, 0, 1], &name, 1, 1, &[opt, vec![0; 480]].concat())
        }),
    ];
    for (what, message) in cases {
        assert!(!kernel.query(&message), "{what} left");
    }
    // Bytes between UDP's end and IP's.
    let mut packet = wire::udp(CLIENT, PORT, RESOLVER, 53, &wire::query(1, "a.example.com"));
    packet[24..26].copy_from_slice(&30_u16.to_be_bytes());
    assert_eq!(kernel.run("uplink_egress", &packet), DROP);
    assert!(kernel.query(&wire::query(9, "b.example.com")), "a neighbour's lookup still works");
}

/// P5: an answer that came in is nothing that a query could be the reply to.
#[test]
fn query_after_an_answer_is_judged_too() {
    let mut kernel = kernel();
    let query = wire::query(1, "a.example.com");
    assert!(kernel.query(&query));
    kernel.answer(&raw_answer(&query, &[record(POINTER, 1, 1, 60, &[198, 51, 100, 1])]));
    assert!(!kernel.query(&wire::query(2, "mfrggzdfmztwq2lkmfrggzdf.t.evil.test")));
    assert!(kernel.query(&wire::query(3, "b.example.com")));
}

#[test]
fn answers_that_nobody_waits_for_teach_nothing() {
    let mut kernel = kernel();
    let query = raw_query(1, [1, 0, 0, 0], &wire_name("aB.example.com"), 1, 1, &[]);
    assert!(kernel.query(&query));
    let evil = [record(POINTER, 1, 1, 60, EVIL)];
    let other = |id, name: &str, kind, class| {
        raw_answer(&raw_query(id, [1, 0, 0, 0], &wire_name(name), kind, class, &[]), &evil)
    };
    for (what, message) in [
        ("another id", other(2, "aB.example.com", 1, 1)),
        ("another name", other(1, "aC.example.com", 1, 1)),
        ("another case", other(1, "ab.example.com", 1, 1)),
        ("another type", other(1, "aB.example.com", 28, 1)),
        ("another class", other(1, "aB.example.com", 1, 3)),
        ("a longer name", other(1, "aB.example.com.test", 1, 1)),
        ("no question", {
            let mut m = raw_answer(&query, &evil);
            m[5] = 0;
            m
        }),
        ("two questions", {
            let mut m = raw_answer(&query, &evil);
            m[5] = 2;
            m
        }),
        ("a query", {
            let mut m = raw_answer(&query, &evil);
            m[2] = 1;
            m
        }),
    ] {
        kernel.answer(&message);
        assert_eq!(kernel.addresses(), 0, "{what} was believed");
    }
    let right = raw_answer(&query, &evil);
    for (source, port, local) in [([192, 0, 2, 54], 53, PORT), (RESOLVER, 53, PORT + 1)] {
        kernel.run("uplink_ingress", &wire::udp(source, port, CLIENT, local, &right));
        assert_eq!(kernel.addresses(), 0);
    }
    kernel.answer(&right);
    assert_eq!(kernel.addresses(), 1, "the real answer still counts");
    kernel.answer(&raw_answer(&query, &[record(POINTER, 1, 1, 60, &[198, 51, 100, 67])]));
    assert_eq!(kernel.addresses(), 1, "a second answer was believed");
}

#[test]
fn malformed_answers_teach_nothing_at_all() {
    let mut kernel = kernel();
    let query = wire::query(1, "a.example.com");
    let good = record(POINTER, 1, 1, 60, &[198, 51, 100, 1]);
    let end = query.len() as u16;
    let itself = [0xc0 | (end >> 8) as u8, end as u8];
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("A of 5 bytes", vec![good.clone(), record(POINTER, 1, 1, 60, &[1, 2, 3, 4, 5])]),
        ("AAAA of 4 bytes", vec![good.clone(), record(POINTER, 28, 1, 60, EVIL)]),
        ("a record cut short", vec![good.clone(), good[..good.len() - 1].to_vec()]),
        ("a record that is not there", vec![good.clone(), vec![]]),
        ("an owner that points at itself", vec![record(&itself, 1, 1, 60, EVIL), good.clone()]),
        ("an owner that points ahead", vec![record(&[0xc0, 0xff], 1, 1, 60, EVIL), good.clone()]),
        ("an owner that points into the header", vec![record(&[0xc0, 0], 1, 1, 60, EVIL), good.clone()]),
        ("a label of 64 bytes", vec![record(&[0x40; 66], 1, 1, 60, EVIL), good.clone()]),
        ("a CNAME shorter than its data", vec![record(POINTER, 5, 1, 60, &[1, b'a', 0, 0]), good.clone()]),
        ("a CNAME longer than its data", vec![record(POINTER, 5, 1, 60, &[3, b'a']), good.clone()]),
        (
            "nine CNAMEs",
            (0..9)
                .map(|n| {
                    let at = if n == 0 { 12 } else { query.len() + (n - 1) * 15 + 12 };
                    record(&[0xc0, at as u8], 5, 1, 60, &[1, b'a' + n as u8, 0])
                })
                .collect(),
        ),
    ];
    for (what, records) in cases {
        assert!(kernel.query(&query));
        let before = kernel.count(LearnCount::Malformed);
        kernel.answer(&raw_answer(&query, &records));
        assert_eq!(kernel.addresses(), 0, "{what} was believed");
        assert_eq!(kernel.count(LearnCount::Malformed), before + 1, "{what}");
    }
}

#[test]
fn records_off_the_chain_and_other_sections_teach_nothing() {
    let mut kernel = kernel();
    let query = wire::query(1, "a.example.com");
    let other = wire_name("bank.test");
    assert!(kernel.query(&query));
    let mut message = raw_answer(
        &query,
        &[
            record(&other, 1, 1, 60, EVIL),
            record(&other, 5, 1, 60, POINTER),
            record(POINTER, 1, 3, 60, EVIL),
            record(POINTER, 16, 1, 60, EVIL),
        ],
    );
    message[9] = 1;
    message[11] = 1;
    message.extend(record(POINTER, 1, 1, 60, EVIL));
    message.extend(record(POINTER, 1, 1, 60, EVIL));
    kernel.answer(&message);
    assert_eq!((kernel.addresses(), kernel.count(LearnCount::Answers)), (0, 1));
    assert!(!kernel.query(&wire::query(2, "bank.test")));
}

/// P5: urgent data is not part of the stream that the resolver reads, so nothing behind it is where it is judged to be.
#[test]
fn segments_with_urgent_data_are_refused() {
    const URG: u8 = 0x20;
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "www.example.com", allow(7));
    let query = wire::query(1, "www.example.com");
    let framed = [&(query.len() as u16).to_be_bytes(), &query[..]].concat();
    let mut sends = |flags: u8, payload: &[u8]| {
        let segment = wire::segment((CLIENT, PORT), (RESOLVER, 53), 1, flags, payload);
        kernel.run("uplink_egress", &segment) == PASS
    };
    for payload in [&framed[..], &[]] {
        assert!(sends(0x18, payload));
        assert!(!sends(0x18 | URG, payload), "{} bytes", payload.len());
    }
}

/// What a client writes while earlier segments are under way goes out as one; the messages of a segment are judged each.
#[test]
fn every_message_of_a_segment_is_judged() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "www.example.com", allow(7));
    let framed = |id, name: &str| {
        let query = wire::query(id, name);
        [&(query.len() as u16).to_be_bytes(), &query[..]].concat()
    };
    for count in [1, 2, 5, 15] {
        let good: Vec<u8> = (0..count).flat_map(|id| framed(id, "www.example.com")).collect();
        let mut sends =
            |payload: &[u8]| kernel.run("uplink_egress", &wire::tcp(CLIENT, PORT, RESOLVER, 53, payload)) == PASS;
        assert!(sends(&good), "{count}");
        assert!(!sends(&[good.clone(), framed(999, "evil.test")].concat()), "{count} and a forbidden one");
        assert!(!sends(&[good.clone(), vec![0]].concat()), "{count} and a byte");
    }
    let more: Vec<u8> = (0..17).flat_map(|id| framed(id, "www.example.com")).collect();
    assert_eq!(kernel.run("uplink_egress", &wire::tcp(CLIENT, PORT, RESOLVER, 53, &more)), DROP);
}

#[test]
fn only_sixty_four_records_are_read() {
    let mut kernel = kernel();
    let query = wire::query(1, "a.example.com");
    assert!(kernel.query(&query));
    let records: Vec<_> = (0..65).map(|n| record(POINTER, 1, 1, 60, &[198, 51, 100, n])).collect();
    kernel.answer(&raw_answer(&query, &records));
    assert_eq!(kernel.addresses(), 64);
    assert!(kernel.classes(LIVE, "198.51.100.64").is_empty());
}

#[test]
fn rebinding_answers_teach_nothing_unless_the_name_may() {
    let mut kernel = kernel();
    kernel.name(LIVE, "inside.example", NameValue { class: 8, flags: NameValue::PRIVATE, ..NameValue::default() });
    let addresses = [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.0.1",
        "192.168.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:198.51.100.1",
        "::10.0.0.1",
        "fe80::1",
        "fc00::1",
        "fdff::1",
        "fec0::1",
        "ff02::1",
        "64:ff9b::a00:1",
        "64:ff9b:1::a4d:4",
        "2002:a4d:5::1",
        "240.0.0.1",
    ];
    let all = |name| addresses.iter().map(|text| (name, 60, Address(text))).collect::<Vec<_>>();
    assert!(kernel.query(&wire::query(1, "a.example.com")));
    kernel.answer(&wire::answer(1, "a.example.com", &all("a.example.com")));
    assert_eq!(kernel.addresses(), 0);
    assert_eq!(kernel.count(LearnCount::Private), addresses.len() as u64);
    assert!(kernel.query(&wire::query(2, "inside.example")));
    kernel.answer(&wire::answer(2, "inside.example", &all("inside.example")));
    assert_eq!(kernel.addresses(), addresses.len());
}

/// P4: containers behind a translated address are one asker at the uplink; whose queries are answered pushes out no slower one's.
#[test]
fn queries_that_are_answered_push_none_out_that_waits() {
    let mut kernel = kernel();
    let slow = wire::query(1, "slow.example.com");
    assert!(kernel.query(&slow));
    for id in 0..3 * RING_SLOTS as u16 {
        let query = wire::query(id + 2, "quick.example.com");
        assert!(kernel.query(&query));
        kernel.answer(&raw_answer(&query, &[record(POINTER, 1, 1, 60, &[198, 51, 100, 1])]));
    }
    assert_eq!((kernel.count(LearnCount::Displaced), kernel.pending()), (0, 1));
    kernel.answer(&raw_answer(&slow, &[record(POINTER, 1, 1, 60, &[198, 51, 100, 2])]));
    assert_eq!((kernel.addresses(), kernel.pending(), kernel.waiting()), (2, 0, 0));
}

// All runs of BPF_PROG_TEST_RUN have one cgroup: that a neighbour in another one keeps its queries is for a test with
// attached programs.
#[test]
fn flood_of_one_asker_is_bounded_and_its_last_queries_still_count() {
    let mut kernel = kernel();
    let last = 3 * RING_SLOTS as u16;
    for id in 0..=last {
        assert!(kernel.query(&wire::query(id, "a.example.com")));
    }
    assert_eq!(kernel.pending(), RING_SLOTS);
    assert_eq!(kernel.count(LearnCount::Displaced), 2 * RING_SLOTS as u64 + 1);
    kernel.answer(&raw_answer(&wire::query(0, "a.example.com"), &[record(POINTER, 1, 1, 60, EVIL)]));
    assert_eq!(kernel.addresses(), 0);
    assert_eq!((kernel.pending(), kernel.waiting()), (RING_SLOTS, RING_SLOTS));
    kernel.answer(&raw_answer(&wire::query(last, "a.example.com"), &[record(POINTER, 1, 1, 60, EVIL)]));
    assert_eq!(kernel.addresses(), 1);
    // What was answered gives its slot back, and the others keep theirs.
    assert_eq!((kernel.pending(), kernel.waiting()), (RING_SLOTS - 1, RING_SLOTS - 1));
}
