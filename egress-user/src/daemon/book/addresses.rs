//! Pairs of a name and an address of one family. A pair takes 28 bytes (IPv6: 40), and some 10 in each of the two tables that find it.

use std::hash::{BuildHasher as _, Hash, RandomState};

use egress_ebpf::abi::Ticks;
use hashbrown::HashTable;

/// The end of a chain of pairs.
const END: u32 = u32::MAX;

/// A name that has an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair<A> {
    pub address: A,
    pub name: u32,
    /// When it stops counting.
    pub expiry: Ticks,
    /// When it was said last.
    pub learned: Ticks,
    /// Who said so last.
    pub resolver: u32,
    /// The next pair of the same name, and of the same address: those that came before.
    of_name: u32,
    of_address: u32,
}

impl<A> Pair<A> {
    /// The same, with its address written otherwise.
    pub fn with<B>(&self, address: B) -> Pair<B> {
        let Self { name, expiry, learned, resolver, of_name, of_address, .. } = *self;
        Pair { address, name, expiry, learned, resolver, of_name, of_address }
    }
}

/// The pairs, found by both halves, and walked by either. Each of these takes the same time however many names an address has, and
/// however many addresses a name: both are chosen by whoever runs the name servers.
#[derive(Debug)]
pub(super) struct Addresses<A> {
    pairs: Vec<Pair<A>>,
    by_both: HashTable<u32>,
    /// The last pair of each address.
    by_address: HashTable<u32>,
    /// The last pair of each name.
    by_name: Vec<u32>,
    hasher: RandomState,
}

impl<A> Default for Addresses<A> {
    fn default() -> Self {
        Self {
            pairs: Vec::new(),
            by_both: HashTable::new(),
            by_address: HashTable::new(),
            by_name: Vec::new(),
            hasher: RandomState::new(),
        }
    }
}

impl<A: Copy + Eq + Hash> Addresses<A> {
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// The pair of a name and an address.
    pub fn find(&self, name: u32, address: A) -> Option<&Pair<A>> {
        self.at(name, address).map(|at| &self.pairs[at as usize])
    }

    /// [`Addresses::find`], to change its times.
    pub fn find_mut(&mut self, name: u32, address: A) -> Option<&mut Pair<A>> {
        self.at(name, address).map(|at| &mut self.pairs[at as usize])
    }

    fn at(&self, name: u32, address: A) -> Option<u32> {
        let is = |&at: &u32| self.pairs[at as usize].address == address && self.pairs[at as usize].name == name;
        self.by_both.find(self.hasher.hash_one((name, address)), is).copied()
    }

    /// Adds a pair that is not there.
    pub fn add(&mut self, name: u32, address: A, (expiry, learned, resolver): (Ticks, Ticks, u32)) {
        self.pairs.push(Pair { address, name, expiry, learned, resolver, of_name: END, of_address: END });
        self.link(self.pairs.len() as u32 - 1);
    }

    /// Makes the pair at `at` known to the tables.
    fn link(&mut self, at: u32) {
        let Self { pairs, by_both, by_address, by_name, hasher } = self;
        let Pair { address, name, .. } = pairs[at as usize];
        let both = |&at: &u32| hasher.hash_one((pairs[at as usize].name, pairs[at as usize].address));
        by_both.insert_unique(hasher.hash_one((name, address)), at, both);
        let hash = |address: A| hasher.hash_one(address);
        let before = match by_address.find_mut(hash(address), |&at| pairs[at as usize].address == address) {
            Some(last) => std::mem::replace(last, at),
            None => {
                by_address.insert_unique(hash(address), at, |&at| hash(pairs[at as usize].address));
                END
            }
        };
        if by_name.len() <= name as usize {
            by_name.resize(name as usize + 1, END);
        }
        let of_name = std::mem::replace(&mut by_name[name as usize], at);
        let pair = &mut pairs[at as usize];
        (pair.of_address, pair.of_name) = (before, of_name);
    }

    /// The pairs of a name, the one that came last first.
    pub fn of_name(&self, name: u32) -> impl Iterator<Item = &Pair<A>> {
        self.chain(self.by_name.get(name as usize).copied(), |pair| pair.of_name)
    }

    /// The pairs of an address, the one that came last first.
    pub fn of_address(&self, address: A) -> impl Iterator<Item = &Pair<A>> {
        let is = |&at: &u32| self.pairs[at as usize].address == address;
        self.chain(self.by_address.find(self.hasher.hash_one(address), is).copied(), |pair| pair.of_address)
    }

    fn chain(&self, first: Option<u32>, next: fn(&Pair<A>) -> u32) -> impl Iterator<Item = &Pair<A>> {
        let there = |at: u32| (at != END).then(|| &self.pairs[at as usize]);
        std::iter::successors(first.and_then(there), move |pair| there(next(pair)))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Pair<A>> {
        self.pairs.iter()
    }

    /// Keeps the pairs that `keep` says; the tables count again once [`Addresses::renumber`] was called.
    pub fn retain(&mut self, keep: impl FnMut(&Pair<A>) -> bool) {
        self.pairs.retain(keep);
        if self.pairs.len() < self.pairs.capacity() / 4 {
            self.pairs.shrink_to_fit();
        }
    }

    /// Gives every pair its name's new number.
    pub fn renumber(&mut self, numbers: &[u32]) {
        // Made anew: what was many once leaves no large tables behind.
        (self.by_both, self.by_address) = (HashTable::with_capacity(self.pairs.len()), HashTable::new());
        self.by_name = Vec::new();
        for at in 0..self.pairs.len() {
            let pair = &mut self.pairs[at];
            pair.name = numbers[pair.name as usize];
            self.link(at as u32);
        }
    }
}
