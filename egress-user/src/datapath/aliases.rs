//! CNAME targets over a reload: a client that asks link by link goes on where it was.

use std::collections::HashSet;

use egress_ebpf::abi::{AddressEntry, Alias, AliasKey, NEVER, SLOTS, Slot, Ticks};

use super::{Datapath, Error, sys};

impl Datapath {
    /// Copies the living targets of the epoch `from` into the one that is made, with the classes that the new policy has too.
    ///
    /// Whether they may have private addresses is asked anew, with the first name of the chain.
    pub(super) fn carry_aliases(&self, from: u32, epoch: u32, now: Ticks, kept: &HashSet<u32>) -> Result<(), Error> {
        for key in self.aliases.keys()?.into_iter().filter(|key| key.epoch == from as u16) {
            let Some(alias) = self.aliases.get(&key)? else { continue };
            if let Some(entry) = carried(&alias.entry, now, kept) {
                let key = AliasKey { epoch: epoch as u16, ..key };
                match self.aliases.try_set(&key, &Alias { entry, flags: 0, pad: 0 }, sys::NO_EXIST) {
                    // The kernel has learned it into the new epoch meanwhile.
                    Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
                        return Err(Error::map("write", self.aliases.name(), error));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// What of an entry the new epoch has too; `None` for nothing.
fn carried(entry: &AddressEntry, now: Ticks, kept: &HashSet<u32>) -> Option<AddressEntry> {
    let mut carried = AddressEntry { slots: [0; SLOTS] };
    let living = entry.slots.into_iter().map(Slot::unpack).filter(|slot| slot.expiry != NEVER && slot.lives(now));
    let same = living.filter(|slot| kept.contains(&slot.class));
    // From the first slot on, without a gap: that is how they are read.
    let mut count = 0;
    for (place, slot) in carried.slots.iter_mut().zip(same) {
        *place = slot.pack();
        count += 1;
    }
    (count != 0).then_some(carried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn living_slots_of_classes_that_stay_are_carried_without_gaps() {
        let slot = |class, expiry| Slot { class, expiry }.pack();
        let mut entry = AddressEntry { slots: [0; SLOTS] };
        entry.slots[..4].copy_from_slice(&[slot(1, 50), slot(2, 200), slot(3, 200), slot(4, 300)]);
        let kept = HashSet::from([1, 3, 4]);
        let new = carried(&entry, 100, &kept).unwrap();
        assert_eq!(new.slots[..3], [slot(3, 200), slot(4, 300), 0]);
        assert_eq!(carried(&entry, 300, &kept), None);
    }
}
