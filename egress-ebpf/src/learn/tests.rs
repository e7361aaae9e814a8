//! Slots and expiries.

use std::{cell::RefCell, collections::HashMap};

use super::{Addresses, DELETING, Inserted, Learning, Outcome, bury, end, expiry, learn};
use crate::abi::{Address, AddressEntry, NEVER, SLOTS, Slot};

#[derive(Default)]
struct Table(RefCell<HashMap<Address, &'static AddressEntry>>);

impl Addresses for Table {
    fn entry(&self, address: &Address, _epoch: u32) -> Option<&AddressEntry> {
        self.0.borrow().get(address).copied()
    }

    fn insert(&self, address: &Address, _epoch: u32, entry: &AddressEntry) -> Inserted {
        self.0.borrow_mut().insert(*address, Box::leak(Box::new(*entry)));
        Inserted::Yes
    }

    fn replaces(&self, class: u32, other: u32) -> bool {
        class % 100 == other % 100
    }
}

const NOW: u32 = 1000;

#[test]
fn expiry_is_never_short_and_never_never() {
    assert_eq!(expiry(NOW, 0, 0, 0), NOW + 1);
    assert_eq!(expiry(NOW, 1, 0, 0), NOW + 2);
    assert_eq!(expiry(NOW, 1, 56, 838), NOW + 1 + 56 + 838);
    assert_eq!(expiry(NOW, 3600, 56, 838), NOW + 1 + 3353 + 838);
    assert_eq!(expiry(u32::MAX - 2, u32::MAX, 0, u32::MAX), NEVER - 1);
}

#[test]
fn dead_slots_are_used_again_and_full_ones_are_not() {
    let table = Table::default();
    let put =
        |class, expiry| learn(&table, &Address::v6([1; 16]), 1, Slot { class, expiry }, NOW, &mut Learning::default());
    assert_eq!(put(1, NOW), Outcome::Added);
    for class in 2..=SLOTS as u32 {
        assert_eq!(put(class, NOW + 5), Outcome::Added);
    }
    assert_eq!(put(9, NOW + 5), Outcome::Added, "in the slot that was dead from the start");
    assert_eq!(put(10, NOW + 5), Outcome::SlotsFull);
    assert_eq!(put(102, NOW + 4), Outcome::Unchanged, "shares the ports of class 2");
    assert_eq!(put(102, NOW + 6), Outcome::Extended);
}

#[test]
fn entry_that_is_being_deleted_is_not_written() {
    let table = Table::default();
    let put =
        |class, expiry| learn(&table, &Address::v6([1; 16]), 1, Slot { class, expiry }, NOW, &mut Learning::default());
    assert_eq!(put(1, NOW), Outcome::Added);
    let entry = table.0.borrow()[&Address::v6([1; 16])];
    assert!(bury(entry, NOW));
    assert_eq!(super::read(entry, 0), Slot { class: DELETING, expiry: 0 }.pack());
    assert_eq!(put(1, NOW + 5), Outcome::Again);
    assert!(!bury(entry, NOW), "twice");
}

#[test]
fn entry_with_a_living_slot_stays_as_it_is() {
    let table = Table::default();
    let put =
        |class, expiry| learn(&table, &Address::v6([1; 16]), 1, Slot { class, expiry }, NOW, &mut Learning::default());
    assert_eq!((put(1, NOW + 1), put(2, NOW + 9)), (Outcome::Added, Outcome::Added));
    let entry = table.0.borrow()[&Address::v6([1; 16])];
    let before = entry.slots;
    assert!(!bury(entry, NOW + 5));
    assert_eq!(entry.slots, before);
    assert!(bury(entry, NOW + 9));
}

/// An entry that was deleted between the look and the write, its memory another address's by then.
#[test]
fn what_was_written_into_anothers_entry_is_taken_back() {
    struct Moved(&'static AddressEntry, Table);
    impl Addresses for Moved {
        fn entry(&self, address: &Address, epoch: u32) -> Option<&AddressEntry> {
            let first = self.1.0.borrow().is_empty();
            self.1.insert(address, epoch, &AddressEntry { slots: [0; SLOTS] });
            if first { Some(self.0) } else { None }
        }
        fn insert(&self, _: &Address, _: u32, _: &AddressEntry) -> Inserted {
            Inserted::Exists
        }
        fn replaces(&self, class: u32, other: u32) -> bool {
            class == other
        }
    }
    let others = Box::leak(Box::new(AddressEntry { slots: [0; SLOTS] }));
    others.slots[0] = Slot { class: 7, expiry: NOW + 60 }.pack();
    let before = others.slots;
    let moved = Moved(others, Table::default());
    let slot = Slot { class: 1, expiry: NOW + 5 };
    assert_eq!(learn(&moved, &Address::v6([1; 16]), 1, slot, NOW, &mut Learning::default()), Outcome::Again);
    assert_eq!(moved.0.slots, before);
}

/// P4: what S3 and CDNs do, over a day: 8 of 400 addresses in each answer, TTL 5 s, other ones every six hours. Whoever has an
/// answer, or has had it for less than TTL and grace, reaches all of it; and the table stays small.
#[test]
fn a_day_of_rotation_loses_no_flow() {
    const DAY: u32 = 80_466;
    const POOL: u32 = 400;
    // As with the defaults of a policy: `dns.minTtl` of a minute, `dns.grace` of a quarter of an hour.
    let (min_ttl, grace) = (56, 838);
    let table = Table::default();
    let address = |number: u32| Address::v4((0x1400_0000 + number).to_be_bytes());
    let mut known: HashMap<u32, u32> = HashMap::new();
    let mut most = 0;
    for now in NOW..NOW + DAY {
        let pool = (now - NOW) * 4 / DAY * POOL;
        for n in 0..8 {
            let number = pool + (now * 8 + n).wrapping_mul(7919) % POOL;
            let slot = Slot { class: 1, expiry: expiry(now, 5, min_ttl, grace) };
            let outcome = learn(&table, &address(number), 1, slot, now, &mut Learning::default());
            assert!(matches!(outcome, Outcome::Added | Outcome::Extended | Outcome::Unchanged), "{outcome:?}");
            known.insert(number, now);
        }
        if now.is_multiple_of(56) {
            table.0.borrow_mut().retain(|_, entry| !bury(entry, now));
            most = most.max(table.0.borrow().len());
        }
        if now.is_multiple_of(16) {
            known.retain(|_, learned| now - *learned <= min_ttl + grace);
            for (number, learned) in &known {
                let entry = table.entry(&address(*number), 1).expect("it was reclaimed too early");
                assert!(Slot::unpack(entry.slots[0]).lives(now), "{} ticks old", now - learned);
            }
        }
    }
    assert!(most <= 2 * POOL as usize, "{most} entries");
    let last = address(3 * POOL).v4_bytes();
    assert!(table.0.borrow().keys().all(|key| key.v4_bytes() >= last), "what nobody gives any more is gone");
}

#[test]
fn a_class_that_ended_lives_no_more_and_the_others_do() {
    let table = Table::default();
    let address = Address::v6([1; 16]);
    let put = |class, expiry| learn(&table, &address, 1, Slot { class, expiry }, NOW, &mut Learning::default());
    assert_eq!((put(1, NEVER), put(2, NOW + 9)), (Outcome::Added, Outcome::Added));
    let entry = table.0.borrow()[&address];
    assert!(end(entry, 1, NOW) && !end(entry, 1, NOW) && !end(entry, 3, NOW));
    let lives = entry.slots.map(|slot| Slot::unpack(slot).lives(NOW));
    assert_eq!(lives[..3], [false, true, false]);
    assert!(!bury(entry, NOW) && bury(entry, NOW + 9));
}
