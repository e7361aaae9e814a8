//! Learning: which class an address has, and how long.

use crate::{
    abi::{Address, AddressEntry, Alias, NAME_CLASSES, NEVER, SLOTS, Slot, TICK_SHIFT, Ticks},
    atomic,
    dns::bytes::{again, opaque},
    repeat::{Step, repeat},
};

/// The class of a slot whose entry is being deleted; only ever in the first slot. It is no index of map `CLASSES`.
///
/// Who deletes a dead entry puts it there first, looks at the other slots again, and then deletes, or puts back what was there. Who
/// writes a slot looks at the first one afterwards. So one of the two sees the other, and nothing that was learned goes
/// away with a dead entry.
pub const DELETING: u32 = u32::MAX;

/// The maps that are learned into.
pub trait Addresses {
    /// What an address has in an epoch.
    fn entry(&self, address: &Address, epoch: u32) -> Option<&AddressEntry>;
    /// Puts a new entry in.
    fn insert(&self, address: &Address, epoch: u32, entry: &AddressEntry) -> Inserted;
    /// Whether `class` may stand in a slot for `other` too: [`crate::abi::ClassChunk::replaces`].
    fn replaces(&self, class: u32, other: u32) -> bool;
}

/// What became of a new entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It is in.
    Yes,
    /// Another processor was faster.
    Exists,
    /// The map is full.
    Full,
}

/// What became of an address and a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was there, and lives at least as long.
    Unchanged,
    /// It was there, and lives longer now.
    Extended,
    /// It is new.
    Added,
    /// Every slot of the address is in use for other ports.
    SlotsFull,
    /// The map is full.
    MapFull,
    /// Another processor changed the entry meanwhile: try again.
    Again,
}

/// State of learning, in map memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Learning {
    /// The slot to write, plus 1; 0 while none is found.
    slot: u64,
    /// What was found in it.
    found: u64,
    /// A slot that is free or dead, plus 1.
    free: u64,
    /// What was found in it.
    free_found: u64,
    /// An entry that is being made.
    pub fresh: Alias,
    /// Which address is next: used by the loops of the programs.
    pub address: u64,
    /// Which class is next.
    pub class: u64,
    /// When the targets of an answer's CNAMEs end to be names of its, where its classes do not end before.
    pub expiry: u64,
    /// Not 0 where an address opens something that it did not, or for longer.
    pub news: u64,
}

/// Longer TTLs count as this one, in seconds: a week, as resolvers have it (RFC 8767, 4).
pub const TTL_MAX: u32 = 604_800;

/// The tick at which an answer of this moment stops counting: `ttl` seconds (at most [`TTL_MAX`]), raised to `min_ttl`, and the grace, both in
/// ticks. Rounded up: an address lives at least as long as its answer.
#[inline(always)]
pub const fn expiry(now: Ticks, ttl: u32, min_ttl: Ticks, grace: Ticks) -> Ticks {
    let ttl = if ttl > TTL_MAX { TTL_MAX } else { ttl };
    let life = (ttl as u64 * 1_000_000_000).div_ceil(1 << TICK_SHIFT);
    let life = if life < min_ttl as u64 { min_ttl as u64 } else { life };
    // The tick that has begun counts as a whole one.
    let end = now as u64 + 1 + life + grace as u64;
    if end >= NEVER as u64 { NEVER - 1 } else { end as u32 }
}

/// The earlier of two ticks. Not by a comparison: the verifier would walk all that follows for either.
#[inline(always)]
pub fn earlier(a: Ticks, b: Ticks) -> Ticks {
    let (a, b) = (u64::from(a), u64::from(b));
    // All ones where `a` is the earlier one.
    let first = opaque(a.wrapping_sub(b) >> 63).wrapping_neg();
    (b ^ ((a ^ b) & first)) as Ticks
}

/// The later of two ticks, which is all but the earlier.
#[inline(always)]
pub fn later(a: Ticks, b: Ticks) -> Ticks {
    a ^ b ^ earlier(a, b)
}

/// Writes down that `address` has `class` until `expiry`, in `epoch`.
#[inline(always)]
pub fn learn<A: Addresses>(
    addresses: &A,
    address: &Address,
    epoch: u32,
    slot: Slot,
    now: Ticks,
    state: &mut Learning,
) -> Outcome {
    match addresses.entry(address, epoch) {
        Some(entry) => {
            // Deleted meanwhile, its memory may be another address's.
            let still = || addresses.entry(address, epoch).is_some_and(|known| core::ptr::eq(known, entry));
            merge(addresses, entry, slot, now, state, still)
        }
        None => {
            state.fresh.entry = AddressEntry { slots: [0; SLOTS] };
            state.fresh.entry.slots[0] = slot.pack();
            match addresses.insert(address, epoch, &state.fresh.entry) {
                Inserted::Yes => Outcome::Added,
                Inserted::Exists => Outcome::Again,
                Inserted::Full => Outcome::MapFull,
            }
        }
    }
}

/// Writes `new` into an entry: into the slot of its class, else into that of a class with the same ports, else into one
/// that is free or dead. The later expiry counts. `still` tells, after the write, whether the entry is in its map still:
/// where it is not, the write is taken back.
#[inline(always)]
pub fn merge<A: Addresses>(
    addresses: &A,
    entry: &AddressEntry,
    new: Slot,
    now: Ticks,
    state: &mut Learning,
    still: impl FnOnce() -> bool,
) -> Outcome {
    state.slot = 0;
    state.free = 0;
    // Nearly every address has one class, which is said again and again: that is seen without a loop.
    let first = read(entry, 0);
    if Slot::unpack(first).class == new.class {
        (state.slot, state.found) = (1, first);
    } else {
        repeat(SLOTS as u32, &mut Scan { addresses, entry, new, now, state: &mut *state });
    }
    let index = match (state.slot, state.free) {
        (0, 0) => return Outcome::SlotsFull,
        (0, free) => {
            state.found = state.free_found;
            free - 1
        }
        (slot, _) => slot - 1,
    };
    let old = again(&state.found);
    let was = Slot::unpack(old);
    if was.lives(now) && was.expiry >= new.expiry {
        return Outcome::Unchanged;
    }
    if !replace(entry, index, old, new.pack()) || is_deleting(entry) {
        return Outcome::Again;
    }
    if !still() {
        replace(entry, index, new.pack(), old);
        return Outcome::Again;
    }
    if Slot::unpack(again(&state.found)).lives(now) { Outcome::Extended } else { Outcome::Added }
}

struct Scan<'a, A> {
    addresses: &'a A,
    entry: &'a AddressEntry,
    new: Slot,
    now: Ticks,
    state: &'a mut Learning,
}

impl<A: Addresses> Step for Scan<'_, A> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let found = read(self.entry, u64::from(index));
        let slot = Slot::unpack(found);
        if slot.class == self.new.class {
            self.state.slot = u64::from(index) + 1;
            self.state.found = found;
            return false;
        }
        if !slot.lives(self.now) {
            if self.state.free == 0 && slot.class != DELETING {
                self.state.free = u64::from(index) + 1;
                self.state.free_found = found;
            }
        } else if self.state.slot == 0 && self.addresses.replaces(self.new.class, slot.class) {
            self.state.slot = u64::from(index) + 1;
            self.state.found = found;
        }
        true
    }
}

/// Ends the life of a class in an entry. Returns whether it lived.
pub fn end(entry: &AddressEntry, class: u32, now: Ticks) -> bool {
    let mut index = 0;
    while index < SLOTS as u64 {
        let found = read(entry, index);
        let slot = Slot::unpack(found);
        if slot.class == class {
            // Where it was written meanwhile, it was by who knows of the class, which stands: it is left alone.
            return slot.lives(now) && replace(entry, index, found, Slot { class, expiry: ENDED }.pack());
        }
        index += 1;
    }
    false
}

/// The expiry of a slot that was ended before its time: no tick since boot comes before it.
const ENDED: Ticks = 0;

/// Deletes what of an entry is dead. Returns whether the caller is to delete the entry from its map.
pub fn bury(entry: &AddressEntry, now: Ticks) -> bool {
    let first = read(entry, 0);
    if Slot::unpack(first).class == DELETING || lives(entry, 0, now) {
        return false;
    }
    if !replace(entry, 0, first, Slot { class: DELETING, expiry: 0 }.pack()) {
        return false;
    }
    if lives(entry, 1, now) {
        // As it was, not free: whoever walks the slots stops at a free one.
        replace(entry, 0, Slot { class: DELETING, expiry: 0 }.pack(), first);
        return false;
    }
    true
}

fn lives(entry: &AddressEntry, from: u64, now: Ticks) -> bool {
    let mut index = from;
    while index < SLOTS as u64 {
        if Slot::unpack(read(entry, index)).lives(now) {
            return true;
        }
        index += 1;
    }
    false
}

#[inline(always)]
fn is_deleting(entry: &AddressEntry) -> bool {
    Slot::unpack(read(entry, 0)).class == DELETING
}

/// A slot, read by one operation.
#[inline(always)]
pub fn read(entry: &AddressEntry, index: u64) -> u64 {
    let index = opaque(index);
    if index >= SLOTS as u64 {
        return 0;
    }
    // SAFETY: checked right above.
    unsafe { atomic::load(slots(entry).add(index as usize)) }
}

#[inline(always)]
fn replace(entry: &AddressEntry, index: u64, old: u64, new: u64) -> bool {
    let index = opaque(index);
    if index >= SLOTS as u64 {
        return false;
    }
    // SAFETY: checked right above.
    unsafe { atomic::replace(slots(entry).add(index as usize).cast_mut(), old, new) }
}

/// An entry's slots. They are only ever written by atomic operations once the entry is in its map.
#[inline(always)]
fn slots(entry: &AddressEntry) -> *const u64 {
    (&raw const entry.slots).cast()
}

/// What stands at this number of the classes that a name has, or of their ends; 0 past the last one.
#[inline(always)]
pub fn class_at(classes: &[u32; NAME_CLASSES], index: u64) -> u32 {
    let index = opaque(index);
    if index >= NAME_CLASSES as u64 {
        return 0;
    }
    // SAFETY: checked right above.
    unsafe { *classes.get_unchecked(index as usize) }
}

#[cfg(test)]
mod tests;
