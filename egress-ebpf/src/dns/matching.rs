//! What the name table says of a name.

use super::{bytes::opaque, name};
use crate::{
    abi::{Alias, INNER_MAX, InnerWildcard, KeyBuffer, NAME_CLASSES, NEVER, NameValue, SLOTS, Slot, Ticks},
    learn,
    repeat::{Step, repeat},
};

/// The maps that names are looked up in.
pub trait NameTable {
    /// What the longest match in map `NAMES` says to a generation.
    fn name(&self, key: &KeyBuffer, generation: u32) -> Option<NameValue>;
    /// An entry of map `INNER_WILDCARDS`.
    fn inner(&self, index: u32) -> Option<&InnerWildcard>;
    /// The entry of map `ALIASES`.
    fn alias(&self, key: &KeyBuffer) -> Option<&Alias>;
    /// Whether a class counts in a generation.
    fn stands(&self, class: u32, generation: u32) -> bool;
}

/// The classes and flags of a name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matching {
    /// The classes, 0 where unused.
    pub classes: [u32; NAME_CLASSES],
    /// Classes in use.
    pub count: u64,
    /// Flags of [`NameValue`].
    pub flags: u32,
    /// Classes that did not fit.
    pub lost: u32,
    /// When the name ends to have each of the classes: [`NEVER`] where the table says so, else when the last of the aliases ends that
    /// lend it. What is learned for it ends no later.
    pub untils: [Ticks; NAME_CLASSES],
}

impl Matching {
    /// Whether the name may be asked.
    #[inline(always)]
    pub fn may_ask(&self) -> bool {
        self.count != 0 || self.flags & NameValue::ASK != 0
    }

    #[inline(always)]
    fn add(&mut self, class: u32, until: Ticks) {
        if class == 0 {
            return;
        }
        // Where it is, or else the next place. Not by comparisons: the verifier would walk all that follows for each.
        let (mut place, mut fresh) = (self.count, 1);
        let mut index = 0;
        while index < NAME_CLASSES {
            let same = opaque(u64::from(self.classes[index] ^ class).wrapping_sub(1) >> 63);
            place ^= (place ^ index as u64) & same.wrapping_neg();
            fresh ^= same;
            index += 1;
        }
        let place = opaque(place);
        if place >= NAME_CLASSES as u64 {
            self.lost += 1;
            return;
        }
        self.count += fresh;
        // SAFETY: checked right above.
        unsafe {
            *self.classes.get_unchecked_mut(place as usize) = class;
            let known = self.untils.get_unchecked_mut(place as usize);
            *known = learn::later(*known, until);
        }
    }
}

/// Looks a name up: its longest match, the wildcards inside its first label, and the names whose CNAME it is.
///
/// `key` is plain and has its epoch set. `differ` is scratch memory.
#[inline(always)]
pub fn find<T: NameTable>(
    table: &T,
    key: &KeyBuffer,
    generation: u32,
    now: Ticks,
    matching: &mut Matching,
    differ: &mut u64,
) {
    *matching = Matching::default();
    if let Some(value) = table.name(key, generation) {
        matching.flags = value.flags;
        // The first one has nothing to be compared with.
        if value.class != 0 {
            matching.classes[0] = value.class;
            matching.untils[0] = NEVER;
            matching.count = 1;
        }
        // The wildcard's label stands right below the matched suffix: the suffix and the first label are the whole name.
        if value.inner_count != 0 && u64::from(value.len) + key.first == key.len {
            let suffix = u64::from(value.len);
            let (first, count) = (value.inner_first, u32::from(value.inner_count));
            repeat(INNER_MAX, &mut Inner { table, key, matching: &mut *matching, differ, suffix, first, count });
        }
    }
    if let Some(alias) = table.alias(key) {
        repeat(SLOTS as u32, &mut Aliases { table, alias, matching, generation, now });
    }
}

struct Inner<'a, T> {
    table: &'a T,
    key: &'a KeyBuffer,
    matching: &'a mut Matching,
    differ: &'a mut u64,
    suffix: u64,
    first: u32,
    count: u32,
}

impl<T: NameTable> Step for Inner<'_, T> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        if index >= self.count {
            return false;
        }
        let Some(wildcard) = self.table.inner(self.first + index) else { return false };
        let (before, after) = (u64::from(wildcard.prefix_len), u64::from(wildcard.suffix_len));
        if before + after < self.key.first
            && name::starts_with(&self.key.name, self.suffix, &wildcard.suffix, after, 8, self.differ)
            && name::starts_with(&self.key.name, self.key.len - before, &wildcard.prefix, before, 8, self.differ)
        {
            self.matching.add(wildcard.class, NEVER);
            self.matching.flags |= u32::from(wildcard.flags) & NameValue::PRIVATE;
        }
        true
    }
}

struct Aliases<'a, T> {
    table: &'a T,
    alias: &'a Alias,
    matching: &'a mut Matching,
    generation: u32,
    now: Ticks,
}

impl<T: NameTable> Step for Aliases<'_, T> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let slot = Slot::unpack(learn::read(&self.alias.entry, u64::from(index)));
        if slot.lives(self.now) && self.table.stands(slot.class, self.generation) {
            self.matching.add(slot.class, slot.expiry);
            // What led here once lends nothing any more.
            self.matching.flags |= self.alias.flags & NameValue::PRIVATE;
        }
        // Slots fill from the first on.
        slot.class != 0
    }
}
