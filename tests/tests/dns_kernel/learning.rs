//! Names learned by the kernel: what an answer opens.

use egress_ebpf::abi::{
    CONTROL_FLIP, CONTROL_LEARN, CONTROL_RECLAIM, Config, ControlRecord, LearnCount, NEVER, NameValue, SLOTS,
};

use crate::{
    kernel::{CLIENT, Kernel, LIVE, PASS, PORT, RESOLVER, allow, mapped},
    wire::{
        self,
        Data::{Address, Cname},
    },
};

#[test]
fn answer_to_an_allowed_query_is_learned_once() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "www.example.com", allow(7));
    assert!(kernel.query(&wire::query(1, "www.example.com")));
    assert_eq!(kernel.pending(), 1);
    let answer = wire::answer(1, "www.example.com", &[("www.example.com", 30, Address("198.51.100.1"))]);
    kernel.answer(&answer);
    assert_eq!(kernel.classes(LIVE, "198.51.100.1"), [7]);
    assert_eq!(kernel.pending(), 0);
    let events = kernel.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].0.key.reversed(), b"moc.elpmaxe.www");
    assert_eq!((events[0].0.classes, events[0].1[0].ttl), ([7, 0, 0, 0], 30));
    kernel.answer(&answer);
    assert_eq!((kernel.count(LearnCount::Answers), kernel.count(LearnCount::Unasked)), (1, 1));
}

#[test]
fn sixty_four_addresses_of_both_families_are_learned() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "*.example.com", allow(7));
    let texts: Vec<_> =
        (0..64).map(|n| if n % 2 == 0 { format!("198.51.100.{n}") } else { format!("2001:db8::{n}") }).collect();
    let records: Vec<_> = texts.iter().map(|text| ("a.b.example.com", 30, Address(text))).collect();
    assert!(kernel.query(&wire::query(2, "a.b.example.com")));
    kernel.answer(&wire::answer(2, "a.b.example.com", &records));
    assert_eq!(kernel.addresses(), 64);
    assert!(texts.iter().all(|text| kernel.classes(LIVE, text) == [7]));
}

#[test]
fn wildcards_inside_a_label_match_within_it() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "*.blob.example", NameValue { inner_first: 3, inner_count: 2, ..NameValue::default() });
    kernel.inner(3, 5, "md-", "");
    kernel.inner(4, 6, "um", "x9");
    for (name, allowed) in [
        ("md-a.blob.example", true),
        ("MD-a.blob.example", true),
        ("md-.blob.example", false),
        ("a.md-a.blob.example", false),
        ("mx-a.blob.example", false),
        ("umx9.blob.example", false),
        ("um1x9.blob.example", true),
        ("um1x8.blob.example", false),
        ("blob.example", false),
        ("xmd-a.blob.example", false),
        ("md-0123456789012345678901234567890123456789.blob.example", true),
    ] {
        assert_eq!(kernel.query(&wire::query(3, name)), allowed, "{name}");
    }
}

/// P3: a wildcard inside a label says whether the names that it fits may have private addresses, with a class or without.
#[test]
fn wildcards_inside_a_label_say_who_may_have_private_addresses() {
    let mut kernel = Kernel::load();
    let value = NameValue { class: 7, inner_first: 3, inner_count: 2, ..NameValue::default() };
    kernel.name(LIVE, "*.inner.example", value);
    kernel.inner(3, 5, "md-", "");
    kernel.inner(4, 0, "pg-", "");
    kernel.inner_flags(4, NameValue::PRIVATE as u16);
    for (id, (name, classes)) in
        [("md-1.inner.example", &[][..]), ("pg-1.inner.example", &[7]), ("pg-.inner.example", &[])].iter().enumerate()
    {
        let (id, address) = (id as u16, format!("10.0.0.{id}"));
        assert!(kernel.query(&wire::query(id, name)));
        kernel.answer(&wire::answer(id, name, &[(name, 30, Address(&address))]));
        assert_eq!(kernel.classes(LIVE, &address), *classes, "{name}");
    }
}

#[test]
fn chain_counts_for_the_name_asked_and_its_targets_may_be_asked() {
    let mut kernel = Kernel::load();
    kernel.class(7, 70);
    kernel.name(LIVE, "shop.example", allow(7));
    kernel.name(LIVE, "a.cdn.test", allow(9));
    assert!(!kernel.query(&wire::query(4, "edge.cdn.test")));
    assert!(kernel.query(&wire::query(4, "shop.example")));
    kernel.answer(&wire::answer(
        4,
        "shop.example",
        &[
            ("shop.example", 300, Cname("a.cdn.test")),
            ("a.cdn.test", 20, Cname("edge.cdn.test")),
            ("edge.cdn.test", 60, Address("198.51.100.1")),
            ("other.cdn.test", 60, Address("198.51.100.66")),
        ],
    ));
    assert_eq!(kernel.classes(LIVE, "198.51.100.1"), [7]);
    assert_eq!(kernel.addresses(), 1);
    assert_eq!(kernel.events()[0].1[0].ttl, 20);
    // One query at a time: the target has its own class and the one of the name that leads to it.
    assert!(kernel.query(&wire::query(5, "Edge.CDN.test")));
    assert!(kernel.query(&wire::query(6, "a.cdn.test")));
    kernel.answer(&wire::answer(6, "a.cdn.test", &[("a.cdn.test", 60, Address("198.51.100.2"))]));
    assert_eq!(kernel.classes(LIVE, "198.51.100.2"), [9, 7]);
}

/// Section 1: a CNAME's target may be asked while the answer that led to it lives. Each target could lead to a next one, and so a class go
/// on for ever that was lent once.
#[test]
fn what_an_alias_teaches_ends_with_it() {
    let mut kernel = Kernel::load();
    kernel.config(Config {
        generation: LIVE + 1,
        epoch: LIVE + 1,
        flags: Config::ENFORCE | Config::QUERIES_ALLOWLISTED,
        ..Config::default()
    });
    assert_eq!(kernel.control(CONTROL_FLIP, LIVE + 1, &[]).0, 0);
    kernel.name(LIVE + 1, "shop.example", allow(7));
    kernel.class(7, 70);
    assert!(kernel.query(&wire::query(1, "shop.example")));
    kernel.answer(&wire::answer(1, "shop.example", &[("shop.example", 60, Cname("one.test"))]));
    let end = |ttl: u64| egress_user::datapath::boot_ticks() + ((ttl * 1_000_000_000) >> 30) as u32 + 2;
    for (name, next, address) in [("one.test", "two.test", "198.51.100.1"), ("two.test", "three.test", "198.51.100.2")]
    {
        assert!(kernel.query(&wire::query(2, name)));
        let records = [(name, 86_400, Cname(next)), (next, 86_400, Address(address))];
        kernel.answer(&wire::answer(2, name, &records));
        assert_eq!(kernel.classes(LIVE + 1, address), [7]);
        let expiry = kernel.events().pop().unwrap().1[0].expiry;
        assert!(expiry <= end(60), "{name}: {expiry}, {}", end(60));
    }
    // What the policy names is another matter, whatever leads to it.
    kernel.name(LIVE + 1, "three.test", allow(7));
    assert!(kernel.query(&wire::query(3, "three.test")));
    kernel.answer(&wire::answer(3, "three.test", &[("three.test", 86_400, Address("198.51.100.3"))]));
    assert!(kernel.events().pop().unwrap().1[0].expiry > end(80_000));
}

/// P4: the order of records says nothing (RFC 1034, 3.6; RFC 2181, 5), and some resolvers put the addresses that they had already before the
/// CNAMEs that lead there. Clients take them so: Go's, musl's and systemd's.
#[test]
fn a_chain_counts_in_whatever_order_its_records_come() {
    let records = || {
        [
            ("shop.example", 300, Cname("a.cdn.test")),
            ("a.cdn.test", 20, Cname("edge.cdn.test")),
            ("edge.cdn.test", 60, Address("198.51.100.1")),
            ("edge.cdn.test", 60, Address("198.51.100.2")),
            ("other.cdn.test", 60, Address("198.51.100.66")),
        ]
    };
    for order in [[2, 3, 4, 0, 1], [2, 4, 3, 1, 0], [4, 3, 1, 0, 2], [1, 2, 0, 4, 3]] {
        let mut kernel = Kernel::load();
        kernel.class(7, 70);
        kernel.name(LIVE, "shop.example", allow(7));
        assert!(kernel.query(&wire::query(4, "shop.example")));
        let mut records = records().map(Some);
        let records: Vec<_> = order.map(|at| records[at].take().unwrap()).into();
        kernel.answer(&wire::answer(4, "shop.example", &records));
        for address in ["198.51.100.1", "198.51.100.2"] {
            assert_eq!(kernel.classes(LIVE, address), [7], "{order:?}");
        }
        assert_eq!(kernel.addresses(), 2, "{order:?}");
        let (event, addresses) = kernel.events().pop().unwrap();
        assert_eq!((event.count, event.refused, event.aliases), (2, 1, 2), "{order:?}");
        assert!(addresses.iter().all(|found| found.ttl == 20), "{order:?}: {addresses:?}");
        assert!(kernel.query(&wire::query(5, "a.cdn.test")) && kernel.query(&wire::query(6, "edge.cdn.test")));
        assert!(!kernel.query(&wire::query(7, "other.cdn.test")));
    }
}

#[test]
fn uncompressed_owners_are_followed() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "shop.example", allow(7));
    let query = wire::query(4, "shop.example");
    assert!(kernel.query(&query));
    let (shop, cdn) = (wire::wire_name("SHOP.example"), wire::wire_name("cdn.test"));
    kernel.answer(&wire::raw_answer(
        &query,
        &[
            wire::record(&shop, 5, 1, 60, &cdn),
            wire::record(&cdn, 1, 1, 0xffff_ffff, &[198, 51, 100, 1]),
            wire::record(&shop, 1, 1, 60, &[198, 51, 100, 2]),
        ],
    ));
    assert_eq!((kernel.classes(LIVE, "198.51.100.1"), kernel.addresses()), (vec![7], 1));
    // RFC 2181, 8: a TTL with its top bit set is 0.
    assert_eq!(kernel.events()[0].1[0].ttl, 0);
}

/// Section 1: also where the target is a name of the policy's itself, or another alias leads there for longer: each class counts as long as
/// what lent it.
#[test]
fn what_an_alias_lends_to_a_name_of_the_policys_ends_with_it() {
    let mut kernel = Kernel::load();
    kernel.config(Config {
        generation: LIVE + 1,
        epoch: LIVE + 1,
        flags: Config::ENFORCE | Config::QUERIES_ALLOWLISTED,
        ..Config::default()
    });
    assert_eq!(kernel.control(CONTROL_FLIP, LIVE + 1, &[]).0, 0);
    for class in 7..10 {
        kernel.class(class, 10 * class);
    }
    kernel.name(LIVE + 1, "shop.example", allow(7));
    kernel.name(LIVE + 1, "long.example", allow(8));
    kernel.name(LIVE + 1, "one.test", allow(9));
    for (name, ttl) in [("shop.example", 60), ("long.example", 3600)] {
        assert!(kernel.query(&wire::query(1, name)));
        kernel.answer(&wire::answer(1, name, &[(name, ttl, Cname("one.test"))]));
    }
    assert!(kernel.query(&wire::query(2, "one.test")));
    kernel.answer(&wire::answer(2, "one.test", &[("one.test", 86_400, Address("198.51.100.1"))]));
    let end = |ttl: u64| egress_user::datapath::boot_ticks() + ((ttl * 1_000_000_000) >> 30) as u32 + 2;
    assert_eq!(kernel.classes(LIVE + 1, "198.51.100.1"), [9, 7, 8]);
    for (class, ttl) in [(7, 60), (8, 3600), (9, 86_400)] {
        let expiry = kernel.expiry(LIVE + 1, "198.51.100.1", class);
        assert!(expiry <= end(ttl) && expiry + 5 > end(ttl), "{class}: {expiry}, {}", end(ttl));
    }
}

#[test]
fn classes_with_the_same_ports_share_a_slot_and_the_later_expiry_counts() {
    let mut kernel = Kernel::load();
    for class in 1..=10 {
        kernel.class(class, class);
    }
    kernel.class(11, 1);
    let record = |class, expiry| ControlRecord { address: mapped("198.51.100.1"), class, expiry };
    let far = 1 << 30;
    let (result, results) = kernel.control(CONTROL_LEARN, LIVE, &[record(1, far), record(1, far), record(1, far + 1)]);
    assert_eq!((result, results), (0, [1, 1, 1, 0, 0, 0]));
    assert_eq!(kernel.control(CONTROL_LEARN, LIVE, &[record(11, far), record(11, NEVER)]).1, [1, 1, 0, 0, 0, 0]);
    assert_eq!(kernel.classes(LIVE, "198.51.100.1"), [11]);
    let more: Vec<_> = (2..=10).map(|class| record(class, far)).collect();
    assert_eq!(kernel.control(CONTROL_LEARN, LIVE, &more).1, [0, 0, 7, 2, 0, 0]);
    assert_eq!(kernel.classes(LIVE, "198.51.100.1").len(), SLOTS);
}

#[test]
fn only_dead_entries_are_reclaimed() {
    let mut kernel = Kernel::load();
    let record = |address, expiry| ControlRecord { address: mapped(address), class: 1, expiry };
    let all = [record("198.51.100.1", 0), record("2001:db8::1", 0), record("198.51.100.2", NEVER)];
    assert_eq!(kernel.control(CONTROL_LEARN, LIVE, &all).1, [0, 0, 3, 0, 0, 0]);
    assert_eq!(kernel.control(CONTROL_RECLAIM, LIVE, &all).1[..2], [2, 1]);
    assert_eq!((kernel.addresses(), kernel.classes(LIVE, "198.51.100.2")), (1, vec![1]));
}

/// P6: a full table takes nothing new, and gives nothing up that is in use; what is dead makes room.
#[test]
fn no_answer_counts_for_longer_than_a_week() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "www.example.com", allow(7));
    assert!(kernel.query(&wire::query(1, "www.example.com")));
    let ttl = i32::MAX as u32;
    kernel.answer(&wire::answer(1, "www.example.com", &[("www.example.com", ttl, Address("198.51.100.1"))]));
    let life = kernel.events()[0].1[0].expiry - egress_user::datapath::boot_ticks();
    // A tick is 2^30 ns; the grace comes on top.
    let week = ((604_800_u64 * 1_000_000_000) >> 30) as u32;
    assert!((week..week + 838 + 3).contains(&life), "{life} ticks");
}

#[test]
fn full_table_evicts_nothing_and_says_so() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "*.example.com", allow(7));
    let now = egress_user::datapath::boot_ticks();
    let record = |n: u32| {
        let [_, _, high, low] = n.to_be_bytes();
        let address = mapped(&format!("198.18.{high}.{low}"));
        // The first one is dead in ten minutes, the others are an exact name's.
        ControlRecord { address, class: 1, expiry: now + if n == 0 { 600 } else { 6000 } }
    };
    let all: Vec<_> = (0..1024).map(record).collect();
    for some in all.chunks(egress_ebpf::abi::CONTROL_RECORDS) {
        assert_eq!(kernel.control(CONTROL_LEARN, LIVE, some).1[2], some.len() as u32);
    }
    let ask = |kernel: &mut Kernel, id| {
        assert!(kernel.query(&wire::query(id, "a.example.com")));
        kernel.answer(&wire::answer(id, "a.example.com", &[("a.example.com", 30, Address("198.51.100.1"))]));
        kernel.classes(LIVE, "198.51.100.1")
    };
    assert!(ask(&mut kernel, 1).is_empty());
    assert_eq!((kernel.addresses(), kernel.count(LearnCount::MapFull)), (1024, 1));
    for some in all.chunks(egress_ebpf::abi::CONTROL_RECORDS) {
        assert_eq!(kernel.control(CONTROL_RECLAIM, LIVE, some).1[0], 0, "in use");
    }
    // Known addresses are still extended in a full table.
    let longer = ControlRecord { expiry: now + 9000, ..record(5) };
    assert_eq!(kernel.control(CONTROL_LEARN, LIVE, &[longer]).1[1], 1);
    let dead = ControlRecord { address: mapped("203.0.113.1"), class: 1, expiry: 0 };
    assert_eq!(kernel.control(CONTROL_LEARN, LIVE, &[dead]).1[4], 1, "not even a dead one goes in");
}

#[test]
fn control_refuses_what_it_does_not_know() {
    let mut kernel = Kernel::load();
    assert_eq!(kernel.control(99, LIVE, &[]).0, 22);
    assert_eq!(kernel.control(CONTROL_FLIP, 0, &[]).0, 22);
    assert!(!kernel.query(&wire::query(1, "a.example")) && kernel.addresses() == 0);
}

#[test]
fn staged_generation_learns_before_the_flip() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "www.example.com", allow(7));
    kernel.name(LIVE + 1, "www.example.com", allow(8));
    kernel.name(LIVE + 2, "www.example.com", allow(9));
    let flags = Config::ENFORCE | Config::QUERIES_ALLOWLISTED;
    let next =
        |generation| Config { generation, epoch: generation, flags, min_ttl: 56, grace: 838, ..Config::default() };
    kernel.config(next(LIVE + 1));
    assert!(kernel.query(&wire::query(1, "www.example.com")));
    kernel.answer(&wire::answer(1, "www.example.com", &[("www.example.com", 30, Address("198.51.100.1"))]));
    assert_eq!(kernel.classes(LIVE, "198.51.100.1"), [7]);
    assert_eq!(kernel.classes(LIVE + 1, "198.51.100.1"), [8]);
    // Two flips between a query and its answer.
    assert!(kernel.query(&wire::query(2, "www.example.com")));
    assert_eq!(kernel.control(CONTROL_FLIP, LIVE + 1, &[]).0, 0);
    kernel.config(next(LIVE + 2));
    assert_eq!(kernel.control(CONTROL_FLIP, LIVE + 2, &[]).0, 0);
    kernel.answer(&wire::answer(2, "www.example.com", &[("www.example.com", 30, Address("198.51.100.2"))]));
    assert_eq!(kernel.classes(LIVE + 2, "198.51.100.2"), [9]);
}

#[test]
fn tcp_segments_hold_whole_messages() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "www.example.com", allow(7));
    let framed = |message: &[u8]| [&(message.len() as u16).to_be_bytes(), message].concat();
    let mut sends =
        |payload: &[u8]| kernel.run("uplink_egress", &wire::tcp(CLIENT, PORT, RESOLVER, 53, payload)) == PASS;
    let (good, bad) = (framed(&wire::query(1, "www.example.com")), framed(&wire::query(2, "evil.test")));
    assert!(sends(&[]));
    assert!(sends(&good));
    assert!(sends(&[good.clone(), good.clone()].concat()));
    assert!(!sends(&bad));
    assert!(!sends(&[good.clone(), bad].concat()));
    assert!(!sends(&good[..2]));
    assert!(!sends(&good[..good.len() - 1]));
    assert!(!sends(&good[2..]));
}
