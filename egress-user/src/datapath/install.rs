//! Policies in the kernel: one generation beside the other, then a flip.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use egress_ebpf::abi::{
    self, AddressEntry, AddressKey4, AddressKey6, ClassChunk, Config, Flow, FlowKey, GrantEntry, Hits, InnerWildcard,
    NEVER, NameValue, ORIGIN_IN, PROTO_TCP, PrefixKey4, PrefixKey6, REMOVALS_BEGUN, REMOVALS_ENDED, ResolverKey,
    ResolverTrust, Ticks, ZONE_SOCKET, ZONE_UPLINK,
};

use super::{
    Error, Object, Plain, Table, boot_ticks, control, grants,
    lower::{self, Bases, Elements, Settings},
    sys,
};
use crate::policy::Compiled;

/// Programs that began under the old generation are done long before this: they run for microseconds.
const IN_FLIGHT: Duration = Duration::from_millis(5);

/// An address that a name was learned to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// The name, lower case, without a trailing dot.
    pub name: String,
    /// The addresses, each with the tick at which it stops counting.
    pub addresses: Vec<(IpAddr, Ticks)>,
}

/// What an installation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The generation that is live now.
    pub generation: u32,
    /// The index in map `GRANTS` of each of the policy's grants.
    pub grants: Vec<u32>,
}

/// The maps of one loaded object, and what is in them.
#[derive(Debug)]
pub struct Datapath {
    pub(super) object: Object,
    pub(super) live: Table<u32, u64>,
    pub(super) configs: Table<u32, Config>,
    pub(super) addresses_4: Table<AddressKey4, AddressEntry>,
    pub(super) addresses_6: Table<AddressKey6, AddressEntry>,
    pub(super) reclaims: Table<u32, u64>,
    pub(super) prefixes_4: Table<PrefixKey4, u32>,
    pub(super) prefixes_6: Table<PrefixKey6, u32>,
    pub(super) denies_4: Table<PrefixKey4, u32>,
    pub(super) denies_6: Table<PrefixKey6, u32>,
    pub(super) classes: Table<u32, ClassChunk>,
    pub(super) grants: Table<u32, GrantEntry>,
    pub(super) grant_hits: Table<u32, Hits>,
    pub(super) resolvers: Table<ResolverKey, ResolverTrust>,
    pub(super) names: Table<abi::NameKey, NameValue>,
    pub(super) inner: Table<u32, InnerWildcard>,
    pub(super) flows: Table<FlowKey, Flow>,
    pub(super) aliases: Table<abi::AliasKey, abi::Alias>,
    pub(super) counters: Table<u32, Hits>,
    pub(super) events_lost: Table<u32, u64>,
    /// The indices of the classes of the live policy.
    pub(super) class_index: Vec<u32>,
    /// The same of the policy to go back to, while the live one is not confirmed; empty where that is not known.
    pub(super) previous_index: Vec<u32>,
}

impl Datapath {
    /// Takes the maps of a loaded object.
    pub fn new(object: Object) -> Result<Self, Error> {
        Ok(Self {
            live: object.table("LIVE")?,
            configs: object.table("CONFIG")?,
            addresses_4: object.table("ADDRESSES_4")?,
            addresses_6: object.table("ADDRESSES_6")?,
            reclaims: object.table("RECLAIMS")?,
            prefixes_4: object.table("PREFIXES_4")?,
            prefixes_6: object.table("PREFIXES_6")?,
            denies_4: object.table("DENIES_4")?,
            denies_6: object.table("DENIES_6")?,
            classes: object.table("CLASSES")?,
            grants: object.table("GRANTS")?,
            grant_hits: object.table("GRANT_HITS")?,
            resolvers: object.table("RESOLVERS")?,
            names: object.table("NAMES")?,
            inner: object.table("INNER_WILDCARDS")?,
            flows: object.table("FLOWS")?,
            aliases: object.table("ALIASES")?,
            counters: object.table("COUNTERS")?,
            events_lost: object.table("EVENTS_LOST")?,
            object,
            class_index: Vec::new(),
            previous_index: Vec::new(),
        })
    }

    /// Whether the object's maps, perhaps pinned by somebody else, have the shapes that are written to.
    ///
    /// # Errors
    /// [`Error::Shape`].
    pub fn check(object: Object) -> Result<Object, Error> {
        Self::new(object).map(|datapath| datapath.object)
    }

    /// The object, for its programs.
    pub fn object(&mut self) -> &mut Object {
        &mut self.object
    }

    /// Installs a policy and makes it the live one. On an error the old one stays, untouched.
    pub fn install(&mut self, policy: &Compiled, settings: &Settings, learned: &[Learned]) -> Result<Installed, Error> {
        self.install_until(policy, settings, learned, 0)
    }

    /// [`Datapath::install`], until a tick from which on the kernel takes the old policy again; 0 for good.
    ///
    /// # Errors
    /// [`Error::Unconfirmed`] while another policy waits for its confirmation.
    pub fn install_until(
        &mut self,
        policy: &Compiled,
        settings: &Settings,
        learned: &[Learned],
        deadline: Ticks,
    ) -> Result<Installed, Error> {
        self.settle()?;
        if self.live()?.deadline != 0 {
            return Err(Error::Unconfirmed);
        }
        let live = self.generation()?;
        let result = self.install_after(live, policy, settings, learned, deadline);
        if result.is_err() && self.generation()? == live {
            // The kernel is to stop learning into what will not become the live generation.
            self.configs.set(&(live.wrapping_add(1) & 1), &Config::default(), sys::ANY)?;
            self.sweep(live)?;
        }
        result
    }

    fn install_after(
        &mut self,
        live: u32,
        policy: &Compiled,
        settings: &Settings,
        learned: &[Learned],
        deadline: Ticks,
    ) -> Result<Installed, Error> {
        // An installation that was cut short may have left elements of the generation that it meant to make.
        self.sweep(live)?;
        let generation = self.next_generation(live)?;
        let bases = self.bases(generation);
        let grants = self.allot_grants(policy, live, generation)?;
        let elements = lower::lower(policy, settings, generation, &grants, bases)?;
        self.check_room(&elements)?;
        self.write(&elements, bases)?;
        // From here on, what the kernel learns goes into both generations.
        self.configs.set(&(generation & 1), &elements.config, sys::ANY)?;
        let written: Vec<_> = elements.addresses.iter().map(|&(address, class)| (address, class, NEVER)).collect();
        self.write_addresses(generation, &written)?;
        // What was learned is not what the policy says: where it does not fit beside the old generation's, it is learned anew
        // when it is asked for, and a full table keeps nobody from another policy.
        let mut missing = 0;
        let exact: HashSet<&str> = policy.exact_names.iter().map(|name| name.as_str()).collect();
        let (first, rest): (Vec<_>, Vec<_>) = learned.iter().partition(|known| exact.contains(known.name.as_str()));
        for learned in first.into_iter().chain(rest) {
            missing += lost(self.learn_into(policy, &elements.class_index, generation, learned))?;
        }
        missing += lost(self.carry_over(live, bases, &elements))?;
        if missing != 0 {
            tracing::warn!(
                addresses = missing,
                "the new policy begins without some learned addresses: the table is full; `egress run --max-addresses` makes room"
            );
        }
        self.verify(&elements)?;
        self.retire_grants(&grants, live)?;
        // The one to go back to is there only where there is one.
        let deadline = if live == 0 { 0 } else { deadline };
        self.live.set(&0, &abi::Live { generation, deadline }.pack(), sys::ANY)?;
        self.previous_index = std::mem::replace(&mut self.class_index, elements.class_index);
        if live != 0 && deadline == 0 {
            self.forget_other(generation)?;
        }
        Ok(Installed { generation, grants })
    }

    /// Writes addresses of a name into the live generation, as `policy` (the live one) allows. Gives whether any rule
    /// wants the name.
    pub fn learn(&mut self, policy: &Compiled, learned: &Learned) -> Result<bool, Error> {
        let generation = self.generation()?;
        let class_index = std::mem::take(&mut self.class_index);
        let result = self.learn_into(policy, &class_index, generation, learned);
        self.class_index = class_index;
        result
    }

    /// [`Datapath::learn`] for the policy to go back to, while the live one is not confirmed.
    pub fn learn_previous(&mut self, policy: &Compiled, learned: &Learned) -> Result<(), Error> {
        let previous = self.configs.get(&(!self.live()?.generation & 1))?.unwrap_or_default().generation;
        if previous == 0 || previous == self.generation()? {
            return Ok(());
        }
        let class_index = std::mem::take(&mut self.previous_index);
        let result = self.learn_into(policy, &class_index, previous, learned);
        self.previous_index = class_index;
        result.map(drop)
    }

    fn learn_into(
        &mut self,
        policy: &Compiled,
        class_index: &[u32],
        generation: u32,
        learned: &Learned,
    ) -> Result<bool, Error> {
        let found = policy.match_name(&learned.name);
        for class in &found.classes {
            let Some(&index) = class_index.get(*class as usize) else { continue };
            let addresses: Vec<_> =
                learned.addresses.iter().map(|&(address, expiry)| (address, index, expiry)).collect();
            self.write_addresses(generation, &addresses)?;
        }
        Ok(!found.classes.is_empty())
    }

    fn write_addresses(&mut self, generation: u32, addresses: &[(IpAddr, u32, Ticks)]) -> Result<(), Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        control::learn(&mut self.object, generation, addresses, self.addresses_4.capacity())
    }

    /// Copies what the kernel learned in the live generation into the one that is made: an address keeps a class where the
    /// new policy has one of the same rule items and ports. (A class of more than one chunk is left to be learned anew.)
    fn carry_over(&mut self, live: u32, bases: Bases, elements: &Elements) -> Result<(), Error> {
        if live == 0 {
            return Ok(());
        }
        let same: HashMap<_, u32> = elements
            .classes
            .iter()
            .zip(bases.class..)
            .filter(|(chunk, _)| chunk.next == 0)
            .map(|(chunk, index)| (chunk.ports, index))
            .collect();
        let mut old: Vec<(IpAddr, AddressEntry)> = Vec::new();
        self.addresses_4.each(|key, entry| {
            old.extend((key.generation == live).then(|| (IpAddr::from(key.address), *entry)));
            true
        })?;
        self.addresses_6.each(|key, entry| {
            old.extend((key.generation == live).then(|| (IpAddr::from(key.address), *entry)));
            true
        })?;
        let now = boot_ticks();
        let mut classes = HashMap::new();
        let first = self.bases(live).class;
        let ours = first..first + self.classes.capacity() / 2 - 1;
        self.classes.each(|index, chunk| {
            if ours.contains(index)
                && let (0, Some(&class)) = (chunk.next, same.get(&chunk.ports))
            {
                classes.insert(*index, class);
            }
            true
        })?;
        self.carry_aliases(live, elements.config.generation, now, &classes)?;
        let mut kept = Vec::new();
        for (address, entry) in old {
            for slot in entry.slots.into_iter().map(abi::Slot::unpack) {
                if slot.expiry == NEVER || !slot.lives(now) {
                    continue;
                }
                if let Some(&class) = classes.get(&slot.class) {
                    kept.push((address, class, slot.expiry));
                }
            }
        }
        self.write_addresses(elements.config.generation, &kept)
    }

    /// Ends every generation but `keep`, the live one: it learns no more, and its elements go.
    pub fn forget_other(&mut self, keep: u32) -> Result<(), Error> {
        thread::sleep(IN_FLIGHT);
        self.previous_index.clear();
        self.configs.set(&(!keep & 1), &Config::default(), sys::ANY)?;
        self.sweep(keep)
    }

    /// Deletes the elements of every generation but `keep`.
    fn sweep(&self, keep: u32) -> Result<(), Error> {
        // As the `control` program counts what it takes out; nobody else writes the counts meanwhile. What a sweep that was cut
        // short left begun makes packets look twice, and ends with this one.
        let begun = self.reclaims.get(&REMOVALS_BEGUN)?.unwrap_or(0) + 1;
        self.reclaims.set(&REMOVALS_BEGUN, &begun, sys::ANY)?;
        self.addresses_4.retain(|key| key.generation != keep)?;
        self.addresses_6.retain(|key| key.generation != keep)?;
        self.reclaims.set(&REMOVALS_ENDED, &begun, sys::ANY)?;
        self.prefixes_4.retain(|key| key.generation != keep)?;
        self.prefixes_6.retain(|key| key.generation != keep)?;
        self.denies_4.retain(|key| key.generation != keep)?;
        self.denies_6.retain(|key| key.generation != keep)?;
        self.resolvers.retain(|key| key.generation != keep)?;
        self.names.retain(|key| key.generation != keep as u16)?;
        self.aliases.retain(|key| key.generation != keep as u16)?;
        Ok(())
    }

    /// Even generations use the lower half of the shared arrays, odd ones the upper half. Index 0 stays unused.
    fn bases(&self, generation: u32) -> Bases {
        let half = |capacity: u32| if generation & 1 == 0 { 1 } else { capacity / 2 };
        Bases { class: half(self.classes.capacity()), inner: half(self.inner.capacity()) }
    }

    fn check_room(&self, elements: &Elements) -> Result<(), Error> {
        let check = |what, needed: usize, capacity: u32| {
            if needed > capacity as usize {
                Err(Error::Full { what, needed, capacity: capacity as usize })
            } else {
                Ok(())
            }
        };
        check("sets of ports", elements.classes.len(), self.classes.capacity() / 2 - 1)?;
        check("wildcards inside a label", elements.inner.len(), self.inner.capacity() / 2 - 1)?;
        check("names", elements.names.len(), self.names.capacity() / 2)?;
        check("IPv4 prefixes", elements.prefixes_4.len(), self.prefixes_4.capacity() / 2)?;
        check("IPv6 prefixes", elements.prefixes_6.len(), self.prefixes_6.capacity() / 2)?;
        check("denied IPv4 prefixes", elements.denies_4.len(), self.denies_4.capacity() / 2)?;
        check("denied IPv6 prefixes", elements.denies_6.len(), self.denies_6.capacity() / 2)?;
        check("addresses", elements.addresses.len(), self.addresses_4.capacity() / 2)?;
        check("resolvers", elements.resolvers.len(), self.resolvers.capacity() / 2)
    }

    fn write(&self, elements: &Elements, bases: Bases) -> Result<(), Error> {
        self.classes.set_all(&numbered(bases.class, &elements.classes))?;
        self.inner.set_all(&numbered(bases.inner, &elements.inner))?;
        self.names.set_all(&elements.names)?;
        self.prefixes_4.set_all(&elements.prefixes_4)?;
        self.prefixes_6.set_all(&elements.prefixes_6)?;
        self.denies_4.set_all(&elements.denies_4)?;
        self.denies_6.set_all(&elements.denies_6)?;
        self.resolvers.set_all(&elements.resolvers)
    }

    /// Takes up the live generation as it is, with all that was learned in it, if it is this very policy's; else `None`.
    pub fn adopt(&mut self, policy: &Compiled, settings: &Settings) -> Result<Option<Installed>, Error> {
        let live = self.generation()?;
        if live == 0 {
            return Ok(None);
        }
        let (known, _) = self.known_grants(live)?;
        let grants: Option<Vec<u32>> = policy
            .grants
            .iter()
            .map(|grant| known.get(&grants::key(grant.key.as_bytes())).map(|(index, _)| *index))
            .collect();
        let Some(grants) = grants.filter(|grants| grants.len() == known.len()) else { return Ok(None) };
        let bases = self.bases(live);
        let elements = lower::lower(policy, settings, live, &grants, bases)?;
        if !self.holds(&elements, bases)? {
            return Ok(None);
        }
        self.class_index = elements.class_index;
        Ok(Some(Installed { generation: live, grants }))
    }

    /// Whether the maps hold exactly these elements for their generation.
    fn holds(&self, elements: &Elements, bases: Bases) -> Result<bool, Error> {
        let generation = elements.config.generation;
        let as_many = |keys: usize, elements: usize| keys == elements;
        let names = self.names.keys()?.iter().filter(|key| key.generation == generation as u16).count();
        let resolvers = self.resolvers.keys()?.iter().filter(|key| key.generation == generation).count();
        Ok(self.verify(elements).is_ok()
            && as_many(names, elements.names.len())
            && as_many(resolvers, elements.resolvers.len())
            && as_many(of_generation(&self.prefixes_4, |key| key.generation == generation)?, elements.prefixes_4.len())
            && as_many(of_generation(&self.prefixes_6, |key| key.generation == generation)?, elements.prefixes_6.len())
            && as_many(of_generation(&self.denies_4, |key| key.generation == generation)?, elements.denies_4.len())
            && as_many(of_generation(&self.denies_6, |key| key.generation == generation)?, elements.denies_6.len())
            && all(&self.prefixes_4, &elements.prefixes_4)?
            && all(&self.prefixes_6, &elements.prefixes_6)?
            && all(&self.resolvers, &elements.resolvers)?
            && all(&self.classes, &numbered(bases.class, &elements.classes))?
            && all(&self.inner, &numbered(bases.inner, &elements.inner))?)
    }

    /// Reads back what was written, before it counts.
    fn verify(&self, elements: &Elements) -> Result<(), Error> {
        let generation = elements.config.generation;
        if self.configs.get(&(generation & 1))? != Some(elements.config) {
            return Err(Error::ReadBack("CONFIG"));
        }
        for (key, value) in &elements.names {
            if self.names.get(key)? != Some(*value) {
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

    /// Remembers connections that were accepted before the programs were attached, so that they go on.
    pub fn remember_accepted(&self, connections: &[(SocketAddr, SocketAddr)]) -> Result<(), Error> {
        let flow = Flow { seen: 0, generation: self.generation()?, grant: 0, origin: ORIGIN_IN };
        for (local, remote) in connections {
            for zone in [ZONE_SOCKET, ZONE_UPLINK] {
                self.flows.set(&connection_key(*local, *remote, zone), &flow, sys::ANY)?;
            }
        }
        Ok(())
    }
}

/// The key of a TCP connection in map `FLOWS`, by its near and far end.
pub(super) fn connection_key(local: SocketAddr, remote: SocketAddr, zone: u8) -> FlowKey {
    FlowKey {
        local: local.ip().to_canonical().into(),
        remote: remote.ip().to_canonical().into(),
        local_port: local.port(),
        remote_port: remote.port(),
        proto: PROTO_TCP,
        zone,
        pad: 0,
    }
}

/// How many learned addresses had no room.
fn lost<T>(written: Result<T, Error>) -> Result<usize, Error> {
    match written {
        Ok(_) => Ok(0),
        Err(Error::Full { needed, .. }) => Ok(needed),
        Err(error) => Err(error),
    }
}

/// Elements of an array, with the indices that they have from `base` on.
fn numbered<T: Copy>(base: u32, elements: &[T]) -> Vec<(u32, T)> {
    (base..).zip(elements.iter().copied()).collect()
}

/// How many keys of a table satisfy `wanted`.
fn of_generation<K: Plain, V: Plain>(table: &Table<K, V>, wanted: impl Fn(&K) -> bool) -> Result<usize, Error> {
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
