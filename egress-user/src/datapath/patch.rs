//! A policy changed in place: only what differs is written, into the epoch that is live.
//!
//! Until the flip every element says to the live generation what it said before, and after it to the new one what the new
//! policy says: a name's entry holds both, and a prefix has meanwhile a class that opens the one until the flip and the other
//! from then on. What is left of the old policy afterwards is taken out at leisure: the new generation does not see it.

use std::{cmp::Ordering, collections::HashMap, net::IpAddr};

use egress_ebpf::abi::{self, ClassChunk, NameEntry, NameValue, PrefixKey4, PrefixKey6};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    Error, Plain, Table,
    classes::{Allotted, Known},
    lower::{self, Place},
    sys,
};
use crate::policy::{self, Compiled, PrefixEntry};

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
    /// table cannot be changed in place, or in `dns.allowPrivate`, which CNAME targets of the epoch have been told of.
    ///
    /// # Errors
    /// That there is no room for the classes of the change.
    pub fn between(
        old: Side<'_>,
        new: Side<'_>,
        known: &mut Known,
        allotted: &Allotted,
    ) -> Result<Option<Self>, Error> {
        if !old.inner().eq(new.inner()) || old.policy.dns.allow_private != new.policy.dns.allow_private {
            return Ok(None);
        }
        let mut patch = Self { names: names(old, new), ..Self::default() };
        let mut turns =
            Turns { known, allotted, generation: new.place.generation, made: HashMap::new(), chunks: Vec::new() };
        let epoch = new.place.epoch;
        let allow = (nets(old, &old.policy.addresses, false), nets(new, &new.policy.addresses, false));
        let deny = (nets(old, &old.policy.denies, true), nets(new, &new.policy.denies, true));
        turns.prefixes(&allow.0, &allow.1, |net| v4(net).map(|net| lower::key4(epoch, net)), &mut patch.prefixes_4)?;
        turns.prefixes(&allow.0, &allow.1, |net| v6(net).map(|net| lower::key6(epoch, net)), &mut patch.prefixes_6)?;
        turns.prefixes(&deny.0, &deny.1, |net| v4(net).map(|net| lower::key4(epoch, net)), &mut patch.denies_4)?;
        turns.prefixes(&deny.0, &deny.1, |net| v6(net).map(|net| lower::key6(epoch, net)), &mut patch.denies_6)?;
        patch.turns = turns.chunks;
        let (had, has) = (addresses(old), addresses(new));
        for pair in side_by_side(&had, &has, |a, b| a.cmp(b)) {
            match pair {
                (None, Some(at)) => patch.addresses.push(has[at]),
                (Some(at), None) => patch.ended.push(had[at]),
                _ => {}
            }
        }
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

/// What of two lists, each sorted by `order` and without repetitions, is equal by it, or stands in one alone: the places in both.
fn side_by_side<'a, T>(
    old: &'a [T],
    new: &'a [T],
    order: impl Fn(&T, &T) -> Ordering + 'a,
) -> impl Iterator<Item = (Option<usize>, Option<usize>)> + 'a {
    let (mut had, mut has) = (0, 0);
    std::iter::from_fn(move || {
        let order = match (old.get(had), new.get(has)) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => order(old, new),
        };
        let pair = (order.is_le().then_some(had), order.is_ge().then_some(has));
        (had, has) = (had + usize::from(order.is_le()), has + usize::from(order.is_ge()));
        Some(pair)
    })
}

/// Prefixes and their classes, sorted as the policy's tables are; with `single` also those that are one address.
fn nets(side: Side<'_>, entries: &[PrefixEntry], single: bool) -> Vec<(IpNet, u32)> {
    let wanted = entries.iter().filter(|entry| single || !lower::is_address(&entry.net));
    wanted.map(|entry| (entry.net, side.place.classes[entry.class as usize])).collect()
}

/// Single addresses and their classes, sorted.
fn addresses(side: Side<'_>) -> Vec<(IpAddr, u32)> {
    let single = side.policy.addresses.iter().filter(|entry| lower::is_address(&entry.net));
    let mut addresses: Vec<_> =
        single.map(|entry| (entry.net.addr(), side.place.classes[entry.class as usize])).collect();
    // They are already, as the policy's tables are; sorting what is sorted is one look.
    addresses.sort_unstable();
    addresses
}

fn names(old: Side<'_>, new: Side<'_>) -> Changes<abi::NameKey, NameEntry> {
    let values = |side: Side<'_>| lower::name_values(side.policy, side.place).collect::<Vec<_>>();
    let (had, has) = (values(old), values(new));
    let mut changes = Changes::default();
    let order = |a: &policy::NameEntry, b: &policy::NameEntry| a.key.order(&b.key);
    for pair in side_by_side(&old.policy.names, &new.policy.names, order) {
        if let (Some(old), Some(new)) = pair
            && had[old] == has[new]
        {
            continue;
        }
        let ((Some(entry), _) | (None, Some(entry))) =
            (pair.1.map(|at| &new.policy.names[at]), pair.0.map(|at| &old.policy.names[at]))
        else {
            continue;
        };
        let name = entry.key.name().as_str();
        let key = lower::name_key(new.place.epoch, &entry.key);
        let now = said(new, &has, pair.1, name);
        let before = said(old, &had, pair.0, name);
        changes.before.push((key, NameEntry { since: new.place.generation, now, before }));
        if pair.1.is_none() {
            changes.gone.push(key);
        }
    }
    changes
}

/// What a table says of a name, or of all names below it: the value of its own entry, which stands at `at`, or that of the nearest
/// suffix above.
fn said(side: Side<'_>, values: &[NameValue], at: Option<usize>, name: &str) -> NameValue {
    if let Some(at) = at {
        return values[at];
    }
    let above = std::iter::successors(name.split_once('.').map(|(_, rest)| rest), |name| {
        name.split_once('.').map(|(_, rest)| rest)
    });
    above.filter_map(|suffix| side.policy.place_of(suffix, true)).next().map(|at| values[at]).unwrap_or_default()
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
        old: &[(IpNet, u32)],
        new: &[(IpNet, u32)],
        key: impl Fn(&IpNet) -> Option<K>,
        changes: &mut Changes<K, u32>,
    ) -> Result<(), Error> {
        for (had, has) in side_by_side(old, new, |a, b| a.0.cmp(&b.0)) {
            let (had, has) = (had.map(|at| &old[at]), has.map(|at| &new[at]));
            let Some((net, _)) = has.or(had).filter(|_| had != has) else { continue };
            let Some(key) = key(net) else { continue };
            let class = self.class(covering(old, net), covering(new, net))?;
            match has {
                Some(&(_, own)) if own != class => changes.after.push((key, own)),
                Some(_) => {}
                None => changes.gone.push(key),
            }
            changes.before.push((key, class));
        }
        Ok(())
    }

    /// The class that opens what `old` does until the flip, and what `new` does from then on.
    fn class(&mut self, old: u32, new: u32) -> Result<u32, Error> {
        if old == new || (old == 0 && self.allotted.fresh.get(new).is_some()) {
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
fn covering(prefixes: &[(IpNet, u32)], net: &IpNet) -> u32 {
    let wider = std::iter::successors(Some(*net), |net| net.supernet());
    let class = |net: IpNet| prefixes.binary_search_by(|(known, _)| known.cmp(&net)).ok().map(|at| prefixes[at].1);
    wider.filter_map(class).next().unwrap_or(0)
}
