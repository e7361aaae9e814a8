//! Policies in the kernel: a new generation is prepared beside the live one, then a flip.
//!
//! Its elements are of an *epoch*. A first policy, one on trial, and one that differs in wildcards inside a label or in
//! `dns.allowPrivate` get an epoch of their own; every other change is written into the live one: see [`super::change`].

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use egress_ebpf::{
    abi::{
        self, AddressEntry, AddressKey4, AddressKey6, ClassChunk, Config, Flow, FlowKey, GrantEntry, Hits,
        InnerWildcard, NEVER, NameEntry, ORIGIN_IN, PROTO_TCP, PrefixKey4, PrefixKey6, REMOVALS_BEGUN, REMOVALS_ENDED,
        ResolverKey, ResolverTrust, Ticks, ZONE_SOCKET, ZONE_UPLINK,
    },
    dns::is_private,
};

use super::{
    Error, Object, Table, aliases, boot_ticks,
    classes::Allotted,
    confirm::deadline_after,
    control,
    lower::{self, Elements, Place, Settings},
    sys,
};
use crate::policy::Compiled;

/// Programs that began under the old generation are done long before this: they run for microseconds.
pub(super) const IN_FLIGHT: Duration = Duration::from_millis(5);

/// So many addresses of names are written together.
const TOGETHER: usize = 4096;

/// An address that a name was learned to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// The name, lower case, without a trailing dot.
    pub name: String,
    /// The addresses, each with the tick at which it stops counting.
    pub addresses: Vec<(IpAddr, Ticks)>,
}

/// Looks up what is known of names. It is asked once the kernel learns for both policies: what was learned before is in there, or it is lost.
pub type Lookup<'a> = &'a dyn Fn() -> Vec<Learned>;

/// What an installation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The generation that is live now.
    pub generation: u32,
    /// The epoch of its elements.
    pub epoch: u32,
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
    pub(super) names: Table<abi::NameKey, NameEntry>,
    pub(super) inner: Table<u32, InnerWildcard>,
    pub(super) flows: Table<FlowKey, Flow>,
    pub(super) aliases: Table<abi::AliasKey, abi::Alias>,
    pub(super) counters: Table<u32, Hits>,
    pub(super) events_lost: Table<u32, u64>,
    /// The indices of the classes of the live policy.
    pub(super) class_index: Vec<u32>,
    /// The live epoch holds the live policy's elements and nothing else: only then it can be changed in place.
    pub(super) whole: bool,
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
            whole: false,
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
        self.install_for(policy, settings, &|| learned.to_vec(), None)
    }

    /// [`Datapath::install`], for so long from the flip on: then the kernel takes the old policy again. `None` is for good.
    ///
    /// # Errors
    /// [`Error::Unconfirmed`] while another policy waits for its confirmation.
    pub fn install_for(
        &mut self,
        policy: &Compiled,
        settings: &Settings,
        learned: Lookup<'_>,
        wait: Option<Duration>,
    ) -> Result<Installed, Error> {
        let live = self.ready()?;
        let result = self.install_beside(live, policy, settings, learned, wait);
        if result.is_err() && self.generation()? == live {
            self.give_up(live)?;
            self.restore_classes(self.last_generation()?)?;
        }
        result
    }

    /// The live generation, once nothing is on trial.
    pub(super) fn ready(&mut self) -> Result<u32, Error> {
        self.settle()?;
        if self.live()?.deadline != 0 {
            return Err(Error::Unconfirmed);
        }
        self.generation()
    }

    /// After an installation that failed: the kernel is to stop learning into what will not become the live generation.
    pub(super) fn give_up(&mut self, live: u32) -> Result<(), Error> {
        self.configs.set(&(live.wrapping_add(1) & 1), &Config::default(), sys::ANY)?;
        self.sweep(live)
    }

    /// Writes a whole policy under an epoch of its own.
    fn install_beside(
        &mut self,
        live: u32,
        policy: &Compiled,
        settings: &Settings,
        learned: Lookup<'_>,
        wait: Option<Duration>,
    ) -> Result<Installed, Error> {
        // Whatever goes wrong from here on leaves something behind.
        self.whole = false;
        // So may an earlier installation that was cut short.
        self.sweep(live)?;
        let generation = self.next_generation(live)?;
        let from = self.epoch(live)?;
        // Never given out before, and of the other half of the inner wildcards.
        let epoch = generation << 1 | (!from & 1);
        let grants = self.allot_grants(policy, live, generation)?;
        let mut known = self.known_classes(live)?;
        self.classes.set_all(&known.reuse_parked(live))?;
        // Of the first policy nothing has to wait for the flip: until then everything is dropped.
        let allotted = known.allot(policy, &grants, if live == 0 { 0 } else { generation })?;
        let place = Place { generation, epoch, classes: &allotted.index, inner: self.inner_base(epoch) };
        let elements = lower::lower(policy, settings, place);
        self.check_room(&elements, &allotted)?;
        self.classes.set_all(&allotted.before())?;
        self.write(&elements, place.inner)?;
        // From here on, what the kernel learns goes into both generations.
        self.configs.set(&(generation & 1), &elements.config, sys::ANY)?;
        let written: Vec<_> = elements.addresses.iter().map(|&(address, class)| (address, class, NEVER)).collect();
        self.write_addresses(epoch, &written)?;
        let mut missing = self.learn_all(policy, &allotted.index, epoch, &look_up(policy, live, learned))?;
        if from != 0 {
            let private = aliases::private_classes(policy, &allotted.index);
            self.carry_aliases(from, epoch, boot_ticks(), &allotted.kept, &private)?;
            // Which names a private address was learned for nobody knows here, only that other ones may have such.
            let others =
                self.configs.get(&(live & 1))?.unwrap_or_default().allow_private != elements.config.allow_private;
            missing += lost(self.carry_over(from, epoch, &allotted.kept, others))?;
        }
        tell_missing(missing);
        self.verify(&elements)?;
        self.retire_grants(&grants, live)?;
        // The one to go back to is there only where there is one.
        let deadline = wait.filter(|_| live != 0).map_or(0, deadline_after);
        self.live.set(&0, &abi::Live { generation, deadline }.pack(), sys::ANY)?;
        self.previous_index = std::mem::replace(&mut self.class_index, allotted.index);
        self.whole = deadline == 0;
        if live != 0 && deadline == 0 {
            self.forget_other(generation)?;
            self.settle_classes(generation)?;
        }
        Ok(Installed { generation, epoch, grants })
    }

    /// Writes down what is known of names, as a policy has it. Gives how many addresses had no room: what was learned is not what the
    /// policy says, it is learned anew when it is asked for, and a full table keeps nobody from another policy.
    pub(super) fn learn_all(
        &mut self,
        policy: &Compiled,
        class_index: &[u32],
        epoch: u32,
        learned: &[Learned],
    ) -> Result<usize, Error> {
        let exact: HashSet<&str> = policy.exact_names.iter().map(|name| name.as_str()).collect();
        let (first, rest): (Vec<_>, Vec<_>) = learned.iter().partition(|known| exact.contains(known.name.as_str()));
        let (mut missing, mut together) = (0, Vec::new());
        for learned in first.into_iter().chain(rest) {
            // Many names a call: one has a few addresses.
            together.extend(opened(policy, class_index, learned).1);
            if together.len() >= TOGETHER {
                missing += lost(self.write_addresses(epoch, &together))?;
                together.clear();
            }
        }
        Ok(missing + lost(self.write_addresses(epoch, &together))?)
    }

    /// Writes addresses of names into the live generation, as `policy` (the live one) allows. Gives how many of the names a rule wants.
    pub fn learn(&mut self, policy: &Compiled, learned: &[Learned]) -> Result<usize, Error> {
        let epoch = self.epoch(self.generation()?)?;
        let class_index = std::mem::take(&mut self.class_index);
        let result = self.learn_into(policy, &class_index, epoch, learned);
        self.class_index = class_index;
        result
    }

    /// [`Datapath::learn`] for the policy to go back to, while the live one is not confirmed.
    pub fn learn_previous(&mut self, policy: &Compiled, learned: &[Learned]) -> Result<(), Error> {
        let previous = self.configs.get(&(!self.live()?.generation & 1))?.unwrap_or_default();
        if previous.generation == 0 || previous.generation == self.generation()? {
            return Ok(());
        }
        let class_index = std::mem::take(&mut self.previous_index);
        let result = self.learn_into(policy, &class_index, previous.epoch, learned);
        self.previous_index = class_index;
        result.map(drop)
    }

    /// All of them by as few calls as can be.
    fn learn_into<'a>(
        &mut self,
        policy: &Compiled,
        class_index: &[u32],
        epoch: u32,
        learned: impl IntoIterator<Item = &'a Learned>,
    ) -> Result<usize, Error> {
        let (mut wanted, mut addresses) = (0, Vec::new());
        for learned in learned {
            let (is_wanted, opened) = opened(policy, class_index, learned);
            wanted += usize::from(is_wanted);
            addresses.extend(opened);
        }
        self.write_addresses(epoch, &addresses)?;
        Ok(wanted)
    }

    pub(super) fn write_addresses(&mut self, epoch: u32, addresses: &[(IpAddr, u32, Ticks)]) -> Result<(), Error> {
        if addresses.is_empty() {
            return Ok(());
        }
        control::learn(&mut self.object, epoch, addresses, self.addresses_4.capacity())
    }

    /// Copies what the kernel learned in the epoch `from` into another one: an address keeps the classes that the new policy has too.
    /// Private addresses are left out where `public` says so.
    fn carry_over(&mut self, from: u32, epoch: u32, kept: &HashSet<u32>, public: bool) -> Result<(), Error> {
        let mut old: Vec<(IpAddr, AddressEntry)> = Vec::new();
        self.addresses_4.each(|key, entry| {
            old.extend((key.epoch == from).then(|| (IpAddr::from(key.address), *entry)));
            true
        })?;
        self.addresses_6.each(|key, entry| {
            old.extend((key.epoch == from).then(|| (IpAddr::from(key.address), *entry)));
            true
        })?;
        let now = boot_ticks();
        let mut carried = Vec::new();
        for (address, entry) in old.into_iter().filter(|(address, _)| !public || !is_private(&(*address).into())) {
            let living = entry.slots.into_iter().map(abi::Slot::unpack).filter(|slot| slot.lives(now));
            let same = living.filter(|slot| slot.expiry != NEVER && kept.contains(&slot.class));
            carried.extend(same.map(|slot| (address, slot.class, slot.expiry)));
        }
        self.write_addresses(epoch, &carried)
    }

    /// Ends every generation but `keep`, the live one: it learns no more, and what it alone had goes.
    pub fn forget_other(&mut self, keep: u32) -> Result<(), Error> {
        thread::sleep(IN_FLIGHT);
        self.previous_index.clear();
        self.configs.set(&(!keep & 1), &Config::default(), sys::ANY)?;
        self.sweep(keep)
    }

    /// Deletes the elements of every epoch but that of generation `keep`.
    pub(super) fn sweep(&self, keep: u32) -> Result<(), Error> {
        let epoch = self.epoch(keep)?;
        // As the `control` program counts what it takes out; nobody else writes the counts meanwhile. What a sweep that was cut
        // short left begun makes packets look twice, and ends with this one.
        let begun = self.reclaims.get(&REMOVALS_BEGUN)?.unwrap_or(0) + 1;
        self.reclaims.set(&REMOVALS_BEGUN, &begun, sys::ANY)?;
        self.addresses_4.remove_where(|key| key.epoch != epoch)?;
        self.addresses_6.remove_where(|key| key.epoch != epoch)?;
        self.reclaims.set(&REMOVALS_ENDED, &begun, sys::ANY)?;
        self.prefixes_4.remove_where(|key| key.epoch != epoch)?;
        self.prefixes_6.remove_where(|key| key.epoch != epoch)?;
        self.denies_4.remove_where(|key| key.epoch != epoch)?;
        self.denies_6.remove_where(|key| key.epoch != epoch)?;
        self.resolvers.remove_where(|key| key.generation != keep)?;
        self.names.remove_where(|key| key.epoch != epoch as u16)?;
        self.aliases.remove_where(|key| key.epoch != epoch as u16)?;
        Ok(())
    }

    /// The epoch of a generation whose configuration is there; 0 of none.
    pub(super) fn epoch(&self, generation: u32) -> Result<u32, Error> {
        let config = self.configs.get(&(generation & 1))?.unwrap_or_default();
        Ok(if generation != 0 && config.generation == generation { config.epoch } else { 0 })
    }

    /// Even epochs use the lower half of map `INNER_WILDCARDS`, odd ones the upper half. Index 0 stays unused.
    pub(super) fn inner_base(&self, epoch: u32) -> u32 {
        if epoch & 1 == 0 { 1 } else { self.inner.capacity() / 2 }
    }

    /// Whether an epoch's elements fit: each may fill half of a table, so that the next one fits beside it.
    fn check_room(&self, elements: &Elements, allotted: &Allotted) -> Result<(), Error> {
        let classes = allotted.index.iter().filter(|index| **index != 0).count();
        check("sets of ports", classes.max(allotted.fresh.len()), self.classes.capacity() / 2 - 1)?;
        check("wildcards inside a label", elements.inner.len(), self.inner.capacity() / 2 - 1)?;
        check("names", elements.names.len(), self.names.capacity() / 2)?;
        check("IPv4 prefixes", elements.prefixes_4.len(), self.prefixes_4.capacity() / 2)?;
        check("IPv6 prefixes", elements.prefixes_6.len(), self.prefixes_6.capacity() / 2)?;
        check("denied IPv4 prefixes", elements.denies_4.len(), self.denies_4.capacity() / 2)?;
        check("denied IPv6 prefixes", elements.denies_6.len(), self.denies_6.capacity() / 2)?;
        check("addresses", elements.addresses.len(), self.addresses_4.capacity() / 2)?;
        check("resolvers", elements.resolvers.len(), self.resolvers.capacity() / 2)
    }

    fn write(&self, elements: &Elements, inner: u32) -> Result<(), Error> {
        self.inner.set_all(&numbered(inner, &elements.inner))?;
        self.names.set_all(&elements.names)?;
        self.prefixes_4.set_all(&elements.prefixes_4)?;
        self.prefixes_6.set_all(&elements.prefixes_6)?;
        self.denies_4.set_all(&elements.denies_4)?;
        self.denies_6.set_all(&elements.denies_6)?;
        self.resolvers.set_all(&elements.resolvers)
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

/// What is known by now that a policy may want, beside the live generation `live`.
pub(super) fn look_up(policy: &Compiled, live: u32, learned: Lookup<'_>) -> Vec<Learned> {
    if policy.names.is_empty() {
        return Vec::new();
    }
    if live != 0 {
        // Programs that began before have told what they learned for the live policy alone.
        thread::sleep(IN_FLIGHT);
    }
    learned()
}

/// Whether any rule wants a name, and its addresses with each class that has it. Private ones only where the policy lets it have such:
/// it may have been another's that let it.
fn opened(policy: &Compiled, class_index: &[u32], learned: &Learned) -> (bool, Vec<(IpAddr, u32, Ticks)>) {
    let found = policy.match_name(&learned.name);
    let may_have = |address: IpAddr| found.private || !is_private(&address.into());
    let addresses: Vec<_> = learned.addresses.iter().filter(|(address, _)| may_have(*address)).collect();
    let classes = found.classes.iter().filter_map(|class| class_index.get(*class as usize));
    let addresses =
        classes.flat_map(|&index| addresses.iter().map(move |&&(address, expiry)| (address, index, expiry))).collect();
    (!found.classes.is_empty(), addresses)
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
pub(super) fn numbered<T: Copy>(base: u32, elements: &[T]) -> Vec<(u32, T)> {
    (base..).zip(elements.iter().copied()).collect()
}

/// Whether so many fit.
pub(super) fn check(what: &'static str, needed: usize, capacity: u32) -> Result<(), Error> {
    let capacity = capacity as usize;
    if needed > capacity { Err(Error::Full { what, needed, capacity }) } else { Ok(()) }
}

pub(super) fn tell_missing(addresses: usize) {
    if addresses != 0 {
        tracing::warn!(
            addresses,
            "the new policy begins without some learned addresses: the table is full; `egress run --max-addresses` makes room"
        );
    }
}
