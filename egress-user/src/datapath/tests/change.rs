//! Changes in place: no packet sees half a policy, and what is left is what a fresh installation would have made.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use egress_ebpf::{
    abi::{self, AddressEntry, Alias, AliasKey, KeyBuffer, NameValue, SLOTS, Slot},
    decision::Verdict,
    dns,
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{self, select},
    test_runner::Config as Cases,
};

use super::*;
use crate::policy::Proto;

/// A rule as it is written: deny, items, ports.
type Written = (bool, Vec<&'static str>, &'static str);

const NAMES: &[&str] = &["a.x.test", "b.x.test", "*.x.test", "*.b.x.test", "c.b.x.test", "*.test", "y.test"];
const NETS: &[&str] = &[
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.0/30",
    "192.0.2.0/24",
    "192.0.0.0/16",
    "198.51.100.7",
    "2001:db8::1",
    "2001:db8::/64",
    "2001:db8::/32",
    "any",
];
const PORTS: &[&str] = &["80/tcp", "443/tcp", "1-100/tcp", "53/udp", "any"];
const ASKED: &[&str] =
    &["a.x.test", "b.x.test", "c.b.x.test", "d.b.x.test", "z.x.test", "y.test", "x.test", "other.org"];
const TO: &[&str] = &[
    "192.0.2.1",
    "192.0.2.2",
    "192.0.2.3",
    "192.0.2.77",
    "192.0.9.9",
    "198.51.100.7",
    "203.0.113.1",
    "2001:db8::1",
    "2001:db8::2",
    "2001:db8:1::1",
    "2001:db9::1",
];

fn rule() -> impl Strategy<Value = Written> {
    let allow = vec(prop_oneof![select(NAMES), select(NETS)], 1..4);
    let deny = vec(select(NETS), 1..3);
    prop_oneof![
        4 => (Just(false), allow, select(PORTS)),
        1 => (Just(true), deny, select(PORTS)),
    ]
}

fn compiled(rules: &[Written], private: &[&str]) -> Compiled {
    let mut text = String::from("version: 1\nrules:\n");
    for (number, (deny, items, ports)) in rules.iter().enumerate() {
        let action = if *deny { "deny" } else { "allow" };
        let items: BTreeSet<String> = items.iter().map(|item| format!("\"{item}\"")).collect();
        let items: Vec<String> = items.into_iter().collect();
        // By its content: what stays the same from one policy to the next keeps its grants.
        text += &format!("  - {{name: r{number}, action: {action}, to: [{}], ports: [{ports}]}}\n", items.join(", "));
    }
    if rules.is_empty() {
        text += "  - {name: none, to: [192.0.2.250], ports: [9/udp]}\n";
    }
    if !private.is_empty() {
        text = text.replace("rules:", &format!("dns: {{allowPrivate: {private:?}}}\nrules:"));
    }
    load(&Sources { texts: vec![("p.yaml".to_owned(), text.clone())], ..Sources::default() })
        .unwrap_or_else(|error| panic!("{error:?}\n{text}"))
        .compiled
}

/// The first port key, how many follow it, and the grant's key.
type Opened = (u32, u32, u64);

/// What the tables say of everything that is asked for here, in terms that are the same in every table.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    verdicts: Vec<bool>,
    /// Whether a name may be asked, its flags, and what opens by it.
    names: Vec<(bool, u32, BTreeSet<Opened>)>,
}

///
/// What passes does so by a grant of `policy`; by which, where several open the same, is not the same in every table.
fn seen(datapath: &Datapath, policy: &Compiled) -> Seen {
    let grants: BTreeSet<u64> = policy.grants.iter().map(|grant| grant.key).collect();
    let config = datapath.config_now(boot_ticks()).unwrap().unwrap();
    let key = |grant: u32| datapath.grants.get(&grant).unwrap().unwrap().key;
    let mut verdicts = Vec::new();
    for to in TO {
        let address: IpAddr = to.parse().unwrap();
        for (port, proto) in
            [(80, Proto::Tcp), (443, Proto::Tcp), (99, Proto::Tcp), (53, Proto::Udp), (9, Proto::Udp), (0, Proto::Icmp)]
        {
            let judged = datapath.judge(SocketAddr::new(address, port), proto).unwrap().unwrap();
            let Verdict { reason, grant, .. } = judged.verdict;
            assert!(grant == 0 || grants.contains(&key(grant)), "{to} passes by a grant of another policy");
            verdicts.push(reason.passes());
        }
    }
    let names = ASKED.iter().map(|name| {
        let mut buffer = KeyBuffer { len: name.len() as u64, plain: 1, ..KeyBuffer::EMPTY };
        for (slot, byte) in buffer.name.iter_mut().zip(name.bytes().rev()) {
            *slot = byte;
        }
        buffer.first = name.split('.').next().map_or(0, str::len) as u64;
        buffer.set_epoch(config.epoch);
        let found = datapath.found(&buffer, config.generation).unwrap();
        let (mut matching, mut differ) = (dns::Matching::default(), 0);
        dns::find(&found, &buffer, config.generation, 0, &mut matching, &mut differ);
        let mut opens = BTreeSet::new();
        for class in matching.classes {
            let mut index = class;
            while index != 0 {
                let chunk = datapath.classes.get(&index).unwrap().unwrap();
                assert!(chunk.stands(config.generation), "class {index} of {name} stands");
                let used = chunk.ports.iter().filter(|range| range.grant != 0);
                opens.extend(used.map(|range| (range.first, range.span, key(range.grant))));
                index = chunk.next;
            }
        }
        (matching.may_ask(), matching.flags, opens)
    });
    let names = names.collect();
    Seen { verdicts, names }
}

/// Where the daemon dies in the midst of a change.
#[derive(Clone, Copy, Debug)]
enum Cut {
    Never,
    BeforeTheFlip,
    AfterTheFlip,
}

/// What a daemon does that starts with these tables.
fn restart(datapath: &mut Datapath, policy: &Compiled, settings: &Settings) -> Installed {
    (datapath.whole, datapath.class_index) = (false, Vec::new());
    let installed = match datapath.adopt(policy, settings).unwrap() {
        Some(installed) => {
            datapath.forget_other(installed.generation).unwrap();
            installed
        }
        None => datapath.install(policy, settings, &[]).unwrap(),
    };
    assert_eq!(datapath.adopt(policy, settings).unwrap(), Some(installed.clone()));
    installed
}

/// P2, P7: through a chain of policies: until the flip everything is judged as before, from the flip on as a fresh installation of
/// the new policy judges it, and afterwards the tables hold exactly that; though the daemon dies in the midst of it.
#[test]
fn no_packet_sees_half_a_change() {
    let settings = Settings::default();
    let cut = prop_oneof![3 => Just(Cut::Never), 1 => Just(Cut::BeforeTheFlip), 1 => Just(Cut::AfterTheFlip)];
    let private = sample::subsequence(vec!["*.x.test", "c.b.x.test", "*.b.x.test", "y.test"], 0..3);
    let policies = (private, vec((vec(rule(), 0..5), cut), 2..6));
    let mut runner = proptest::test_runner::TestRunner::new(Cases { cases: 64, ..Cases::default() });
    let (datapath, fresh) = (std::cell::RefCell::new(datapath()), std::cell::RefCell::new(super::datapath()));
    let result = runner.run(&policies, |(private, chain)| {
        let (mut datapath, mut fresh) = (datapath.borrow_mut(), fresh.borrow_mut());
        let chain: Vec<_> = chain.iter().map(|(rules, cut)| (compiled(rules, &private), *cut)).collect();
        let mut installed = datapath.install(&chain[0].0, &settings, &[]).unwrap();
        for pair in chain.windows(2) {
            let [(old, _), (new, cut)] = pair else { unreachable!() };
            let before = seen(&datapath, old);
            fresh.install(new, &settings, &[]).unwrap();
            let wanted = seen(&fresh, new);
            let live = datapath.generation().unwrap();
            let mut prepared = datapath.prepare(live, old, new, &settings, &Vec::new).unwrap().expect("in place");
            prop_assert_eq!(&before, &seen(&datapath, old), "before the flip");
            if let Cut::BeforeTheFlip = cut {
                restart(&mut datapath, old, &settings);
                prop_assert_eq!(&before, &seen(&datapath, old), "after a restart before the flip");
                let live = datapath.generation().unwrap();
                prepared = datapath.prepare(live, old, new, &settings, &Vec::new).unwrap().expect("in place");
                prop_assert_eq!(&before, &seen(&datapath, old), "before the second one's flip");
            }
            datapath.flip(&prepared).unwrap();
            prop_assert_eq!(&wanted, &seen(&datapath, new), "right after the flip");
            let next = if let Cut::AfterTheFlip = cut {
                restart(&mut datapath, new, &settings)
            } else {
                let next = datapath.finish(prepared).unwrap();
                prop_assert_eq!(datapath.adopt(new, &settings).unwrap(), Some(next.clone()));
                next
            };
            prop_assert_eq!(&wanted, &seen(&datapath, new), "when it is tidied up");
            prop_assert!(next.generation > installed.generation);
            installed = next;
        }
        Ok(())
    });
    result.unwrap();
}

/// Changes in place, as the daemon asks for them.
fn change(datapath: &mut Datapath, old: &Compiled, new: &Compiled, learned: &[Learned]) -> Installed {
    let (live, epoch) = (datapath.generation().unwrap(), datapath.epoch(datapath.generation().unwrap()).unwrap());
    let installed = datapath.change((old, live), new, &Settings::default(), &|| learned.to_vec()).unwrap();
    assert_eq!(installed.epoch, epoch, "in place");
    installed
}

fn opens(datapath: &Datapath, address: [u8; 4]) -> bool {
    let to = SocketAddr::new(address.into(), 80);
    datapath.judge(to, Proto::Tcp).unwrap().unwrap().verdict.reason.passes()
}

fn known(name: &str, address: [u8; 4]) -> Learned {
    Learned { name: name.to_owned(), addresses: vec![(address.into(), boot_ticks() + 1000)] }
}

/// One address of two names: the slot that it has for both outlives the rule of either.
#[test]
fn an_address_of_two_names_stays_when_one_rule_goes() {
    // Rules have numbers for names here: those that stay keep their place.
    for (stays, one) in
        [("a", ["a.example.com:80", "c.example.com:80"]), ("b", ["c.example.com:80", "b.example.com:80"])]
    {
        let mut datapath = datapath();
        let both = policy(&["a.example.com:80", "b.example.com:80"]);
        datapath.install(&both, &Settings::default(), &[]).unwrap();
        let learned = [known("a.example.com", [192, 0, 2, 10]), known("b.example.com", [192, 0, 2, 10])];
        datapath.learn(&both, &learned).unwrap();
        let one = policy(&one);
        change(&mut datapath, &both, &one, &learned);
        assert!(opens(&datapath, [192, 0, 2, 10]), "{stays} stays");
        let none = policy(&["c.example.com:80", "d.example.com:80"]);
        change(&mut datapath, &one, &none, &learned);
        assert!(!opens(&datapath, [192, 0, 2, 10]), "{stays} is gone too");
    }
}

/// P4: what is learned for the new policy takes nothing from the old one before the flip.
#[test]
fn what_is_learned_ahead_leaves_the_live_policy_what_it_has() {
    let mut datapath = datapath();
    let old = policy(&["a.example.com:80", "c.example.com:80"]);
    let live = datapath.install(&old, &Settings::default(), &[]).unwrap().generation;
    let shared = [192, 0, 2, 10];
    datapath.learn(&old, &[known("a.example.com", shared)]).unwrap();
    let mut later = known("b.example.com", shared);
    later.addresses[0].1 += 1000;
    let new = policy(&["a.example.com:80", "b.example.com:80"]);
    let prepared = datapath.prepare(live, &old, &new, &Settings::default(), &|| vec![later.clone()]).unwrap().unwrap();
    assert!(opens(&datapath, shared), "by its first name");
    datapath.flip(&prepared).unwrap();
    assert!(opens(&datapath, shared));
    datapath.finish(prepared).unwrap();
    let none = policy(&["d.example.com:80", "b.example.com:80"]);
    change(&mut datapath, &new, &none, &[]);
    assert!(opens(&datapath, shared), "by its second name");
}

/// P3: an address that was learned for a rule which is gone is not opened by the class that takes the place of that rule's.
#[test]
fn a_class_that_is_held_is_not_given_to_another_rule() {
    let mut datapath = datapath();
    let name = |number: usize| format!("n{number}.example.com");
    let mut old = policy(&[&format!("{}:80", name(0))]);
    datapath.install(&old, &Settings::default(), &[]).unwrap();
    let held = [192, 0, 2, 10];
    datapath.learn(&old, &[known(&name(0), held)]).unwrap();
    let mut places = std::collections::HashSet::new();
    // More of them than the table has room for.
    for number in 1..150 {
        let new = policy(&[&format!("{}:80", name(number))]);
        change(&mut datapath, &old, &new, &[]);
        assert!(!opens(&datapath, held), "{number}");
        let address = [198, 51, 100, number as u8];
        datapath
            .learn(&new, &[Learned { name: name(number), addresses: vec![(address.into(), boot_ticks() + 1000)] }])
            .unwrap();
        assert!(opens(&datapath, address), "{number}");
        places.extend(datapath.class_index.iter().copied().filter(|index| *index != 0));
        // As if those of the rule before had expired.
        let (before, epoch) =
            ([198, 51, 100, number as u8 - 1], datapath.epoch(datapath.generation().unwrap()).unwrap());
        datapath.addresses_4.remove(&egress_ebpf::abi::AddressKey4 { address: before, epoch }).unwrap();
        old = new;
    }
    assert!(places.len() > 30 && places.len() < 64, "they were used again: {}", places.len());
}

/// Issue 6: a small change writes what changed, however much stands beside it.
#[test]
fn a_small_change_writes_little() {
    let sizes =
        Sizes { addresses: 8192, prefixes: 8192, classes: 16384, grants: 16384, names: 8192, inner: 64, flows: 64 };
    let mut datapath = Datapath::new(Object::load(&sizes, None).expect("the object loads: needs root")).unwrap();
    let many: Vec<String> = (0..2000_u32)
        .flat_map(|number| {
            let [_, _, high, low] = number.to_be_bytes();
            [format!("n{number}.example.com:80"), format!("10.{high}.{low}.1:80"), format!("10.{high}.{low}.128/25:80")]
        })
        .collect();
    let mut items: Vec<&str> = many.iter().map(String::as_str).collect();
    let old = policy(&items);
    let first = datapath.install(&old, &Settings::default(), &[]).unwrap();
    items[3] = "other.example.com:80";
    items[4] = "203.0.113.1:80";
    items[5] = "203.0.113.128/25:80";
    let new = policy(&items);
    let prepared = datapath.prepare(first.generation, &old, &new, &Settings::default(), &Vec::new).unwrap().unwrap();
    assert_eq!(prepared.patch.len(), 8, "two names and one out, the same of prefixes, two addresses");
    assert_eq!((prepared.allotted.fresh.len(), prepared.allotted.ended.len()), (3, 3));
    datapath.flip(&prepared).unwrap();
    let next = datapath.finish(prepared).unwrap();
    assert_eq!((addresses(&datapath, next.epoch), datapath.names.keys().unwrap().len()), (2000, 2000));
    assert_eq!(datapath.adopt(&new, &Settings::default()).unwrap(), Some(next));
}

/// P2: what a change that was cut short had begun with is not there when a later one comes to its generation.
#[test]
fn what_a_cut_short_change_began_does_not_come_back() {
    let mut datapath = datapath();
    let old = policy(&["192.0.2.1:80"]);
    let live = datapath.install(&old, &Settings::default(), &[]).unwrap().generation;
    let more = policy(&["192.0.2.1:80", "192.0.2.2:80"]);
    drop(datapath.prepare(live, &old, &more, &Settings::default(), &Vec::new).unwrap().unwrap());
    let live = restart(&mut datapath, &old, &Settings::default()).generation;
    let other = policy(&["192.0.2.1:80", "192.0.2.3:80"]);
    datapath.change((&old, live), &other, &Settings::default(), &Vec::new).unwrap();
    assert!(opens(&datapath, [192, 0, 2, 3]) && !opens(&datapath, [192, 0, 2, 2]));
}

/// Wildcards inside a label stand in a table that is not changed in place: such a change goes in beside the old policy.
#[test]
fn other_wildcards_inside_a_label_begin_an_epoch() {
    let mut datapath = datapath();
    let old = policy(&["a.example.com:80", "md-*.example.com:80"]);
    let first = datapath.install(&old, &Settings::default(), &[]).unwrap();
    datapath.learn(&old, &[known("a.example.com", [192, 0, 2, 10])]).unwrap();
    let new = policy(&["a.example.com:80", "md-*.example.com:80", "umsa*.example.com:80"]);
    let next = datapath.change((&old, first.generation), &new, &Settings::default(), &Vec::new).unwrap();
    assert!(next.epoch != first.epoch && opens(&datapath, [192, 0, 2, 10]));
    assert_eq!(datapath.adopt(&new, &Settings::default()).unwrap(), Some(next));
    // What differs in nothing of them is changed in place again.
    change(&mut datapath, &new, &policy(&["b.example.com:80", "md-*.example.com:80", "umsa*.example.com:80"]), &[]);
    assert!(!opens(&datapath, [192, 0, 2, 10]));
}

/// P3: what CNAME targets were told of private addresses under one `dns.allowPrivate` does not count under another one.
#[test]
fn other_private_names_begin_an_epoch() {
    let mut datapath = datapath();
    let wild = [(false, vec!["*.x.test"], "80/tcp")];
    let (old, new) = (compiled(&wild, &["a.x.test"]), compiled(&wild, &[]));
    let live = datapath.install(&old, &Settings::default(), &[]).unwrap();
    let mut key = AliasKey { epoch: live.epoch as u16, name: [0; abi::NAME_KEY] };
    key.name[..8].copy_from_slice(b"tset.x.t");
    let mut entry = AddressEntry { slots: [0; SLOTS] };
    let class = *datapath.class_index.iter().find(|class| **class != 0).unwrap();
    entry.slots[0] = Slot { class, expiry: boot_ticks() + 1000 }.pack();
    let alias = Alias { entry, flags: NameValue::PRIVATE, pad: 0 };
    datapath.aliases.set(&key, &alias, sys::ANY).unwrap();
    // Where the list stays, so does what is known.
    let more = compiled(&[wild[0].clone(), (false, vec!["y.test"], "80/tcp")], &["a.x.test"]);
    let same = datapath.change((&old, live.generation), &more, &Settings::default(), &Vec::new).unwrap();
    assert_eq!((same.epoch, datapath.aliases.get(&key).unwrap()), (live.epoch, Some(alias)));
    let next = datapath.change((&more, same.generation), &new, &Settings::default(), &Vec::new).unwrap();
    assert_ne!(next.epoch, live.epoch);
    assert_eq!(datapath.aliases.get(&key).unwrap(), None);
    key.epoch = next.epoch as u16;
    assert_eq!(datapath.aliases.get(&key).unwrap(), Some(Alias { flags: 0, ..alias }));
    // What may have been led to by a name that may have private addresses now: the next answer says it.
    let next = datapath.change((&new, next.generation), &old, &Settings::default(), &Vec::new).unwrap();
    key.epoch = next.epoch as u16;
    assert_eq!(datapath.aliases.get(&key).unwrap(), None);
}
