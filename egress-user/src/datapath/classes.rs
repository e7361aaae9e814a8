//! Classes keep their index from one generation to the next, so that what was learned and what does not change stays as it is.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher as _, RandomState},
};

use egress_ebpf::abi::{CHUNK_PORTS, CHUNKS, ClassChunk, PROTO_ANY, PROTO_ICMP, PROTO_TCP, PROTO_UDP, PortRange, Slot};
use hashbrown::HashTable;

use super::{Datapath, Error, chunks::Chunks};
use crate::policy::{self, Class, Compiled, Proto};

/// What a class opens: sorted, so that equal classes are equal.
type Content = Vec<[u32; 3]>;
/// The same without the grants that do it.
type Opened = Vec<[u32; 2]>;

/// `from` of a class that no generation has, and that something may hold still.
const NONE: u32 = u32::MAX;

/// What map `CLASSES` holds.
#[derive(Debug, Default)]
pub struct Known {
    /// The chunks that count in the live generation.
    chunks: Chunks,
    /// Its classes: a hash of what each one opens, and the index of its first chunk.
    classes: HashTable<(u64, u32)>,
    hasher: RandomState,
    /// The `ports_id` of what they open.
    ids: HashMap<Opened, u32>,
    /// The last that was given out.
    last_id: u32,
    /// Entries that nothing holds, the next one last.
    idle: Vec<u32>,
    /// Classes that ended: an address that was learned may hold them still, until it expires.
    parked: Vec<(u32, ClassChunk)>,
}

/// The places of a policy's classes.
#[derive(Debug, Default)]
pub struct Allotted {
    /// The index of each class of the policy; 0 for one that opens nothing.
    pub index: Vec<u32>,
    /// Chunks that the live generation has not, by their index.
    pub fresh: Chunks,
    /// Classes that the live generation has too.
    pub kept: HashSet<u32>,
    /// Chunks of these which an installation that was cut short meant to end, or had just begun.
    pub mended: Vec<(u32, ClassChunk)>,
    /// The chunks of those that it has alone, as they are once the new generation is live.
    pub ended: Vec<(u32, ClassChunk)>,
}

impl Allotted {
    /// What is written before anything refers to it.
    pub fn before(&self) -> Vec<(u32, ClassChunk)> {
        let fresh = self.fresh.iter().copied();
        fresh.chain(self.mended.iter().copied()).chain(self.ended.iter().copied()).collect()
    }

    /// The fresh chunks as they are for good, once the flip is done.
    pub fn settled(&self) -> Vec<(u32, ClassChunk)> {
        self.fresh.iter().map(|&(index, chunk)| (index, ClassChunk { from: 0, ..chunk })).collect()
    }
}

impl Known {
    /// A table with nothing in it. `capacity` is that of the map, whose entry 0 is never used.
    pub fn empty(capacity: u32) -> Self {
        Self { idle: (1..capacity).rev().collect(), ..Self::default() }
    }

    /// Takes note of an entry.
    fn note(&mut self, index: u32, chunk: ClassChunk, live: u32) {
        if chunk.count == 0 {
            self.idle.push(index);
        } else if live != 0 && chunk.stands(live) {
            self.chunks.add(index, chunk);
        } else {
            self.parked.push((index, chunk));
        }
    }

    /// Finds the classes among the chunks.
    fn name(&mut self) {
        self.classes = HashTable::with_capacity(self.chunks.len());
        for (index, first) in self.chunks.iter().filter(|(_, chunk)| chunk.ports_id != 0) {
            let content = self.content(*index);
            self.ids.entry(opened(&content)).or_insert(first.ports_id);
            self.last_id = self.last_id.max(first.ports_id);
            let hash = self.hasher.hash_one(&content);
            self.classes.insert_unique(hash, (hash, *index), |(hash, _)| *hash);
        }
    }

    /// What a class of the live generation opens.
    fn content(&self, class: u32) -> Content {
        content(self.chunks.chain(class).flat_map(|(_, chunk)| used(chunk)))
    }

    /// The live class that opens this very thing.
    fn find(&self, content: &Content) -> Option<u32> {
        let hash = self.hasher.hash_one(content);
        let is = |&(known, index): &(u64, u32)| known == hash && self.content(index) == *content;
        self.classes.find(hash, is).map(|(_, index)| *index)
    }

    /// Whether every entry is idle, of a class that has stood since before the live generation and has no end, or of one that
    /// ended. On trial the live generation has classes of its own too.
    pub fn is_settled(&self, live: u32, on_trial: bool) -> bool {
        if self.parked.iter().any(|(_, chunk)| chunk.from > live && chunk.from != NONE) {
            return false;
        }
        let tails: HashSet<u32> = self.chunks.iter().map(|(_, chunk)| chunk.next).filter(|next| *next != 0).collect();
        // A first chunk that says not what it opens was made for a change, which did not come to its end.
        let whole = |index: &u32, chunk: &ClassChunk| chunk.ports_id != 0 || tails.contains(index);
        let begun = |from: u32| from == 0 || (on_trial && from == live);
        self.chunks.iter().all(|(index, chunk)| begun(chunk.from) && chunk.gone == 0 && whole(index, chunk))
    }

    /// Classes that ended may be forgotten: nothing of the live epoch will be read once the new generation is live. Gives what is
    /// to be written of those that were to begin with a generation that never came to be.
    pub fn reuse_parked(&mut self, live: u32) -> Vec<(u32, ClassChunk)> {
        let begun = self.parked.iter().filter(|(_, chunk)| chunk.from > live);
        let ended = begun.map(|&(index, chunk)| (index, ClassChunk { from: NONE, gone: 0, ..chunk })).collect();
        self.idle.extend(self.parked.drain(..).map(|(index, _)| index));
        ended
    }

    /// How many entries are idle.
    pub fn room(&self) -> usize {
        self.idle.len()
    }

    /// An idle entry.
    fn take(&mut self) -> Result<u32, Error> {
        self.idle.pop().ok_or(Error::Full {
            what: "sets of ports",
            needed: self.chunks.len() + 1,
            capacity: self.chunks.len(),
        })
    }

    /// Gives each class of a policy its place: that of the same class in the live generation, or one that is idle.
    /// `grants` is the index in map `GRANTS` of each of the policy's grants.
    ///
    /// # Errors
    /// [`Error::Ports`] for a class of too many ranges, [`Error::Full`] where no entry is idle.
    pub fn allot(&mut self, policy: &Compiled, grants: &[u32], generation: u32) -> Result<Allotted, Error> {
        let mut allotted = Allotted::default();
        for class in policy.classes.iter() {
            let ranges = lowered(class, grants)?;
            let content = content(ranges.iter().copied());
            if content.is_empty() {
                allotted.index.push(0);
                continue;
            }
            if let Some(index) = self.find(&content) {
                if allotted.kept.insert(index) {
                    let cut = self.chunks.chain(index).filter(|(_, chunk)| chunk.from | chunk.gone != 0);
                    allotted.mended.extend(cut.map(|(index, chunk)| (index, ClassChunk { from: 0, gone: 0, ..chunk })));
                }
                allotted.index.push(index);
                continue;
            }
            let ports_id = *self.ids.entry(opened(&content)).or_insert_with(|| {
                self.last_id += 1;
                self.last_id
            });
            let template = ClassChunk { from: generation, ..ClassChunk::default() };
            let chunks = self.place(&ranges, ports_id, template)?;
            allotted.index.push(chunks.first().map_or(0, |(index, _)| *index));
            chunks.into_iter().for_each(|(index, chunk)| allotted.fresh.add(index, chunk));
        }
        // What a change that was cut short had made for the time of it goes with them.
        let kept: HashSet<u32> =
            allotted.kept.iter().flat_map(|class| self.chunks.chain(*class)).map(|(index, _)| index).collect();
        let ended = self.chunks.iter().filter(|(index, _)| !kept.contains(index));
        allotted.ended = ended.map(|&(index, chunk)| (index, ClassChunk { gone: generation, ..chunk })).collect();
        Ok(allotted)
    }

    /// Puts ranges into idle entries, chained.
    fn place(
        &mut self,
        ranges: &[PortRange],
        ports_id: u32,
        template: ClassChunk,
    ) -> Result<Vec<(u32, ClassChunk)>, Error> {
        let mut chunks: Vec<(u32, ClassChunk)> = Vec::new();
        for ranges in ranges.chunks(CHUNK_PORTS) {
            let index = self.take()?;
            let mut chunk = ClassChunk { count: ranges.len() as u32, ..template };
            chunk.ports[..ranges.len()].copy_from_slice(ranges);
            match chunks.last_mut() {
                Some((_, before)) => before.next = index,
                None => chunk.ports_id = ports_id,
            }
            chunks.push((index, chunk));
        }
        Ok(chunks)
    }

    /// A class that opens what `old` opens until `generation`, and what `new` opens from then on; 0 stands for nothing. Gives its
    /// index, and adds the chunks that have to be written to `chunks`.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Ports`].
    pub fn turn(
        &mut self,
        (old, new): (u32, u32),
        allotted: &Allotted,
        generation: u32,
        chunks: &mut Vec<(u32, ClassChunk)>,
    ) -> Result<u32, Error> {
        let was: Vec<_> = self.chunks.chain(old).collect();
        let becomes = self.chain_in(new, allotted);
        if was.len() + becomes.len() > CHUNKS as usize {
            let ranges = (was.len() + becomes.len()) * CHUNK_PORTS;
            return Err(Error::Ports { ranges, most: CHUNK_PORTS * CHUNKS as usize });
        }
        let until = was.into_iter().map(|(_, chunk)| ClassChunk { from: 0, gone: generation, ..chunk });
        let since = becomes.into_iter().map(|(_, chunk)| ClassChunk { from: generation, gone: 0, ..chunk });
        let mut chain: Vec<(u32, ClassChunk)> = Vec::new();
        for chunk in until.chain(since) {
            let index = self.take()?;
            if let Some((_, before)) = chain.last_mut() {
                before.next = index;
            }
            chain.push((index, ClassChunk { ports_id: 0, next: 0, ..chunk }));
        }
        let first = chain.first().map_or(0, |(index, _)| *index);
        chunks.extend(chain);
        Ok(first)
    }

    /// The chunks of a class that is live, or fresh.
    fn chain_in(&self, class: u32, allotted: &Allotted) -> Vec<(u32, ClassChunk)> {
        let fresh: Vec<_> = allotted.fresh.chain(class).collect();
        if fresh.is_empty() { self.chunks.chain(class).collect() } else { fresh }
    }
}

impl Datapath {
    /// What is in map `CLASSES`.
    pub(super) fn known_classes(&self, live: u32) -> Result<Known, Error> {
        if live == 0 {
            // Nothing was ever written.
            return Ok(Known::empty(self.classes.capacity()));
        }
        let mut known = Known::default();
        self.classes.each(|&index, &chunk| {
            if index != 0 {
                known.note(index, chunk, live);
            }
            true
        })?;
        known.idle.reverse();
        known.name();
        Ok(known)
    }

    /// Makes entries idle again whose class ended, where no address and no name that was learned holds it any more.
    pub(super) fn collect_classes(&self, known: &mut Known, epoch: u32, now: u32) -> Result<(), Error> {
        let mut held = HashSet::new();
        let mut hold = |slots: &[u64]| {
            held.extend(
                slots.iter().map(|slot| Slot::unpack(*slot)).filter(|slot| slot.lives(now)).map(|slot| slot.class),
            );
        };
        self.addresses_4.each(|key, entry| {
            if key.epoch == epoch {
                hold(&entry.slots);
            }
            true
        })?;
        self.addresses_6.each(|key, entry| {
            if key.epoch == epoch {
                hold(&entry.slots);
            }
            true
        })?;
        self.aliases.each(|_, alias| {
            hold(&alias.entry.slots);
            true
        })?;
        let parked: HashMap<u32, ClassChunk> = known.parked.drain(..).collect();
        let mut reached = HashSet::new();
        for &class in &held {
            let mut index = class;
            while let Some(chunk) = parked.get(&index)
                && reached.insert(index)
            {
                index = chunk.next;
            }
        }
        let mut cleared = Vec::new();
        for (index, chunk) in parked {
            if reached.contains(&index) {
                known.parked.push((index, chunk));
            } else {
                known.idle.push(index);
                cleared.push((index, ClassChunk::default()));
            }
        }
        self.classes.set_all(&cleared)
    }

    /// After a flip to another epoch: what `keep` has stands for good, everything else is idle.
    pub(super) fn settle_classes(&self, keep: u32) -> Result<(), Error> {
        let mut changed = Vec::new();
        self.classes.each(|&index, &chunk| {
            if index != 0 && chunk.count != 0 {
                if !chunk.stands(keep) {
                    changed.push((index, ClassChunk::default()));
                } else if chunk.from | chunk.gone != 0 {
                    changed.push((index, ClassChunk { from: 0, gone: 0, ..chunk }));
                }
            }
            true
        })?;
        self.classes.set_all(&changed)
    }

    /// After generation `lost` was given up: nobody has its own classes, and what it would have ended stands.
    pub(super) fn restore_classes(&self, lost: u32) -> Result<(), Error> {
        let mut changed = Vec::new();
        self.classes.each(|&index, &chunk| {
            if index != 0 && chunk.count != 0 && chunk.from == lost {
                // Not idle: where the entry had another class before, an address that was learned may hold that still.
                changed.push((index, ClassChunk { from: NONE, gone: 0, ..chunk }));
            } else if index != 0 && chunk.count != 0 && chunk.gone == lost {
                changed.push((index, ClassChunk { gone: 0, ..chunk }));
            }
            true
        })?;
        self.classes.set_all(&changed)
    }
}

/// What a class of a policy opens, in the kernel's terms and the policy's order: of several grants that open the same the first
/// counts as the one by which a packet passes.
fn lowered(class: Class<'_>, grants: &[u32]) -> Result<Vec<PortRange>, Error> {
    let most = CHUNK_PORTS * CHUNKS as usize;
    if class.ports.len() > most {
        return Err(Error::Ports { ranges: class.ports.len(), most });
    }
    let lower = |range: &policy::PortRange| {
        let proto = match range.proto {
            Proto::Tcp => PROTO_TCP,
            Proto::Udp => PROTO_UDP,
            Proto::Icmp => PROTO_ICMP,
            Proto::Any => PROTO_ANY,
        };
        PortRange::new(proto, range.from, range.to, grants[range.grant as usize])
    };
    Ok(class.ports.iter().map(lower).collect())
}

fn content(ranges: impl Iterator<Item = PortRange>) -> Content {
    let mut content: Content = ranges.map(|range| [range.first, range.span, range.grant]).collect();
    content.sort_unstable();
    content
}

fn opened(content: &Content) -> Opened {
    let mut opened: Opened = Vec::new();
    for &[first, span, _] in content {
        match opened.last_mut() {
            // Sorted by their first: what touches or overlaps is one.
            Some([start, over]) if u64::from(first) <= u64::from(*start) + u64::from(*over) + 1 => {
                *over = (*over).max((first - *start).saturating_add(span));
            }
            _ => opened.push([first, span]),
        }
    }
    opened
}

fn used(chunk: ClassChunk) -> impl Iterator<Item = PortRange> {
    chunk.ports.into_iter().take(chunk.count as usize)
}
