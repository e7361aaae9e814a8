//! The decision, asked on the host over what the kernel's maps hold now: the same code as in the programs.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use egress_ebpf::{
    abi::{
        Address, AddressEntry, AddressKey4, AddressKey6, ClassChunk, Config, Flow, FlowKey, FragmentKey, GrantEntry,
        Live, PROTO_ICMP, PROTO_ICMPV6, PeerKey, PrefixKey4, PrefixKey6, ResolverKey, ResolverTrust, Slot, Ticks,
    },
    decision::{self, Tables, Verdict},
};

use super::{Datapath, Error, Table, boot_ticks, table::Plain};
use crate::policy::Proto;

/// What a decision about one destination reads, taken out of the maps.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    address: Option<AddressEntry>,
    prefix: Option<u32>,
    deny: Option<u32>,
    resolver: Option<ResolverTrust>,
    classes: HashMap<u32, ClassChunk>,
    grants: HashMap<u32, GrantEntry>,
    flows: HashMap<FlowKey, Flow>,
}

/// What the maps say of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The reason, and the index in map `GRANTS` of the grant that opens it.
    pub verdict: Verdict,
    /// The generation that was asked.
    pub generation: u32,
    /// The address has a living slot: it was learned, or the policy writes it.
    pub known: bool,
    /// When the slot that lives longest ends; [`egress_ebpf::abi::NEVER`] where the policy writes the address.
    pub until: Ticks,
}

impl Datapath {
    /// The configuration that counts now, as the programs find it; `None` before the first policy.
    pub(super) fn config_now(&self, now: Ticks) -> Result<Option<Config>, Error> {
        let live = Live::unpack(self.live.get(&0)?.unwrap_or_default());
        let turn = live.generation ^ u32::from(live.expired(now));
        let config = self.configs.get(&(turn & 1))?.unwrap_or_default();
        Ok((live.generation != 0 && config.generation != 0).then_some(config))
    }

    /// What the kernel does to a new flow to `to`, by its own tables: deny rules, resolvers, addresses, prefixes. Of ICMP
    /// an echo request is meant. Builtins and what is remembered of flows are left out. `None` before the first policy.
    ///
    /// # Errors
    /// That a map cannot be read.
    pub fn judge(&self, to: SocketAddr, proto: Proto) -> Result<Option<Judged>, Error> {
        let now = boot_ticks();
        let Some(config) = self.config_now(now)? else { return Ok(None) };
        let destination = destination(to, proto);
        let tables = self.snapshot(&config, &destination, &[])?;
        let slots = tables.address.unwrap_or_default().slots.map(Slot::unpack);
        let until = slots.iter().filter(|slot| slot.lives(now)).map(|slot| slot.expiry).max();
        let mut verdict = decision::policy(&tables, &config, &destination, now);
        verdict.trust();
        Ok(Some(Judged { verdict, generation: config.generation, known: until.is_some(), until: until.unwrap_or(0) }))
    }

    /// Takes out of the maps what a decision about a destination reads, and these flows.
    pub(super) fn snapshot(
        &self,
        config: &Config,
        destination: &decision::Destination,
        flows: &[FlowKey],
    ) -> Result<Snapshot, Error> {
        let (generation, epoch) = (config.generation, config.epoch);
        let mut taken = Snapshot::default();
        match IpAddr::from(destination.address) {
            IpAddr::V4(address) => {
                let address = address.octets();
                taken.address = self.addresses_4.get(&AddressKey4 { address, epoch })?;
                let key = PrefixKey4 { bits: 64, epoch, address };
                (taken.prefix, taken.deny) = (self.prefixes_4.get(&key)?, self.denies_4.get(&key)?);
            }
            IpAddr::V6(address) => {
                let key = AddressKey6 { address: destination.address, epoch, pad: 0 };
                taken.address = self.addresses_6.get(&key)?;
                let key = PrefixKey6 { bits: 160, epoch, address: address.octets() };
                (taken.prefix, taken.deny) = (self.prefixes_6.get(&key)?, self.denies_6.get(&key)?);
            }
        }
        let key = ResolverKey { generation, address: destination.address, port: destination.port, pad: 0 };
        taken.resolver = self.resolvers.get(&key)?;
        let slots = taken.address.unwrap_or_default().slots.map(|slot| Slot::unpack(slot).class);
        for class in slots.into_iter().chain(taken.prefix).chain(taken.deny) {
            let mut index = class;
            while index != 0 && !taken.classes.contains_key(&index) {
                let Some(chunk) = self.classes.get(&index)? else { break };
                taken.classes.insert(index, chunk);
                index = chunk.next;
            }
        }
        for key in flows {
            if let Some(flow) = self.flows.get(key)? {
                taken.flows.insert(*key, flow);
                fetch(&self.grants, flow.grant, &mut taken.grants)?;
            }
        }
        Ok(taken)
    }
}

fn fetch<V: Plain>(table: &Table<u32, V>, index: u32, into: &mut HashMap<u32, V>) -> Result<(), Error> {
    if let Some(value) = table.get(&index)? {
        into.insert(index, value);
    }
    Ok(())
}

/// Type and code of an echo request: ICMP's 8 (RFC 792), ICMPv6's 128 (RFC 4443).
const ECHO_4: u16 = 8 << 8;
const ECHO_6: u16 = 128 << 8;

fn destination(to: SocketAddr, proto: Proto) -> decision::Destination {
    let address = to.ip().to_canonical();
    let (number, port) = match (proto, address.is_ipv4()) {
        (Proto::Tcp, _) => (egress_ebpf::abi::PROTO_TCP, to.port()),
        (Proto::Udp, _) => (egress_ebpf::abi::PROTO_UDP, to.port()),
        (_, true) => (PROTO_ICMP, ECHO_4),
        (_, false) => (PROTO_ICMPV6, ECHO_6),
    };
    decision::Destination::new(address.into(), if address.is_ipv4() { 4 } else { 6 }, number, port)
}

impl Tables for Snapshot {
    fn address(&self, _address: &Address, _epoch: u32) -> Option<&AddressEntry> {
        self.address.as_ref()
    }

    fn prefix(&self, _address: &Address, _epoch: u32) -> Option<u32> {
        self.prefix
    }

    fn deny(&self, _address: &Address, _epoch: u32) -> Option<u32> {
        self.deny
    }

    fn class(&self, index: u32) -> Option<&ClassChunk> {
        self.classes.get(&index)
    }

    fn grant(&self, index: u32) -> Option<GrantEntry> {
        self.grants.get(&index).copied()
    }

    fn resolver(&self, _key: &ResolverKey) -> Option<ResolverTrust> {
        self.resolver
    }

    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key)
    }

    fn peer(&self, _key: &PeerKey) -> Option<&Flow> {
        // A flow of a socket; what is judged here is a new one's.
        None
    }

    fn fragment(&self, _key: &FragmentKey) -> Option<Ticks> {
        None
    }
}
