//! How full the kernel's tables are, and what they cost.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use super::{Datapath, Error, Plain, Table, sys};

/// Elements that one call counts: a bucket with more than this would end the count with an error.
const BATCH: u32 = 4096;

/// The hash tables whose elements come and go with traffic or with the policy, and whether they give up old elements for
/// new ones. The tries (names, prefixes) come beside them.
const HASHES: &[(&str, bool)] = &[
    ("ADDRESSES_4", false),
    ("ADDRESSES_6", false),
    ("FLOWS", true),
    ("PEERS", true),
    ("FRAGMENTS", true),
    ("PENDING", true),
    ("ALIASES", true),
    ("STREAMS", true),
    ("RESOLVERS", false),
    ("DROP_FOLDS", true),
];

/// One table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The map's name in the object.
    pub name: &'static str,
    /// Elements in it, expired ones that nobody has removed yet among them. While others write it is near the truth.
    pub entries: u64,
    /// Elements that it can hold.
    pub capacity: u64,
    /// Bytes of memory that the kernel accounts for it now (`memlock` in its fdinfo). Tables that are made whole at the
    /// start cost the same empty and full; those of a kernel before 6.4 are told by a worst-case formula.
    pub bytes: u64,
    /// It gives up old elements for new ones: full is how it looks after a while, and no trouble.
    pub evicts: bool,
}

impl Datapath {
    /// How full each table is that can fill up, in a fixed order. Takes one call for each 4,096 elements of a hash table,
    /// and one for each name and prefix of the policy; it changes nothing, and does not make an entry look used.
    ///
    /// # Errors
    /// Where the kernel does not let a map be read.
    pub fn fill(&self) -> Result<Vec<Fill>, Error> {
        let mut fills = Vec::with_capacity(HASHES.len() + 1);
        for (name, evicts) in HASHES.iter().copied() {
            let map = self.object.map_fd(name)?;
            let read = |source| Error::map("count", name, source);
            let shape = sys::map_shape(map.as_fd()).map_err(read)?;
            let entries = count(map.as_fd(), &shape).map_err(read)?;
            let bytes = memory(map.as_fd()).map_err(read)?;
            fills.push(Fill { name, entries, capacity: shape.max_entries.into(), bytes, evicts });
        }
        fills.push(trie(&self.names)?);
        for prefixes in [&self.prefixes_4, &self.denies_4] {
            fills.push(trie(prefixes)?);
        }
        for prefixes in [&self.prefixes_6, &self.denies_6] {
            fills.push(trie(prefixes)?);
        }
        Ok(fills)
    }
}

/// A table whose elements only a walk over its keys can count.
fn trie<K: Plain, V: Plain>(table: &Table<K, V>) -> Result<Fill, Error> {
    let name = table.name();
    let bytes = memory(table.fd()).map_err(|source| Error::map("count", name, source))?;
    Ok(Fill { name, entries: table.keys()?.len() as u64, capacity: table.capacity().into(), bytes, evicts: false })
}

/// The elements of a hash table. Only of those: the position in other kinds of maps is a key, not four bytes.
fn count(map: BorrowedFd<'_>, shape: &sys::MapShape) -> io::Result<u64> {
    if !shape.has_places() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no hash table"));
    }
    let mut keys = vec![0; (BATCH * shape.key_size) as usize];
    let mut values = vec![0; BATCH as usize * shape.value_bytes()?];
    let (mut at, mut entries) = (None, 0_u64);
    loop {
        // SAFETY: it is of the kind that has places, and there is room for as many elements of its shape.
        let (next, read) = unsafe { sys::map_lookup_batch(map, at, &mut keys, &mut values, BATCH) }?;
        entries += u64::from(read);
        if next.is_none() {
            return Ok(entries);
        }
        at = next;
    }
}

/// `memlock` of the descriptor's fdinfo, bytes.
fn memory(map: BorrowedFd<'_>) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("memlock:")).and_then(|bytes| bytes.trim().parse().ok());
    bytes.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "fdinfo has no line `memlock`"))
}
