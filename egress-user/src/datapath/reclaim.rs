//! Addresses whose every slot is dead, found in batches and deleted through the `control` program, which looks again.

use std::net::IpAddr;

use egress_ebpf::abi::{AddressEntry, NEVER, Slot, Ticks};

use super::{Datapath, Error, control};

/// Entries that are looked at in one go, between which others get the data path: a millisecond or two.
const BATCH: usize = 4096;

/// Where a walk over both address maps stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Walk {
    six: bool,
    /// The kernel's position, once it gave one.
    at: Option<u32>,
}

/// What a batch, or a whole walk, found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Entries deleted.
    pub deleted: u64,
    /// Entries of the live epoch that are in use.
    pub kept: u64,
    /// The earliest tick at which one of those will be dead; [`NEVER`] where none will.
    pub next: Ticks,
}

impl Reclaimed {
    /// Nothing was looked at.
    pub const NOTHING: Self = Self { deleted: 0, kept: 0, next: NEVER };

    /// What both found.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { deleted: self.deleted + other.deleted, kept: self.kept + other.kept, next: self.next.min(other.next) }
    }
}

impl Datapath {
    /// Deletes what is dead at `now` among the next entries of the address maps. Gives where to go on, or `None` at the
    /// end, and what was found. An entry with a life that never ends (the policy's own addresses) is never dead.
    pub fn reclaim(&mut self, walk: Walk, now: Ticks) -> Result<(Option<Walk>, Reclaimed), Error> {
        let epoch = self.epoch(self.generation()?)?;
        let (next, entries) = if walk.six {
            let (next, batch) = self.addresses_6.batch(walk.at, BATCH)?;
            let ours = batch.into_iter().filter(|(key, _)| key.epoch == epoch);
            (next, ours.map(|(key, entry)| (IpAddr::from(key.address), entry)).collect::<Vec<_>>())
        } else {
            let (next, batch) = self.addresses_4.batch(walk.at, BATCH)?;
            let ours = batch.into_iter().filter(|(key, _)| key.epoch == epoch);
            (next, ours.map(|(key, entry)| (IpAddr::from(key.address), entry)).collect())
        };
        let mut found = Reclaimed::NOTHING;
        let mut dead = Vec::new();
        for (address, entry) in entries {
            match end(&entry, now) {
                None => dead.push(address),
                Some(end) => {
                    found.kept += 1;
                    found.next = found.next.min(end);
                }
            }
        }
        found.deleted = control::reclaim(&mut self.object, epoch, &dead)?;
        let next = match (next, walk.six) {
            (Some(at), six) => Some(Walk { six, at: Some(at) }),
            (None, false) => Some(Walk { six: true, at: None }),
            (None, true) => None,
        };
        Ok((next, found))
    }
}

/// When the last living slot of an entry ends; `None` where none lives.
fn end(entry: &AddressEntry, now: Ticks) -> Option<Ticks> {
    entry.slots.into_iter().map(Slot::unpack).filter(|slot| slot.lives(now)).map(|slot| slot.expiry).max()
}
