//! A map as a typed table.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
};

use egress_ebpf::abi::Hits;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Error, sys};

/// What a map's keys and values are made of: plain bytes on both sides of the kernel boundary.
pub trait Plain: FromBytes + IntoBytes + Immutable + Copy {}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Plain for T {}

/// How many elements one batch call writes.
const BATCH: usize = 4096;

/// A map of `K` to `V`. Of a per-CPU map only [`Table::sum`] and [`Table::clear`] are meaningful; the rest is refused, or is about its
/// keys.
#[derive(Debug)]
pub struct Table<K, V> {
    map: OwnedFd,
    name: &'static str,
    shape: sys::MapShape,
    marker: PhantomData<(K, V)>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Takes a map, if its keys and values have the sizes of `K` and `V`.
    ///
    /// # Errors
    /// [`Error::Shape`] where they have not, [`Error::Map`] where the kernel does not say.
    pub fn new(name: &'static str, map: OwnedFd) -> Result<Self, Error> {
        let shape = sys::map_shape(map.as_fd()).map_err(|source| Error::map("look at", name, source))?;
        if shape.key_size as usize != size_of::<K>() || shape.value_size as usize != size_of::<V>() {
            return Err(Error::Shape { name, key: shape.key_size, value: shape.value_size });
        }
        Ok(Self { map, name, shape, marker: PhantomData })
    }

    /// The map's name in the object.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many elements it can hold.
    pub fn capacity(&self) -> u32 {
        self.shape.max_entries
    }

    /// The map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// An element is one `K` and one `V`: [`Table::new`] saw to the sizes, and it has not a value for each CPU.
    fn check(&self) -> io::Result<()> {
        let refused = || io::Error::new(io::ErrorKind::InvalidInput, "it has a value for each CPU");
        if self.shape.is_per_cpu() { Err(refused()) } else { Ok(()) }
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        let mut value = V::new_zeroed();
        // SAFETY: the sizes are those of `K` and `V`, as it checks.
        let read = |()| unsafe { sys::map_lookup(self.fd(), key.as_bytes(), value.as_mut_bytes()) };
        let found = self.check().and_then(read).map_err(|source| Error::map("read", self.name, source))?;
        Ok(found.then_some(value))
    }

    /// The value of `key`, which is deleted with it.
    pub fn take(&self, key: &K) -> Result<Option<V>, Error> {
        let mut bytes = vec![0; size_of::<V>()];
        // SAFETY: the sizes are those of `K` and `V`, as it checks.
        let take = |()| unsafe { sys::map_take(self.fd(), key.as_bytes(), &mut bytes) };
        let found = self.check().and_then(take).map_err(|source| Error::map("take from", self.name, source))?;
        Ok(if found { V::read_from_bytes(&bytes).ok() } else { None })
    }

    /// Writes one element; `flags` as in [`sys::map_update`].
    pub fn set(&self, key: &K, value: &V, flags: u64) -> Result<(), Error> {
        self.try_set(key, value, flags).map_err(|source| Error::map("write", self.name, source))
    }

    /// [`Table::set`] with the errno.
    pub fn try_set(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        self.check()?;
        // SAFETY: the sizes are those of `K` and `V`, as it checks.
        unsafe { sys::map_update_sized(self.fd(), key.as_bytes(), value.as_bytes(), flags) }
    }

    /// Writes many elements.
    pub fn set_all(&self, elements: &[(K, V)]) -> Result<(), Error> {
        let refused = |source| Error::map("write", self.name, source);
        self.check().map_err(refused)?;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for chunk in elements.chunks(BATCH) {
            keys.clear();
            values.clear();
            for (key, value) in chunk {
                keys.extend_from_slice(key.as_bytes());
                values.extend_from_slice(value.as_bytes());
            }
            // SAFETY: the sizes are those of `K` and `V`, as it checks, and the chunk's elements are in both.
            unsafe { sys::map_update_batch(self.fd(), &keys, &values, chunk.len() as u32) }.map_err(refused)?;
        }
        Ok(())
    }

    /// Deletes one element, if it is there.
    pub fn remove(&self, key: &K) -> Result<bool, Error> {
        // SAFETY: the key's size is that of `K`, as `new` saw.
        unsafe { sys::map_delete(self.fd(), key.as_bytes()) }
            .map_err(|source| Error::map("delete from", self.name, source))
    }

    /// Every key. Elements that come or go meanwhile may be missing, or be there twice.
    pub fn keys(&self) -> Result<Vec<K>, Error> {
        let mut keys = Vec::new();
        let mut next = K::new_zeroed();
        let mut last: Option<K> = None;
        loop {
            // SAFETY: the key's size is that of `K`, as `new` saw.
            let more = unsafe { sys::map_next_key(self.fd(), last.as_ref().map(K::as_bytes), next.as_mut_bytes()) }
                .map_err(|source| Error::map("walk", self.name, source))?;
            // A key that was deleted under the walk starts it anew: bound it by what can be there at all.
            if !more || keys.len() > self.capacity() as usize * 2 {
                return Ok(keys);
            }
            keys.push(next);
            last = Some(next);
        }
    }

    /// Calls `each` with the elements of a hash table or an array, read [`BATCH`] at a time, until it says `false`. Gives
    /// whether it came to the end. Elements that come or go meanwhile may be missing, or be there twice.
    pub fn each(&self, mut each: impl FnMut(&K, &V) -> bool) -> Result<bool, Error> {
        let (mut keys, mut values) = (vec![0; BATCH * size_of::<K>()], vec![0; BATCH * size_of::<V>()]);
        let mut at = None;
        loop {
            let (next, count) = self.read(at, &mut keys, &mut values)?;
            for (key, value) in pairs(&keys, &values).take(count) {
                if !each(&key, &value) {
                    return Ok(false);
                }
            }
            if next.is_none() {
                return Ok(true);
            }
            at = next;
        }
    }

    /// Reads up to `most` elements of a hash table or an array from `at` on, which an earlier call gave. Gives where to go on.
    pub fn batch(&self, at: Option<u32>, most: usize) -> Result<Batch<K, V>, Error> {
        let (mut keys, mut values) = (vec![0; most * size_of::<K>()], vec![0; most * size_of::<V>()]);
        let (next, count) = self.read(at, &mut keys, &mut values)?;
        Ok((next, pairs(&keys, &values).take(count).collect()))
    }

    /// Fills `keys` and `values`. Gives where to go on, and how many were read.
    fn read(&self, at: Option<u32>, keys: &mut [u8], values: &mut [u8]) -> Result<(Option<u32>, usize), Error> {
        let refused = |source| Error::map("walk", self.name, source);
        if !self.shape.has_places() {
            return Err(refused(io::Error::new(io::ErrorKind::InvalidInput, "it is no hash table or array")));
        }
        let most = (keys.len() / size_of::<K>()).min(values.len() / size_of::<V>());
        // SAFETY: it is of the kind that has places, which has no value for each CPU, and the sizes are those of `K` and `V`.
        let read = unsafe { sys::map_lookup_batch(self.fd(), at, keys, values, most as u32) };
        read.map(|(next, count)| (next, count as usize)).map_err(refused)
    }

    /// Deletes every element whose key `doomed` says; gives how many.
    pub fn remove_where(&self, mut doomed: impl FnMut(&K) -> bool) -> Result<usize, Error> {
        let mut removed = 0;
        for key in self.keys()? {
            if doomed(&key) && self.remove(&key)? {
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// Elements, and where to go on.
type Batch<K, V> = (Option<u32>, Vec<(K, V)>);

/// The elements that stand one after the other in these.
fn pairs<K: Plain, V: Plain>(keys: &[u8], values: &[u8]) -> impl Iterator<Item = (K, V)> {
    let keys = keys.chunks_exact(size_of::<K>()).filter_map(|bytes| K::read_from_bytes(bytes).ok());
    keys.zip(values.chunks_exact(size_of::<V>()).filter_map(|bytes| V::read_from_bytes(bytes).ok()))
}

/// How many CPUs there can be, which a file says that is not read for each of thousands of counters.
fn cpus() -> Result<usize, Error> {
    static CPUS: OnceLock<usize> = OnceLock::new();
    if let Some(cpus) = CPUS.get() {
        return Ok(*cpus);
    }
    let cpus = aya::util::nr_cpus().map_err(|(what, source)| Error::Cpus { what, source })?;
    Ok(*CPUS.get_or_init(|| cpus))
}

impl Table<u32, Hits> {
    /// The sum of a per-CPU element over all CPUs.
    pub fn sum(&self, index: u32) -> Result<Hits, Error> {
        let mut sum = Hits::default();
        for hits in self.per_cpu(index)? {
            sum.packets += hits.packets;
            sum.bytes += hits.bytes;
        }
        Ok(sum)
    }
}

impl Table<u32, Hits> {
    /// Sets a per-CPU element to nothing on all CPUs.
    pub fn clear(&self, index: u32) -> Result<(), Error> {
        let nothing = vec![0; Self::STRIDE * cpus()?];
        // SAFETY: the sizes are those of `u32` and `Hits`, as `new` saw, and there is one for each CPU.
        unsafe { sys::map_update_sized(self.fd(), index.as_bytes(), &nothing, sys::ANY) }
            .map_err(|source| Error::map("write", self.name, source))
    }
}

impl<V: Plain> Table<u32, V> {
    /// Each CPU's value is padded to 8 bytes (the kernel's `round_up(value_size, 8)`).
    const STRIDE: usize = size_of::<V>().next_multiple_of(8);

    fn per_cpu(&self, index: u32) -> Result<Vec<V>, Error> {
        let mut bytes = vec![0; Self::STRIDE * cpus()?];
        // SAFETY: the sizes are those of `u32` and `V`, as `new` saw, and there is room for each CPU's.
        unsafe { sys::map_lookup(self.fd(), index.as_bytes(), &mut bytes) }
            .map_err(|source| Error::map("read", self.name, source))?;
        Ok(bytes
            .chunks_exact(Self::STRIDE)
            .filter_map(|chunk| V::read_from_prefix(chunk).ok().map(|(value, _)| value))
            .collect())
    }
}

impl Table<u32, u64> {
    /// The sum of a per-CPU counter over all CPUs.
    pub fn sum(&self, index: u32) -> Result<u64, Error> {
        Ok(self.per_cpu(index)?.into_iter().sum())
    }
}
