//! Entries of map `CLASSES` by their index: read and looked up as many times as a policy has items.

use egress_ebpf::abi::{CHUNKS, ClassChunk};

/// Chunks, each with its index, found without a hash.
#[derive(Debug, Default)]
pub struct Chunks {
    all: Vec<(u32, ClassChunk)>,
    /// By index: the place in `all`, counted from 1; 0 for none.
    places: Vec<u32>,
}

impl Chunks {
    /// Adds the chunk of an index that is not there.
    pub(super) fn add(&mut self, index: u32, chunk: ClassChunk) {
        self.all.push((index, chunk));
        if self.places.len() <= index as usize {
            self.places.resize(index as usize + 1, 0);
        }
        self.places[index as usize] = self.all.len() as u32;
    }

    /// The chunk of an index.
    pub(super) fn get(&self, index: u32) -> Option<&ClassChunk> {
        let place = *self.places.get(index as usize)?;
        self.all.get((place as usize).checked_sub(1)?).map(|(_, chunk)| chunk)
    }

    /// All, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &(u32, ClassChunk)> {
        self.all.iter()
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The chunks of a class, from its first one on.
    pub(super) fn chain(&self, class: u32) -> impl Iterator<Item = (u32, ClassChunk)> {
        let there = |index: u32| self.get(index).map(|chunk| (index, *chunk));
        std::iter::successors(there(class), move |(_, chunk)| there(chunk.next)).take(CHUNKS as usize)
    }
}
