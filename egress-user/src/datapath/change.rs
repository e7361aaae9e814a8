//! Changes of the live policy in place: what they write before the flip, the flip, and what they take out after it.

use std::{net::IpAddr, thread};

use egress_ebpf::abi::{self, ClassChunk, Config, NEVER};

use super::{
    Datapath, Error, Installed, boot_ticks,
    classes::Allotted,
    control,
    install::{IN_FLIGHT, Lookup, check, look_up, tell_missing},
    lower::{self, Place, Settings},
    patch::{Patch, Side},
    sys,
};
use crate::policy::Compiled;

/// A change in place, written as far as the flip.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) installed: Installed,
    pub(super) patch: Patch,
    pub(super) allotted: Allotted,
}

impl Datapath {
    /// Installs a policy for good. Where `previous` is the live one, of the generation beside it, only what they differ in is
    /// written, if that can be done.
    ///
    /// # Errors
    /// As [`Datapath::install_for`].
    pub fn change(
        &mut self,
        (previous, generation): (&Compiled, u32),
        policy: &Compiled,
        settings: &Settings,
        learned: Lookup<'_>,
    ) -> Result<Installed, Error> {
        let live = self.ready()?;
        if !self.whole || live == 0 || generation != live || previous.classes.len() != self.class_index.len() {
            return self.install_for(policy, settings, learned, None);
        }
        let result = match self.prepare(live, previous, policy, settings, learned) {
            Ok(Some(prepared)) => self.flip(&prepared).and_then(|()| self.finish(prepared).map(Some)),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        if !matches!(result, Ok(Some(_))) && self.generation()? == live {
            self.give_up(live)?;
        }
        match result {
            Ok(Some(installed)) => Ok(installed),
            // What it lacks is room for both at once, or a way; beside the old one there may be.
            Ok(None) | Err(Error::Full { .. } | Error::Ports { .. }) => {
                self.install_for(policy, settings, learned, None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes everything that must be there before the flip. Under the live generation nothing changes by it. `None` where the
    /// change cannot be made in place.
    pub(super) fn prepare(
        &mut self,
        live: u32,
        previous: &Compiled,
        policy: &Compiled,
        settings: &Settings,
        learned: Lookup<'_>,
    ) -> Result<Option<Prepared>, Error> {
        self.check_size(policy)?;
        // Whatever goes wrong from here on leaves something behind.
        self.whole = false;
        let generation = self.next_generation(live)?;
        let epoch = self.epoch(live)?;
        let grants = self.allot_grants(policy, live, generation)?;
        let mut known = self.known_classes(live)?;
        if known.room() < self.classes.capacity() as usize / 4 {
            self.collect_classes(&mut known, epoch, boot_ticks())?;
        }
        let allotted = known.allot(policy, &grants, generation)?;
        let inner = self.inner_base(epoch);
        let old =
            Side { policy: previous, place: Place { generation: live, epoch, classes: &self.class_index, inner } };
        let new = Side { policy, place: Place { generation, epoch, classes: &allotted.index, inner } };
        let Some(patch) = Patch::between(old, new, &mut known, &allotted)? else { return Ok(None) };
        let config = lower::config(policy, settings, new.place);
        // Before anything is learned: from then on a class that ends stands for no other.
        self.classes.set_all(&allotted.before())?;
        self.classes.set_all(&patch.turns)?;
        self.resolvers.set_all(&lower::resolvers(settings, generation))?;
        patch.names.prepare(&self.names)?;
        patch.prefixes_4.prepare(&self.prefixes_4)?;
        patch.prefixes_6.prepare(&self.prefixes_6)?;
        patch.denies_4.prepare(&self.denies_4)?;
        patch.denies_6.prepare(&self.denies_6)?;
        // From here on, what the kernel learns counts for both generations.
        self.configs.set(&(generation & 1), &config, sys::ANY)?;
        let written: Vec<_> = patch.addresses.iter().map(|&(address, class)| (address, class, NEVER)).collect();
        self.write_addresses(epoch, &written)?;
        tell_missing(self.learn_all(policy, &allotted.index, epoch, &look_up(policy, live, learned))?);
        if self.configs.get(&(generation & 1))? != Some(config) {
            return Err(Error::ReadBack("CONFIG"));
        }
        self.retire_grants(&grants, live)?;
        Ok(Some(Prepared { installed: Installed { generation, epoch, grants }, patch, allotted }))
    }

    /// Makes what was prepared the live policy, by one word.
    pub(super) fn flip(&mut self, prepared: &Prepared) -> Result<(), Error> {
        let generation = prepared.installed.generation;
        self.live.set(&0, &abi::Live { generation, deadline: 0 }.pack(), sys::ANY)?;
        self.class_index.clone_from(&prepared.allotted.index);
        self.previous_index.clear();
        Ok(())
    }

    /// After a flip in place: takes out what only the old policy needed.
    pub(super) fn finish(&mut self, prepared: Prepared) -> Result<Installed, Error> {
        let Prepared { installed, patch, allotted } = prepared;
        let Installed { generation, epoch, .. } = installed;
        thread::sleep(IN_FLIGHT);
        self.configs.set(&(!generation & 1), &Config::default(), sys::ANY)?;
        control::end(&mut self.object, epoch, &patch.ended)?;
        let addresses: Vec<IpAddr> = patch.ended.iter().map(|(address, _)| *address).collect();
        control::reclaim(&mut self.object, epoch, &addresses)?;
        patch.names.finish(&self.names)?;
        patch.prefixes_4.finish(&self.prefixes_4)?;
        patch.prefixes_6.finish(&self.prefixes_6)?;
        patch.denies_4.finish(&self.denies_4)?;
        patch.denies_6.finish(&self.denies_6)?;
        self.resolvers.remove_where(|key| key.generation != generation)?;
        self.classes.set_all(&allotted.settled())?;
        if !patch.turns.is_empty() {
            // A program that read a prefix's class before it was written anew has gone on by then.
            thread::sleep(IN_FLIGHT);
            let idle: Vec<_> = patch.turns.iter().map(|&(index, _)| (index, ClassChunk::default())).collect();
            self.classes.set_all(&idle)?;
        }
        self.whole = true;
        tracing::debug!(generation, elements = patch.len(), "the policy was changed in place");
        Ok(installed)
    }

    /// The same of a policy that is written in place.
    fn check_size(&self, policy: &Compiled) -> Result<(), Error> {
        let (addresses, prefixes): (Vec<_>, Vec<_>) =
            policy.addresses.iter().map(|entry| entry.net).partition(lower::is_address);
        let of = |nets: &[ipnet::IpNet], v4: bool| nets.iter().filter(|net| net.addr().is_ipv4() == v4).count();
        let denies: Vec<_> = policy.denies.iter().map(|entry| entry.net).collect();
        let classes = policy.classes.iter().filter(|class| !class.ports.is_empty()).count();
        check("sets of ports", classes, self.classes.capacity() / 2 - 1)?;
        check("names", policy.names.len(), self.names.capacity() / 2)?;
        check("IPv4 prefixes", of(&prefixes, true), self.prefixes_4.capacity() / 2)?;
        check("IPv6 prefixes", of(&prefixes, false), self.prefixes_6.capacity() / 2)?;
        check("denied IPv4 prefixes", of(&denies, true), self.denies_4.capacity() / 2)?;
        check("denied IPv6 prefixes", of(&denies, false), self.denies_6.capacity() / 2)?;
        check("addresses", addresses.len(), self.addresses_4.capacity() / 2)
    }
}
