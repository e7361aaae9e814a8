//! The parsers on the host, against hickory-proto.

use hickory_proto::{
    op::{Message as Reference, MessageType, OpCode, Query},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, CNAME},
    },
    serialize::binary::BinEncodable,
};
use proptest::prelude::*;

use super::{Matching, NameTable, Work, answer_id, find, is_private, parse_answer, question, same_question};
use crate::abi::{Address, AddressEntry, Alias, InnerWildcard, KeyBuffer, NameValue, SLOTS, Slot, Ticks};

fn work(message: &[u8]) -> Box<Work> {
    // SAFETY: every field is an integer or an array of them, for which zeros are a value.
    let mut work: Box<Work> = unsafe { Box::new_zeroed().assume_init() };
    load(&mut work, message);
    work
}

fn load(work: &mut Work, message: &[u8]) {
    work.message.bytes[..message.len()].copy_from_slice(message);
    work.message.len = message.len() as u64;
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Reference::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_bytes().unwrap()
}

/// Reads a query, then an answer to it, as the programs do; `None` where either is refused.
fn learned(query: &[u8], answer: &[u8]) -> Option<Vec<(Address, u32)>> {
    let mut work = work(query);
    if !question(&mut work) {
        return None;
    }
    work.event.key = work.pending.key;
    load(&mut work, answer);
    answer_id(&work.message)?;
    let Work { message, pending, differ, .. } = &mut *work;
    if !same_question(message, pending, differ) {
        return None;
    }
    let wire_len = u64::from(work.pending.wire_len);
    parse_answer((), &mut work, wire_len, 0).then(|| {
        let count = work.answer.count as usize;
        work.event.addresses[..count].iter().map(|found| (found.address, found.ttl)).collect()
    })
}

fn label() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_][a-zA-Z0-9_-]{0,18}[a-zA-Z0-9]"
}

proptest! {
    #[test]
    fn key_is_the_name_reversed_in_lower_case(labels in proptest::collection::vec(label(), 1..8)) {
        let name = labels.join(".");
        let mut work = work(&query(&format!("{name}.")));
        prop_assert!(question(&mut work));
        let expected: Vec<u8> = name.to_ascii_lowercase().bytes().rev().collect();
        let key = &work.pending.key;
        prop_assert_eq!((key.reversed(), key.plain, key.first), (&expected[..], 1, labels[0].len() as u64));
        prop_assert!(key.name[expected.len()..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn chain_and_addresses_are_what_was_encoded(
        names in proptest::collection::vec(proptest::collection::vec(label(), 1..5), 1..8),
        addresses in proptest::collection::vec((any::<[u8; 3]>(), 0_u32..0x8000_0000), 0..30),
        ttls in proptest::collection::vec(0_u32..0x8000_0000, 8),
    ) {
        let name = |n: usize| Name::from_ascii(format!("{}.n{n}.", names[n].join("."))).unwrap();
        let mut message = Reference::new(7, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name(0), RecordType::A));
        let mut least = u32::MAX;
        for (n, ttl) in (1..names.len()).zip(ttls) {
            message.add_answer(Record::from_rdata(name(n - 1), ttl, RData::CNAME(CNAME(name(n)))));
            least = least.min(ttl);
        }
        let mut expected = Vec::new();
        for (bytes, ttl) in addresses {
            let address = [198, bytes[0], bytes[1], bytes[2]];
            message.add_answer(Record::from_rdata(name(names.len() - 1), ttl, RData::A(A(address.into()))));
            expected.push((Address::v4(address), ttl.min(least)));
        }
        let query = query(&name(0).to_ascii());
        prop_assert_eq!(learned(&query, &message.to_bytes().unwrap()), Some(expected));
    }

    #[test]
    fn records_may_come_in_any_order(
        order in (1_usize..=9, 1_usize..10).prop_flat_map(|(names, addresses)| {
            (Just(names), Just((0..names - 1 + addresses).collect::<Vec<_>>()).prop_shuffle())
        }),
        ttls in proptest::collection::vec(0_u32..0x8000_0000, 9),
    ) {
        let (names, order) = order;
        let name = |n: usize| Name::from_ascii(format!("n{n}.example.com.")).unwrap();
        let mut message = Reference::new(7, MessageType::Response, OpCode::Query);
        message.add_query(Query::query(name(0), RecordType::A));
        let least = ttls[..names - 1].iter().copied().min().unwrap_or(u32::MAX).min(1000);
        let mut expected = Vec::new();
        for at in order {
            // Records of the chain come first by number, then the addresses at its end.
            let (owner, ttl, data) = if at < names - 1 {
                (at, ttls[at], RData::CNAME(CNAME(name(at + 1))))
            } else {
                expected.push((Address::v4([198, 51, 100, at as u8]), least));
                (names - 1, 1000, RData::A(A([198, 51, 100, at as u8].into())))
            };
            message.add_answer(Record::from_rdata(name(owner), ttl, data));
        }
        prop_assert_eq!(learned(&query(&name(0).to_ascii()), &message.to_bytes().unwrap()), Some(expected));
    }

    #[test]
    fn any_bytes_are_read_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..600), cut in 0_usize..64) {
        let _ = question(&mut work(&bytes));
        let query = query("www.example.com.");
        let mut answer = query.clone();
        answer[2] = 0x81;
        answer[7] = 20;
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 51, 100, 1]);
        answer.extend_from_slice(&bytes);
        answer.truncate(answer.len() - cut.min(bytes.len()));
        let _ = learned(&query, &answer);
    }
}

#[test]
fn public_neighbours_of_private_ranges_are_public() {
    for public in [
        "1.0.0.0",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "223.255.255.255",
    ] {
        assert!(!is_private(&Address::v4(public.parse::<std::net::Ipv4Addr>().unwrap().octets())), "{public}");
    }
    for public in [
        "2001:db8::1",
        "fbff::1",
        "fe00::1",
        "64:ff9b::c633:6401",
        "64:ff9a:ffff:ffff::1",
        "64:ff9b:2::1",
        "2001:ffff::1",
        "2002:c633:6401::1",
        "2003:a00:1::1",
    ] {
        assert!(!is_private(&Address::v6(public.parse::<std::net::Ipv6Addr>().unwrap().octets())), "{public}");
    }
}

/// One name of class 9, which class 7 leads to; classes above 7 stand, and class 7 if that is said.
struct Led {
    alias: Alias,
    stands: bool,
}

impl NameTable for Led {
    fn name(&self, _key: &KeyBuffer, _generation: u32) -> Option<NameValue> {
        Some(NameValue { class: 9, ..NameValue::default() })
    }

    fn inner(&self, _index: u32) -> Option<&InnerWildcard> {
        None
    }

    fn alias(&self, _key: &KeyBuffer) -> Option<&Alias> {
        Some(&self.alias)
    }

    fn stands(&self, class: u32, _generation: u32) -> bool {
        class > 7 || self.stands
    }
}

/// P3: private addresses come by a name that another one leads to as long as it leads there, no longer.
#[test]
fn what_leads_nowhere_lends_no_private_addresses() {
    const NOW: Ticks = 100;
    let mut slots = [0; SLOTS];
    for (expiry, stands, private) in
        [(NOW + 1, true, NameValue::PRIVATE), (NOW, true, 0), (NOW + 1, false, 0), (NOW, false, 0)]
    {
        slots[0] = Slot { class: 7, expiry }.pack();
        let led = Led { alias: Alias { entry: AddressEntry { slots }, flags: NameValue::PRIVATE, pad: 0 }, stands };
        let (mut matching, mut differ) = (Matching::default(), 0);
        find(&led, &KeyBuffer::EMPTY, 1, NOW, &mut matching, &mut differ);
        let classes = if private != 0 { [9, 7, 0, 0] } else { [9, 0, 0, 0] };
        assert_eq!((matching.flags, matching.classes), (private, classes), "until {expiry}, stands: {stands}");
    }
}
