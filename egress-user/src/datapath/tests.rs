//! Generations in the kernel's own maps, with nothing attached. Needs root.

use std::time::Duration;

use egress_ebpf::abi::{Flow, FlowKey, Live, ORIGIN_IN};

use super::{confirm::deadline_after, *};
use crate::policy::{Compiled, Sources, load};

fn policy(items: &[&str]) -> Compiled {
    let allow = items.iter().map(|item| (*item).to_owned()).collect();
    load(&Sources { allow, ..Sources::default() }).unwrap().compiled
}

fn datapath() -> Datapath {
    let sizes = Sizes { addresses: 64, prefixes: 64, classes: 64, grants: 64, names: 64, inner: 64, flows: 64 };
    Datapath::new(Object::load(&sizes, None).expect("the object loads: needs root")).unwrap()
}

fn addresses(datapath: &Datapath, epoch: u32) -> usize {
    datapath.addresses_4.keys().unwrap().iter().filter(|key| key.epoch == epoch).count()
}

const A: &[&str] = &["192.0.2.1:80", "192.0.2.2:80"];
const B: &[&str] = &["192.0.2.1:80", "192.0.2.3:80", "192.0.2.4:80"];

#[test]
fn an_installation_leaves_one_generation_and_is_adopted() {
    let mut datapath = datapath();
    let settings = Settings::default();
    let first = datapath.install(&policy(A), &settings, &[]).unwrap();
    let second = datapath.install(&policy(B), &settings, &[]).unwrap();
    assert!(second.generation > first.generation && second.generation & 1 != first.generation & 1);
    assert_eq!((addresses(&datapath, first.epoch), addresses(&datapath, second.epoch)), (0, 3));
    // The grant that stands keeps its index.
    assert_eq!(first.grants[0], second.grants[0]);
    assert_eq!(datapath.adopt(&policy(B), &settings).unwrap(), Some(second));
    assert_eq!(datapath.adopt(&policy(A), &settings).unwrap(), None);
}

#[test]
fn what_does_not_fit_changes_nothing() {
    let mut datapath = datapath();
    let settings = Settings::default();
    let first = datapath.install(&policy(A), &settings, &[]).unwrap();
    let many: Vec<String> = (0..40).map(|last| format!("198.51.100.{last}:80")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert!(matches!(datapath.install(&policy(&many), &settings, &[]), Err(Error::Full { .. })));
    assert_eq!(datapath.generation().unwrap(), first.generation);
    assert_eq!(datapath.adopt(&policy(A), &settings).unwrap(), Some(first));
}

#[test]
fn a_trial_ends_by_rollback_as_if_it_had_not_been() {
    let mut datapath = datapath();
    let settings = Settings::default();
    let first = datapath.install(&policy(A), &settings, &[]).unwrap();
    let before: Vec<_> = (0..64).map(|index| datapath.grants.get(&index).unwrap()).collect();
    let trial = datapath.install_for(&policy(B), &settings, &Vec::new, Some(Duration::from_secs(60))).unwrap();
    assert!(matches!(datapath.settle().unwrap(), Settled::Pending(_)));
    assert!(matches!(datapath.install(&policy(A), &settings, &[]), Err(Error::Unconfirmed)));
    assert_eq!((addresses(&datapath, first.epoch), addresses(&datapath, trial.epoch)), (2, 3));
    assert_eq!(datapath.roll_back().unwrap(), first.generation);
    let after: Vec<_> = (0..64).map(|index| datapath.grants.get(&index).unwrap()).collect();
    assert_eq!(before, after);
    assert_eq!((addresses(&datapath, first.epoch), addresses(&datapath, trial.epoch)), (2, 0));
    assert_eq!(datapath.adopt(&policy(A), &settings).unwrap(), Some(first.clone()));
    // A number with verdicts to its name is not used again, and the halves of the arrays take turns.
    let next = datapath.install(&policy(B), &settings, &[]).unwrap();
    assert!(next.generation > trial.generation && next.generation & 1 != first.generation & 1);
}

#[test]
fn a_trial_ends_by_its_deadline_and_stays_when_confirmed() {
    let mut datapath = datapath();
    let settings = Settings::default();
    let first = datapath.install(&policy(A), &settings, &[]).unwrap();
    let trial = datapath.install_for(&policy(B), &settings, &Vec::new, Some(Duration::from_secs(60))).unwrap();
    // As if the time had passed: the daemon reads the word as the programs do.
    let word = Live { generation: trial.generation, deadline: boot_ticks() }.pack();
    datapath.live.set(&0, &word, sys::ANY).unwrap();
    assert_eq!(datapath.generation().unwrap(), first.generation);
    assert!(matches!(datapath.confirm(), Err(Error::NothingPending)));
    assert_eq!(datapath.live().unwrap(), Live { generation: first.generation, deadline: 0 });

    let trial = datapath.install_for(&policy(B), &settings, &Vec::new, Some(Duration::from_secs(60))).unwrap();
    assert_eq!(datapath.confirm().unwrap(), trial.generation);
    assert_eq!(datapath.settle().unwrap(), Settled::Nothing);
    assert_eq!((addresses(&datapath, first.epoch), addresses(&datapath, trial.epoch)), (0, 3));
}

#[test]
fn a_trials_time_begins_with_the_flip() {
    let mut datapath = datapath();
    let settings = Settings::default();
    datapath.install(&policy(A), &settings, &[]).unwrap();
    // As if it took longer to write than the trial is to last.
    let slow = || {
        std::thread::sleep(Duration::from_millis(2500));
        Vec::new()
    };
    let named = policy(&["a.example.com:80"]);
    let trial = datapath.install_for(&named, &settings, &slow, Some(Duration::from_secs(1))).unwrap();
    assert_eq!(datapath.generation().unwrap(), trial.generation);
}

#[test]
fn a_deadline_is_at_most_one_tick_late_and_never_early() {
    for wait in [1, 2, 59, 3600] {
        let wait = Duration::from_secs(wait);
        let now = Duration::from(nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap());
        let end = Duration::from_nanos(u64::from(deadline_after(wait)) << egress_ebpf::abi::TICK_SHIFT);
        let late = end.saturating_sub(now + wait);
        assert!(end >= now + wait && late < Duration::from_millis(1100), "{late:?}");
    }
}

/// The expiry of an address' slots in an epoch.
fn expiries(datapath: &Datapath, address: [u8; 4], epoch: u32) -> Vec<u32> {
    let key = egress_ebpf::abi::AddressKey4 { address, epoch };
    let entry = datapath.addresses_4.get(&key).unwrap().unwrap_or_default();
    entry.slots.into_iter().filter(|slot| *slot != 0).map(|slot| egress_ebpf::abi::Slot::unpack(slot).expiry).collect()
}

#[test]
fn a_learned_address_is_carried_over_where_its_name_opens_the_same() {
    let mut datapath = datapath();
    let settings = Settings::default();
    let old = policy(&["a.example.com:80", "b.example.com:80"]);
    datapath.install(&old, &settings, &[]).unwrap();
    let soon = boot_ticks() + 100;
    let learned = |name: &str, address: [u8; 4], expiry| Learned {
        name: name.to_owned(),
        addresses: vec![(address.into(), expiry)],
    };
    let (stays, goes, late) = ([192, 0, 2, 10], [192, 0, 2, 11], [192, 0, 2, 12]);
    assert_eq!(datapath.learn(&old, &[learned("a.example.com", stays, soon)]).unwrap(), 1);
    assert_eq!(datapath.learn(&old, &[learned("b.example.com", goes, soon)]).unwrap(), 1);
    assert_eq!(datapath.learn(&old, &[learned("a.example.com", late, boot_ticks().saturating_sub(1))]).unwrap(), 1);
    assert_eq!(datapath.learn(&old, &[learned("c.example.com", stays, soon)]).unwrap(), 0);
    let new = policy(&["a.example.com:80", "c.example.com:80"]);
    let next = datapath.install(&new, &settings, &[]).unwrap().epoch;
    assert_eq!(expiries(&datapath, stays, next), [soon]);
    assert_eq!(datapath.open_until(&new, "a.example.com", &[stays.into()]).unwrap(), [Some(soon)]);
    assert_eq!(datapath.open_until(&new, "c.example.com", &[stays.into()]).unwrap(), [None]);
    assert_eq!(expiries(&datapath, goes, next), [0; 0]);
    assert_eq!(expiries(&datapath, late, next), [0; 0]);
    assert_eq!(addresses(&datapath, next), 1);
}

#[test]
fn what_a_cut_short_installation_left_is_swept() {
    let mut datapath = datapath();
    let settings = Settings::default();
    let first = datapath.install(&policy(A), &settings, &[]).unwrap();
    // As if the daemon had died before the flip.
    let live = datapath.live.get(&0).unwrap().unwrap();
    let left = datapath.install_for(&policy(B), &settings, &Vec::new, Some(Duration::from_secs(60))).unwrap();
    datapath.live.set(&0, &live, sys::ANY).unwrap();
    assert_eq!((addresses(&datapath, first.epoch), addresses(&datapath, left.epoch)), (2, 3));
    let next = datapath.install(&policy(A), &settings, &[]).unwrap();
    assert_ne!(next.generation, left.generation);
    assert_eq!((addresses(&datapath, left.epoch), addresses(&datapath, next.epoch)), (0, 2));
    assert_eq!(datapath.adopt(&policy(A), &settings).unwrap(), Some(next));
}

#[test]
fn what_is_not_read_back_as_written_is_not_adopted() {
    let mut datapath = datapath();
    let settings = Settings::default();
    let named = policy(&["a.example.com:80", "192.0.2.1:80"]);
    let first = datapath.install(&named, &settings, &[]).unwrap();
    assert_eq!(datapath.adopt(&named, &settings).unwrap(), Some(first));
    let key = datapath.names.keys().unwrap()[0];
    let value = datapath.names.get(&key).unwrap().unwrap();
    datapath.names.remove_where(|known| *known == key).unwrap();
    assert_eq!(datapath.adopt(&named, &settings).unwrap(), None);
    let other = egress_ebpf::abi::NameValue { class: value.now.class + 1, ..value.now };
    datapath.names.set(&key, &egress_ebpf::abi::NameEntry::new(other), sys::ANY).unwrap();
    assert_eq!(datapath.adopt(&named, &settings).unwrap(), None);
}

#[test]
fn the_fill_of_each_table_is_told() {
    let mut datapath = datapath();
    let of = |datapath: &Datapath, name| {
        datapath.fill().unwrap().into_iter().find(|fill| fill.name == name).expect("the table is among them")
    };
    let (before, names) = (of(&datapath, "ADDRESSES_4"), of(&datapath, "NAMES"));
    assert_eq!((before.entries, before.capacity, names.entries), (0, 64, 0));
    let policy = policy(&["192.0.2.1:80", "192.0.2.2:80", "www.example.com:443"]);
    datapath.install(&policy, &Settings::default(), &[]).unwrap();
    // An LRU table too.
    let address = |octets: [u8; 4]| std::net::IpAddr::from(octets).into();
    let flow = Flow { seen: 0, generation: 1, grant: 0, origin: ORIGIN_IN };
    for number in 0..40_u16 {
        let (local, remote) = (address([192, 0, 2, 1]), address([192, 0, 2, 2]));
        let key = FlowKey { local, remote, local_port: number, remote_port: 443, proto: 6, zone: 0, pad: 0 };
        datapath.flows.set(&key, &flow, sys::ANY).unwrap();
    }
    let after = of(&datapath, "ADDRESSES_4");
    assert_eq!((after.entries, of(&datapath, "NAMES").entries, of(&datapath, "FLOWS").entries), (2, 1, 40));
    for fill in datapath.fill().unwrap() {
        assert!(fill.entries <= fill.capacity, "{fill:?}");
        // A key and a value take more than this in every table; an empty trie takes nothing.
        assert!(fill.bytes >= fill.entries * 9, "{fill:?}");
    }
}

mod change;
mod load;
mod table;
