//! Grants keep their index from one generation to the next, so that a flow's verdict says which rule item it stands on.

use std::collections::{HashMap, HashSet};

use egress_ebpf::abi::GrantEntry;

use super::{Datapath, Error};
use crate::policy::Compiled;

/// Grants by key: index and entry.
type KnownGrants = HashMap<u64, (u32, GrantEntry)>;

impl Datapath {
    /// The grants of the live generation by key, and the indices that are free.
    pub(super) fn known_grants(&self, live: u32) -> Result<(KnownGrants, Vec<u32>), Error> {
        let mut known = HashMap::new();
        let mut free = Vec::new();
        if live == 0 {
            // Nothing was ever given out.
            free.extend((1..self.grants.capacity()).rev());
            return Ok((known, free));
        }
        // An array is read in its order, a batch by a call: small policies have thousands of elements too.
        self.grants.each(|&index, &entry| {
            if index != 0 && entry.stands(live, live) {
                known.insert(entry.key, (index, entry));
            } else if index != 0 {
                free.push(index);
            }
            true
        })?;
        free.reverse();
        Ok((known, free))
    }

    /// Gives each grant its index: the one that the same grant has in the live generation, or one that is free.
    pub(super) fn allot_grants(&self, policy: &Compiled, live: u32, generation: u32) -> Result<Vec<u32>, Error> {
        let (mut known, mut free) = self.known_grants(live)?;
        let mut indices = Vec::with_capacity(policy.grants.len());
        let mut fresh = Vec::new();
        for grant in &policy.grants {
            let key = grant.key;
            let index = match known.get(&key) {
                Some(&(index, entry)) => {
                    if entry.until != u32::MAX {
                        // An installation that was cut short meant to end it.
                        fresh.push((index, GrantEntry { until: u32::MAX, ..entry }));
                    }
                    index
                }
                None => {
                    let index = free.pop().ok_or(Error::Full {
                        what: "grants (items of rules)",
                        needed: policy.grants.len(),
                        capacity: self.grants.capacity() as usize / 2,
                    })?;
                    let entry = GrantEntry { key, from: generation, until: u32::MAX };
                    fresh.push((index, entry));
                    known.insert(key, (index, entry));
                    index
                }
            };
            indices.push(index);
        }
        // What passed by the grant that had the index before is not this one's. Before the first policy there was none.
        if live != 0 {
            for (index, _) in fresh.iter().filter(|(_, entry)| entry.from == generation) {
                self.grant_hits.clear(*index)?;
            }
        }
        self.grants.set_all(&fresh)?;
        Ok(indices)
    }

    /// Ends the grants that the new generation has not, right before the flip: they stand through `live`.
    pub(super) fn retire_grants(&self, kept: &[u32], live: u32) -> Result<(), Error> {
        if live == 0 {
            return Ok(());
        }
        let kept: HashSet<u32> = kept.iter().copied().collect();
        let mut ended = Vec::new();
        self.grants.each(|&index, &entry| {
            if index != 0 && entry.from != 0 && entry.until == u32::MAX && !kept.contains(&index) {
                ended.push((index, GrantEntry { until: live, ..entry }));
            }
            true
        })?;
        self.grants.set_all(&ended)
    }
}
