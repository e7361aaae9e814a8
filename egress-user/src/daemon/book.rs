//! Which name has which addresses: what the kernel and the resolver said, kept for people and for the next generation.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use egress_ebpf::abi::{TICK_SHIFT, Ticks};

use crate::datapath::Learned;

/// Names that are kept at most; past it those that expired first go.
const NAMES_MAX: usize = 200_000;

/// A restart is to know how old an answer is, give or take this: a quarter of an hour.
const TOLD_EVERY: Ticks = ((15 * 60 * 1_000_000_000_u64) >> TICK_SHIFT) as Ticks;

/// How long an address is known past its expiry: an hour, since a person asks about what just ended.
const KEPT: Ticks = ((60 * 60 * 1_000_000_000_u64) >> TICK_SHIFT) as Ticks;

/// Fewer new addresses than this are not worth a look at all of them.
const LOOK_EVERY: usize = 1024;

/// An address of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it stops counting.
    pub expiry: Ticks,
    /// Who said so last, as `ADDRESS:PORT`.
    pub resolver: Arc<str>,
    /// When it was said last.
    pub learned: Ticks,
    /// The same, when [`Book::version`] last told.
    told: Ticks,
}

/// Names and their addresses.
#[derive(Debug, Default)]
pub struct Book {
    names: HashMap<String, HashMap<IpAddr, Entry>>,
    /// The names of an address, for events.
    addresses: HashMap<IpAddr, Vec<String>>,
    /// Each resolver's text once.
    resolvers: HashSet<Arc<str>>,
    version: u64,
    /// Addresses of names that were there after the last look for what is over, and that came since then.
    held: usize,
    come: usize,
}

impl Book {
    /// Writes an answer down; of two expiries the later one counts.
    pub fn learn(&mut self, name: &str, addresses: &[(IpAddr, Ticks)], resolver: &str, now: Ticks) {
        if !self.names.contains_key(name) {
            if self.names.len() >= NAMES_MAX {
                self.forget(now, 0);
            }
            if self.names.len() >= NAMES_MAX {
                return;
            }
            self.names.insert(name.to_owned(), HashMap::new());
        }
        let resolver = self.resolver(resolver);
        let Some(entries) = self.names.get_mut(name) else { return };
        for &(address, expiry) in addresses {
            let entry = entries.entry(address).or_insert_with(|| Entry {
                expiry,
                resolver: Arc::clone(&resolver),
                learned: now,
                told: now,
            });
            if now.saturating_sub(entry.told) >= TOLD_EVERY {
                entry.told = now;
                self.version += 1;
            }
            entry.expiry = entry.expiry.max(expiry);
            entry.learned = now;
            entry.resolver = Arc::clone(&resolver);
            let names = self.addresses.entry(address).or_default();
            if !names.iter().any(|known| known == name) {
                self.version += 1;
                self.come += 1;
                names.push(name.to_owned());
            }
        }
        // Each look at all of them is paid for by as many new ones: names whose addresses rotate leave no more than that behind.
        if self.come > self.held.max(LOOK_EVERY) {
            self.forget(now, KEPT);
        }
    }

    /// Lets addresses of a name count for longer, though nobody said so anew: resolvers fail.
    pub fn prolong(&mut self, name: &str, addresses: &[(IpAddr, Ticks)]) {
        let Some(entries) = self.names.get_mut(name) else { return };
        for (address, expiry) in addresses {
            if let Some(entry) = entries.get_mut(address) {
                entry.expiry = entry.expiry.max(*expiry);
            }
        }
    }

    fn resolver(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.resolvers.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.resolvers.insert(Arc::clone(&new));
        new
    }

    /// Drops what expired longer than `kept` ago.
    fn forget(&mut self, now: Ticks, kept: Ticks) {
        for entries in self.names.values_mut() {
            entries.retain(|_, entry| entry.expiry.saturating_add(kept) > now);
        }
        self.names.retain(|_, entries| !entries.is_empty());
        let names = &self.names;
        self.addresses.retain(|address, known| {
            known.retain(|name| names.get(name).is_some_and(|entries| entries.contains_key(address)));
            !known.is_empty()
        });
        self.held = self.names.values().map(HashMap::len).sum();
        self.come = 0;
    }

    /// Another number when a name has an address that it had not, or one was said anew a good while after it last counted.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The living addresses of every name, each with who said so, and when.
    pub fn sources(&self, now: Ticks) -> BTreeMap<String, BTreeMap<IpAddr, (String, Ticks)>> {
        let living = |entries: &HashMap<IpAddr, Entry>| -> BTreeMap<IpAddr, (String, Ticks)> {
            let living = entries.iter().filter(|(_, entry)| entry.expiry > now);
            living.map(|(address, entry)| (*address, (entry.resolver.to_string(), entry.learned))).collect()
        };
        let names = self.names.iter().map(|(name, entries)| (name.clone(), living(entries)));
        names.filter(|(_, addresses)| !addresses.is_empty()).collect()
    }

    /// The names that an address has or had.
    pub fn names_of(&self, address: IpAddr) -> Vec<String> {
        self.addresses.get(&address).cloned().unwrap_or_default()
    }

    /// What is known of a name and an address, also when it no longer counts.
    pub fn entry(&self, name: &str, address: IpAddr) -> Option<Entry> {
        self.names.get(name)?.get(&address).cloned()
    }

    /// The living addresses of a name.
    pub fn addresses_of(&self, name: &str, now: Ticks) -> Vec<(IpAddr, Entry)> {
        let mut living: Vec<_> = self
            .names
            .get(name)
            .into_iter()
            .flatten()
            .filter(|(_, entry)| entry.expiry > now)
            .map(|(address, entry)| (*address, entry.clone()))
            .collect();
        living.sort_by_key(|(address, _)| *address);
        living
    }

    /// Every name with its living addresses.
    pub fn living(&self, now: Ticks) -> Vec<Learned> {
        self.names
            .keys()
            .map(|name| Learned {
                name: name.clone(),
                addresses: self
                    .addresses_of(name, now)
                    .into_iter()
                    .map(|(address, entry)| (address, entry.expiry))
                    .collect(),
            })
            .filter(|learned| !learned.addresses.is_empty())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "a.example.com";

    fn address(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn the_later_expiry_counts() {
        let mut book = Book::default();
        book.learn(NAME, &[(address(1), 100)], "r", 0);
        book.learn(NAME, &[(address(1), 50)], "r", 1);
        assert_eq!(book.addresses_of(NAME, 0)[0].1.expiry, 100);
        assert!(book.addresses_of(NAME, 100).is_empty());
    }

    #[test]
    fn an_answer_does_not_evict_the_other_family() {
        let mut book = Book::default();
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        book.learn(NAME, &[(address(1), 100)], "r", 0);
        book.learn(NAME, &[(six, 100)], "r", 0);
        assert_eq!(book.addresses_of(NAME, 0).len(), 2);
    }

    #[test]
    fn a_failure_prolongs_what_was_said_and_says_nothing_itself() {
        let mut book = Book::default();
        book.learn(NAME, &[(address(1), 100)], "r", 5);
        book.prolong(NAME, &[(address(1), 200), (address(2), 200)]);
        let known = book.addresses_of(NAME, 150);
        assert_eq!(known, [(address(1), Entry { expiry: 200, resolver: "r".into(), learned: 5, told: 5 })]);
    }

    #[test]
    fn an_address_said_again_is_worth_writing_down_now_and_then() {
        let mut book = Book::default();
        book.learn(NAME, &[(address(1), 10_000)], "r", 0);
        let first = book.version();
        book.learn(NAME, &[(address(1), 10_000)], "r", TOLD_EVERY - 1);
        assert_eq!(book.version(), first);
        book.learn(NAME, &[(address(1), 10_000)], "r", TOLD_EVERY);
        assert!(book.version() > first);
        assert_eq!(book.entry(NAME, address(1)).unwrap().learned, TOLD_EVERY);
    }

    #[test]
    fn an_address_keeps_its_name_until_it_is_forgotten() {
        let mut book = Book::default();
        book.learn(NAME, &[(address(1), 10)], "r", 0);
        assert_eq!(book.names_of(address(1)), [NAME]);
        book.forget(10 + KEPT - 1, KEPT);
        assert_eq!(book.names_of(address(1)), [NAME]);
        book.forget(10 + KEPT, KEPT);
        assert!(book.names_of(address(1)).is_empty());
        assert!(book.living(0).is_empty());
    }

    /// What S3 and CDNs do: other addresses all the time. An hour of them is kept, not all that ever were.
    #[test]
    fn a_name_that_rotates_leaves_an_hour_behind() {
        const LIFE: Ticks = 60;
        let mut book = Book::default();
        let count = 40 * KEPT;
        for turn in 0..count {
            book.learn(NAME, &[(IpAddr::from(turn.to_be_bytes()), turn + LIFE)], "r", turn);
        }
        let last = IpAddr::from((count - 1).to_be_bytes());
        assert_eq!(
            (book.names_of(last), book.addresses_of(NAME, count - 1).len()),
            (vec![NAME.to_owned()], LIFE as usize)
        );
        let past = IpAddr::from((count - KEPT / 2).to_be_bytes());
        assert_eq!(book.names_of(past), [NAME], "it ended less than an hour ago");
        let (held, most) = (book.addresses.len(), 2 * (KEPT + LIFE) as usize + 2);
        assert!(held <= most && book.names[NAME].len() == held, "{held} of {most}");
    }
}
