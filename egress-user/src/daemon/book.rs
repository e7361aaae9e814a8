//! Which name has which addresses: what the kernel and the resolver said, kept for people and for the next generation.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use egress_ebpf::abi::Ticks;

use crate::datapath::Learned;

/// Names that are kept at most; past it those that expired first go.
const NAMES_MAX: usize = 200_000;

/// An address of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it stops counting.
    pub expiry: Ticks,
    /// Who said so, as `ADDRESS:PORT`.
    pub resolver: String,
    /// When it was learned last.
    pub learned: Ticks,
}

/// Names and their addresses.
#[derive(Debug, Default)]
pub struct Book {
    names: BTreeMap<String, HashMap<IpAddr, Entry>>,
    /// The names of an address, for events; kept past the expiry, since a person asks about what just ended.
    addresses: HashMap<IpAddr, Vec<String>>,
    version: u64,
}

impl Book {
    /// Writes an answer down; of two expiries the later one counts.
    pub fn learn(&mut self, name: &str, addresses: &[(IpAddr, Ticks)], resolver: &str, now: Ticks) {
        if self.names.len() >= NAMES_MAX && !self.names.contains_key(name) {
            self.forget_expired(now);
            if self.names.len() >= NAMES_MAX {
                return;
            }
        }
        let entries = self.names.entry(name.to_owned()).or_default();
        for &(address, expiry) in addresses {
            let entry =
                entries.entry(address).or_insert_with(|| Entry { expiry, resolver: resolver.to_owned(), learned: now });
            entry.expiry = entry.expiry.max(expiry);
            entry.learned = now;
            resolver.clone_into(&mut entry.resolver);
            let names = self.addresses.entry(address).or_default();
            if !names.iter().any(|known| known == name) {
                self.version += 1;
                names.push(name.to_owned());
            }
        }
    }

    /// Drops what expired.
    pub fn forget_expired(&mut self, now: Ticks) {
        for entries in self.names.values_mut() {
            entries.retain(|_, entry| entry.expiry > now);
        }
        self.names.retain(|_, entries| !entries.is_empty());
        let names = &self.names;
        self.addresses.retain(|_, known| {
            known.retain(|name| names.contains_key(name));
            !known.is_empty()
        });
    }

    /// Another number when a name has an address that it had not; a longer life is none.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The living addresses of every name, each with who said so.
    pub fn resolvers_by_name(&self, now: Ticks) -> BTreeMap<String, BTreeMap<IpAddr, String>> {
        let living = |entries: &HashMap<IpAddr, Entry>| -> BTreeMap<IpAddr, String> {
            let living = entries.iter().filter(|(_, entry)| entry.expiry > now);
            living.map(|(address, entry)| (*address, entry.resolver.clone())).collect()
        };
        let names = self.names.iter().map(|(name, entries)| (name.clone(), living(entries)));
        names.filter(|(_, addresses)| !addresses.is_empty()).collect()
    }

    /// The names that an address has or had.
    pub fn names_of(&self, address: IpAddr) -> Vec<String> {
        self.addresses.get(&address).cloned().unwrap_or_default()
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
    fn an_address_keeps_its_name_until_it_is_forgotten() {
        let mut book = Book::default();
        book.learn(NAME, &[(address(1), 10)], "r", 0);
        assert_eq!(book.names_of(address(1)), [NAME]);
        book.forget_expired(10);
        assert!(book.names_of(address(1)).is_empty());
        assert!(book.living(0).is_empty());
    }
}
