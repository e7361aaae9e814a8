//! A policy changed in place: only what differs is written, into the epoch that is live.
//!
//! Until the flip every element says to the live generation what it said before, and after it to the new one what the new
//! policy says: a name's entry holds both, and a prefix has meanwhile a class that opens the one until the flip and the other
//! from then on. What is left of the old policy afterwards is taken out at leisure: the new generation does not see it.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    net::IpAddr,
};

use egress_ebpf::abi::{self, ClassChunk, NameEntry, NameValue, PrefixKey4, PrefixKey6};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Error, Plain, Table,
    classes::{Allotted, Known},
    lower::{self, Place},
    sys,
};
use crate::policy::{Compiled, NameKey, PrefixEntry};

/// What two policies differ in, as elements of one epoch.
#[derive(Debug, Default)]
pub(super) struct Patch {
    pub names: Changes<abi::NameKey, NameEntry>,
    pub prefixes_4: Changes<PrefixKey4, u32>,
    pub prefixes_6: Changes<PrefixKey6, u32>,
    pub denies_4: Changes<PrefixKey4, u32>,
    pub denies_6: Changes<PrefixKey6, u32>,
    /// Addresses with a class that the new policy gives them.
    pub addresses: Vec<(IpAddr, u32)>,
    /// Addresses with a class that only the old one gave them.
    pub ended: Vec<(IpAddr, u32)>,
    /// Classes that count for the time of the change.
    pub turns: Vec<(u32, ClassChunk)>,
}

/// What is written to one table.
#[derive(Debug)]
pub(super) struct Changes<K, V> {
    /// Before the flip.
    before: Vec<(K, V)>,
    /// After it.
    after: Vec<(K, V)>,
    /// Deleted after it.
    gone: Vec<K>,
}

impl<K, V> Default for Changes<K, V> {
    fn default() -> Self {
        Self { before: Vec::new(), after: Vec::new(), gone: Vec::new() }
    }
}

impl<K: Plain, V: Plain + PartialEq> Changes<K, V> {
    /// Writes what has to be there before the flip, and reads it back.
    pub fn prepare(&self, table: &Table<K, V>) -> Result<(), Error> {
        table.set_all(&self.before)?;
        for (key, value) in &self.before {
            if table.get(key)? != Some(*value) {
                return Err(Error::ReadBack(table.name()));
            }
        }
        Ok(())
    }

    /// Brings the table to what the new policy alone needs.
    pub fn finish(&self, table: &Table<K, V>) -> Result<(), Error> {
        for (key, value) in &self.after {
            table.set(key, value, sys::ANY)?;
        }
        for key in &self.gone {
            table.remove(key)?;
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.before.len() + self.after.len() + self.gone.len()
    }
}

/// A policy and where its elements are.
#[derive(Clone, Copy)]
pub(super) struct Side<'a> {
    pub policy: &'a Compiled,
    pub place: Place<'a>,
}

impl Side<'_> {
    fn inner(&self) -> impl Iterator<Item = abi::InnerWildcard> + '_ {
        let entries = self.policy.names.iter().flat_map(|entry| &entry.inner);
        entries.map(|inner| lower::inner_wildcard(inner, self.place))
    }
}

impl Patch {
    /// What has to be written for `new` to follow `old`, which is live. `None` where they differ in wildcards inside a label, whose
    /// table cannot be changed in place.
    ///
    /// # Errors
    /// That there is no room for the classes of the change.
    pub fn between(
        old: Side<'_>,
        new: Side<'_>,
        known: &mut Known,
        allotted: &Allotted,
    ) -> Result<Option<Self>, Error> {
        if !old.inner().eq(new.inner()) {
            return Ok(None);
        }
        let mut patch = Self { names: names(old, new), ..Self::default() };
        let mut turns =
            Turns { known, allotted, generation: new.place.generation, made: HashMap::new(), chunks: Vec::new() };
        let nets = |side: Side<'_>, entries: &[PrefixEntry], addresses: bool| -> HashMap<IpNet, u32> {
            let wanted = entries.iter().filter(|entry| !addresses || !lower::is_address(&entry.net));
            wanted.map(|entry| (entry.net, side.place.classes[entry.class as usize])).collect()
        };
        let epoch = new.place.epoch;
        let allow = (nets(old, &old.policy.addresses, true), nets(new, &new.policy.addresses, true));
        let deny = (nets(old, &old.policy.denies, false), nets(new, &new.policy.denies, false));
        turns.prefixes(&allow.0, &allow.1, |net| v4(net).map(|net| lower::key4(epoch, net)), &mut patch.prefixes_4)?;
        turns.prefixes(&allow.0, &allow.1, |net| v6(net).map(|net| lower::key6(epoch, net)), &mut patch.prefixes_6)?;
        turns.prefixes(&deny.0, &deny.1, |net| v4(net).map(|net| lower::key4(epoch, net)), &mut patch.denies_4)?;
        turns.prefixes(&deny.0, &deny.1, |net| v6(net).map(|net| lower::key6(epoch, net)), &mut patch.denies_6)?;
        patch.turns = turns.chunks;
        let addresses = |side: Side<'_>| -> HashSet<(IpAddr, u32)> {
            let single = side.policy.addresses.iter().filter(|entry| lower::is_address(&entry.net));
            single.map(|entry| (entry.net.addr(), side.place.classes[entry.class as usize])).collect()
        };
        let (had, has) = (addresses(old), addresses(new));
        patch.addresses = has.difference(&had).copied().collect();
        patch.ended = had.difference(&has).copied().collect();
        Ok(Some(patch))
    }

    /// How many elements it writes and deletes.
    pub fn len(&self) -> usize {
        let prefixes = self.prefixes_4.len() + self.prefixes_6.len() + self.denies_4.len() + self.denies_6.len();
        self.names.len() + prefixes + self.addresses.len() + self.ended.len()
    }
}

fn v4(net: &IpNet) -> Option<Ipv4Net> {
    if let IpNet::V4(net) = net { Some(*net) } else { None }
}

fn v6(net: &IpNet) -> Option<Ipv6Net> {
    if let IpNet::V6(net) = net { Some(*net) } else { None }
}

/// The keys of two tables that say different things, each once.
fn differing<'a, K: Eq + Hash, V: PartialEq>(
    old: &'a HashMap<K, V>,
    new: &'a HashMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    let changed = new.iter().filter(|(key, value)| old.get(*key) != Some(*value)).map(|(key, _)| key);
    changed.chain(old.keys().filter(|key| !new.contains_key(*key)))
}

/// The names of a policy: whether exact, the name, and what the kernel is told of it.
type Values<'a> = HashMap<(bool, &'a str), NameValue>;

fn names(old: Side<'_>, new: Side<'_>) -> Changes<abi::NameKey, NameEntry> {
    let (had, has) = (values(old), values(new));
    let keys: HashMap<(bool, &str), &NameKey> =
        old.policy.names.iter().chain(&new.policy.names).map(|entry| (part(&entry.key), &entry.key)).collect();
    let mut changes = Changes::default();
    for at in differing(&had, &has) {
        let Some(key) = keys.get(at) else { continue };
        let key = lower::name_key(new.place.epoch, key);
        let entry = NameEntry { since: new.place.generation, now: said(&has, *at), before: said(&had, *at) };
        changes.before.push((key, entry));
        if !has.contains_key(at) {
            changes.gone.push(key);
        }
    }
    changes
}

fn part(key: &NameKey) -> (bool, &str) {
    match key {
        NameKey::Exact(name) => (true, name.as_str()),
        NameKey::Suffix(name) => (false, name.as_str()),
    }
}

fn values<'a>(side: Side<'a>) -> Values<'a> {
    let keys = side.policy.names.iter().map(|entry| part(&entry.key));
    keys.zip(lower::name_values(side.policy, side.place)).collect()
}

/// What a table says of a name, or of all names below it: its own entry's value, or that of the nearest suffix above.
fn said(values: &Values<'_>, (exact, name): (bool, &str)) -> NameValue {
    if let Some(value) = values.get(&(exact, name)) {
        return *value;
    }
    let above = std::iter::successors(name.split_once('.').map(|(_, rest)| rest), |name| {
        name.split_once('.').map(|(_, rest)| rest)
    });
    above.filter_map(|suffix| values.get(&(false, suffix))).next().copied().unwrap_or_default()
}

/// The classes of a change, each made once.
struct Turns<'a> {
    known: &'a mut Known,
    allotted: &'a Allotted,
    generation: u32,
    made: HashMap<(u32, u32), u32>,
    chunks: Vec<(u32, ClassChunk)>,
}

impl Turns<'_> {
    fn prefixes<K: Copy>(
        &mut self,
        old: &HashMap<IpNet, u32>,
        new: &HashMap<IpNet, u32>,
        key: impl Fn(&IpNet) -> Option<K>,
        changes: &mut Changes<K, u32>,
    ) -> Result<(), Error> {
        for net in differing(old, new) {
            let Some(key) = key(net) else { continue };
            let class = self.class(covering(old, net), covering(new, net))?;
            match new.get(net) {
                Some(&own) if own != class => changes.after.push((key, own)),
                Some(_) => {}
                None => changes.gone.push(key),
            }
            changes.before.push((key, class));
        }
        Ok(())
    }

    /// The class that opens what `old` does until the flip, and what `new` does from then on.
    fn class(&mut self, old: u32, new: u32) -> Result<u32, Error> {
        if old == new || (old == 0 && self.allotted.fresh.contains_key(&new)) {
            return Ok(new);
        }
        if let Some(class) = self.made.get(&(old, new)) {
            return Ok(*class);
        }
        let class = self.known.turn((old, new), self.allotted, self.generation, &mut self.chunks)?;
        self.made.insert((old, new), class);
        Ok(class)
    }
}

/// The class of the narrowest prefix that covers `net`, itself among them; 0 for none.
fn covering(prefixes: &HashMap<IpNet, u32>, net: &IpNet) -> u32 {
    let wider = std::iter::successors(Some(*net), |net| net.supernet());
    wider.filter_map(|net| prefixes.get(&net)).next().copied().unwrap_or(0)
}
