//! A live generation taken up as it is, where it is this very policy's.

use std::net::IpAddr;

use egress_ebpf::abi::{AddressKey4, AddressKey6, Config, NEVER, Slot};

use super::{
    Datapath, Error, Installed, Plain, Table,
    install::numbered,
    lower::{self, Elements, Place, Settings},
};
use crate::policy::Compiled;

impl Datapath {
    /// Takes up the live generation as it is, with all that was learned in it, if it is this very policy's; else `None`.
    pub fn adopt(&mut self, policy: &Compiled, settings: &Settings) -> Result<Option<Installed>, Error> {
        let live = self.generation()?;
        if live == 0 {
            return Ok(None);
        }
        let (known, _) = self.known_grants(live)?;
        let grants: Option<Vec<u32>> =
            policy.grants.iter().map(|grant| known.get(&grant.key).map(|(index, _)| *index)).collect();
        let Some(grants) = grants.filter(|grants| grants.len() == known.len()) else { return Ok(None) };
        let on_trial = self.live()?.deadline != 0;
        let mut classes = self.known_classes(live)?;
        let Ok(allotted) = classes.allot(policy, &grants, live) else { return Ok(None) };
        if !classes.is_settled(live, on_trial) || !allotted.fresh.is_empty() || !allotted.ended.is_empty() {
            return Ok(None);
        }
        let epoch = self.epoch(live)?;
        let place = Place { generation: live, epoch, classes: &allotted.index, inner: self.inner_base(epoch) };
        let elements = lower::lower(policy, settings, place);
        if !self.holds(&elements, place.inner)? {
            // Somebody else has been at the tables: what comes next is written whole, not over what is not there.
            self.whole = false;
            return Ok(None);
        }
        self.class_index = allotted.index;
        self.whole = !on_trial;
        Ok(Some(Installed { generation: live, epoch, grants }))
    }

    /// Whether the live generation was made for this policy, be it that a change to it was cut short after the flip.
    pub fn judges_by(&self, policy: &Compiled) -> Result<bool, Error> {
        let live = self.generation()?;
        let config = self.configs.get(&(live & 1))?.unwrap_or_default();
        Ok(live != 0 && config.generation == live && config.policy == policy.hash)
    }

    /// Whether the maps hold exactly these elements for their epoch.
    fn holds(&self, elements: &Elements, inner: u32) -> Result<bool, Error> {
        let Config { generation, epoch, .. } = elements.config;
        let as_many = |keys: usize, elements: usize| keys == elements;
        let names = self.names.keys()?.iter().filter(|key| key.epoch == epoch as u16).count();
        let resolvers = self.resolvers.keys()?.iter().filter(|key| key.generation == generation).count();
        Ok(self.verify(elements).is_ok()
            && as_many(names, elements.names.len())
            && as_many(resolvers, elements.resolvers.len())
            && as_many(count(&self.prefixes_4, |key| key.epoch == epoch)?, elements.prefixes_4.len())
            && as_many(count(&self.prefixes_6, |key| key.epoch == epoch)?, elements.prefixes_6.len())
            && as_many(count(&self.denies_4, |key| key.epoch == epoch)?, elements.denies_4.len())
            && as_many(count(&self.denies_6, |key| key.epoch == epoch)?, elements.denies_6.len())
            && all(&self.prefixes_4, &elements.prefixes_4)?
            && all(&self.prefixes_6, &elements.prefixes_6)?
            && all(&self.resolvers, &elements.resolvers)?
            && all(&self.inner, &numbered(inner, &elements.inner))?
            && self.has_addresses(epoch, &elements.addresses)?)
    }

    /// Whether the policy's own addresses are there, each with its class.
    fn has_addresses(&self, epoch: u32, addresses: &[(IpAddr, u32)]) -> Result<bool, Error> {
        for &(address, class) in addresses {
            let entry = match address {
                IpAddr::V4(address) => self.addresses_4.get(&AddressKey4 { address: address.octets(), epoch })?,
                IpAddr::V6(_) => self.addresses_6.get(&AddressKey6 { address: address.into(), epoch, pad: 0 })?,
            };
            let own = Slot { class, expiry: NEVER }.pack();
            if entry.is_none_or(|entry| !entry.slots.contains(&own)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads back what was written, before it counts.
    pub(super) fn verify(&self, elements: &Elements) -> Result<(), Error> {
        let generation = elements.config.generation;
        if self.configs.get(&(generation & 1))? != Some(elements.config) {
            return Err(Error::ReadBack("CONFIG"));
        }
        for (key, value) in &elements.names {
            // An entry of a change that was cut short says something else to a later generation.
            if self.names.get(key)?.is_none_or(|entry| entry.since > generation || entry.now != value.now) {
                return Err(Error::ReadBack("NAMES"));
            }
        }
        for (key, value) in &elements.denies_4 {
            if self.denies_4.get(key)? != Some(*value) {
                return Err(Error::ReadBack("DENIES_4"));
            }
        }
        for (key, value) in &elements.denies_6 {
            if self.denies_6.get(key)? != Some(*value) {
                return Err(Error::ReadBack("DENIES_6"));
            }
        }
        Ok(())
    }
}

/// How many keys of a table satisfy `wanted`.
fn count<K: Plain, V: Plain>(table: &Table<K, V>, wanted: impl Fn(&K) -> bool) -> Result<usize, Error> {
    Ok(table.keys()?.iter().filter(|key| wanted(key)).count())
}

/// Whether a table holds all of these elements.
fn all<K: Plain, V: Plain + PartialEq>(table: &Table<K, V>, elements: &[(K, V)]) -> Result<bool, Error> {
    for (key, value) in elements {
        if table.get(key)? != Some(*value) {
            return Ok(false);
        }
    }
    Ok(true)
}
