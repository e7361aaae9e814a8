//! Names, each kept once, by number.

use std::{
    hash::{BuildHasher as _, RandomState},
    ops::Range,
};

use hashbrown::HashTable;

/// Names in one piece of memory. Numbers count up from 0, without gaps.
#[derive(Debug, Default)]
pub(super) struct Names {
    text: String,
    /// Where each one ends in `text`; it begins where the one before it ends.
    ends: Vec<u32>,
    numbers: HashTable<u32>,
    /// Seeded: who chooses the names does not choose where they collide.
    hasher: RandomState,
}

impl Names {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The name of this number.
    pub fn name(&self, number: u32) -> &str {
        &self.text[range(&self.ends, number)]
    }

    /// The number of a name that is there.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.numbers.find(self.hasher.hash_one(name), |&known| self.name(known) == name).copied()
    }

    /// The number of a name, which is added where it is not there.
    pub fn add(&mut self, name: &str) -> u32 {
        if let Some(number) = self.number(name) {
            return number;
        }
        let number = self.ends.len() as u32;
        self.text.push_str(name);
        self.ends.push(self.text.len() as u32);
        let Self { text, ends, numbers, hasher } = self;
        numbers.insert_unique(hasher.hash_one(name), number, |&known| hasher.hash_one(&text[range(ends, known)]));
        number
    }

    /// Keeps those that `used` says, in their order. Gives the new number of each; of those that go it means nothing.
    pub fn retain(&mut self, used: &[bool]) -> Vec<u32> {
        let mut kept = Self { hasher: self.hasher.clone(), ..Self::default() };
        let mut numbers = Vec::with_capacity(self.len());
        for (number, used) in (0..).zip(used) {
            numbers.push(if *used { kept.add(self.name(number)) } else { 0 });
        }
        *self = kept;
        numbers
    }
}

fn range(ends: &[u32], number: u32) -> Range<usize> {
    let start = number.checked_sub(1).map_or(0, |before| ends[before as usize]);
    start as usize..ends[number as usize] as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_number_each_and_new_ones_once_others_go() {
        let mut names = Names::default();
        let numbers: Vec<u32> = ["a.com", "", "b.com", "a.com"].iter().map(|name| names.add(name)).collect();
        assert_eq!(numbers, [0, 1, 2, 0]);
        assert_eq!((names.name(0), names.name(1), names.name(2), names.number("c.com")), ("a.com", "", "b.com", None));
        assert_eq!(names.retain(&[false, true, true])[1..], [0, 1]);
        assert_eq!((names.len(), names.number("a.com"), names.number("b.com")), (2, None, Some(1)));
        assert_eq!(names.add("a.com"), 2);
    }
}
