//! What the kernel counted.

use std::net::IpAddr;

use egress_ebpf::{
    abi::{AddressKey4, AddressKey6, Hits, LearnCount, Slot, Ticks},
    reason::{REASONS, Reason},
};

use super::{Datapath, Error, boot_ticks};
use crate::policy::Compiled;

impl Datapath {
    /// Packets and bytes by reason, those that never happened left out.
    pub fn counters(&self) -> Result<Vec<(Reason, Hits)>, Error> {
        let mut counters = Vec::new();
        for number in 0..REASONS {
            let hits = self.counters.sum(number)?;
            if let Some(reason) = Reason::from_number(number as u8)
                && hits.packets != 0
            {
                counters.push((reason, hits));
            }
        }
        Ok(counters)
    }

    /// Packets and bytes that passed by a grant.
    pub fn grant_hits(&self, index: u32) -> Result<Hits, Error> {
        self.grant_hits.sum(index)
    }

    /// Events that did not fit the ring buffer: (drops, answers).
    pub fn events_lost(&self) -> Result<(u64, u64), Error> {
        Ok((self.events_lost.sum(0)?, self.events_lost.sum(1)?))
    }

    /// What became of queries, answers and addresses, what never happened left out.
    pub fn learn_counters(&self) -> Result<Vec<(LearnCount, u64)>, Error> {
        let table = self.object.table::<u32, u64>("LEARN_COUNTERS")?;
        let counts = LearnCount::ALL.iter().map(|what| Ok((*what, table.sum(*what as u32)?)));
        let counts: Result<Vec<_>, Error> = counts.collect();
        Ok(counts?.into_iter().filter(|(_, count)| *count != 0).collect())
    }

    /// Until when the live generation has each of `addresses` open by what `policy`, the live one, says of `name`.
    pub fn open_until(&self, policy: &Compiled, name: &str, addresses: &[IpAddr]) -> Result<Vec<Option<Ticks>>, Error> {
        let epoch = self.epoch(self.generation()?)?;
        let classes = policy.match_name(name).classes;
        let index = |class: &u32| self.class_index.get(*class as usize).copied();
        let classes: Vec<u32> = classes.iter().filter_map(index).collect();
        let now = boot_ticks();
        let open = |address: &IpAddr| {
            let entry = match address.to_canonical() {
                IpAddr::V4(address) => self.addresses_4.get(&AddressKey4 { address: address.octets(), epoch })?,
                v6 => self.addresses_6.get(&AddressKey6 { address: v6.into(), epoch, pad: 0 })?,
            };
            let slots = entry.unwrap_or_default().slots.into_iter().map(Slot::unpack);
            Ok(slots.filter(|slot| slot.lives(now) && classes.contains(&slot.class)).map(|slot| slot.expiry).max())
        };
        addresses.iter().map(open).collect()
    }
}
