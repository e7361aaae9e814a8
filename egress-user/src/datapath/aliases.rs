//! CNAME targets over a reload: a client that asks link by link goes on where it was.

use std::collections::HashSet;

use egress_ebpf::abi::{AddressEntry, Alias, AliasKey, NEVER, SLOTS, Slot, Ticks};

use super::{Datapath, Error, sys};
use crate::policy::Compiled;

impl Datapath {
    /// Copies the living targets of the epoch `from` into the one that is made, with the classes that the new policy has too.
    ///
    /// None of them may have private addresses. Where a name that leads there may, by its class (`private`), the target is left behind: it is
    /// known again, with what it may have, when the first name of its chain is asked.
    pub(super) fn carry_aliases(
        &self,
        from: u32,
        epoch: u32,
        now: Ticks,
        kept: &HashSet<u32>,
        private: &HashSet<u32>,
    ) -> Result<(), Error> {
        for key in self.aliases.keys()?.into_iter().filter(|key| key.epoch == from as u16) {
            let Some(alias) = self.aliases.get(&key)? else { continue };
            let leads = |slot: &u64| private.contains(&Slot::unpack(*slot).class);
            if let Some(entry) = carried(&alias.entry, now, kept).filter(|entry| !entry.slots.iter().any(leads)) {
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

/// The places of the classes that names have which may have private addresses. Others may have them too.
pub(super) fn private_classes(policy: &Compiled, class_index: &[u32]) -> HashSet<u32> {
    let entries = policy.names.iter().filter(|entry| entry.private || entry.inner.iter().any(|inner| inner.private));
    let classes = entries.flat_map(|entry| entry.inner.iter().map(|inner| inner.class).chain([entry.class]));
    classes.map(|class| class_index[class as usize]).filter(|index| *index != 0).collect()
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
