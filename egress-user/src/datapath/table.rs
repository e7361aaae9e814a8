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

/// A map of `K` to `V`. Of a per-CPU map only [`Table::sum`] is meaningful.
#[derive(Debug)]
pub struct Table<K, V> {
    map: OwnedFd,
    name: &'static str,
    capacity: u32,
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
        Ok(Self { map, name, capacity: shape.max_entries, marker: PhantomData })
    }

    /// The map's name in the object.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// How many elements it can hold.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Result<Option<V>, Error> {
        let mut value = V::new_zeroed();
        let found = sys::map_lookup(self.fd(), key.as_bytes(), value.as_mut_bytes())
            .map_err(|source| Error::map("read", self.name, source))?;
        Ok(found.then_some(value))
    }

    /// The value of `key`, which is deleted with it.
    pub fn take(&self, key: &K) -> Result<Option<V>, Error> {
        let mut bytes = vec![0; size_of::<V>()];
        let found = sys::map_take(self.fd(), key.as_bytes(), &mut bytes)
            .map_err(|source| Error::map("take from", self.name, source))?;
        Ok(if found { V::read_from_bytes(&bytes).ok() } else { None })
    }

    /// Writes one element; `flags` as in [`sys::map_update`].
    pub fn set(&self, key: &K, value: &V, flags: u64) -> Result<(), Error> {
        self.try_set(key, value, flags).map_err(|source| Error::map("write", self.name, source))
    }

    /// [`Table::set`] with the errno.
    pub fn try_set(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        sys::map_update(self.fd(), key.as_bytes(), value.as_bytes(), flags)
    }

    /// Writes many elements.
    pub fn set_all(&self, elements: &[(K, V)]) -> Result<(), Error> {
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for chunk in elements.chunks(BATCH) {
            keys.clear();
            values.clear();
            for (key, value) in chunk {
                keys.extend_from_slice(key.as_bytes());
                values.extend_from_slice(value.as_bytes());
            }
            sys::map_update_batch(self.fd(), &keys, &values, chunk.len() as u32)
                .map_err(|source| Error::map("write", self.name, source))?;
        }
        Ok(())
    }

    /// Deletes one element, if it is there.
    pub fn remove(&self, key: &K) -> Result<bool, Error> {
        sys::map_delete(self.fd(), key.as_bytes()).map_err(|source| Error::map("delete from", self.name, source))
    }

    /// Every key. Elements that come or go meanwhile may be missing, or be there twice.
    pub fn keys(&self) -> Result<Vec<K>, Error> {
        let mut keys = Vec::new();
        let mut next = K::new_zeroed();
        let mut last: Option<K> = None;
        loop {
            let more = sys::map_next_key(self.fd(), last.as_ref().map(K::as_bytes), next.as_mut_bytes())
                .map_err(|source| Error::map("walk", self.name, source))?;
            // A key that was deleted under the walk starts it anew: bound it by what can be there at all.
            if !more || keys.len() > self.capacity as usize * 2 {
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
            let (next, count) = sys::map_lookup_batch(self.fd(), at, &mut keys, &mut values, BATCH as u32)
                .map_err(|source| Error::map("walk", self.name, source))?;
            let pairs = keys.chunks_exact(size_of::<K>()).zip(values.chunks_exact(size_of::<V>()));
            for (key, value) in pairs.take(count as usize) {
                if let (Ok(key), Ok(value)) = (K::read_from_bytes(key), V::read_from_bytes(value))
                    && !each(&key, &value)
                {
                    return Ok(false);
                }
            }
            if next.is_none() {
                return Ok(true);
            }
            at = next;
        }
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
        for hits in self.per_cpu::<Hits>(index)? {
            sum.packets += hits.packets;
            sum.bytes += hits.bytes;
        }
        Ok(sum)
    }
}

impl Table<u32, Hits> {
    /// Sets a per-CPU element to nothing on all CPUs.
    pub fn clear(&self, index: u32) -> Result<(), Error> {
        let cpus = cpus()?;
        let nothing = vec![0; size_of::<Hits>() * cpus];
        sys::map_update(self.fd(), index.as_bytes(), &nothing, sys::ANY)
            .map_err(|source| Error::map("write", self.name, source))
    }
}

impl<V: Plain> Table<u32, V> {
    fn per_cpu<T: Plain>(&self, index: u32) -> Result<Vec<T>, Error> {
        let cpus = cpus()?;
        // Each CPU's value is padded to 8 bytes (the kernel's `round_up(value_size, 8)`).
        let stride = size_of::<T>().next_multiple_of(8);
        let mut bytes = vec![0; stride * cpus];
        sys::map_lookup(self.fd(), index.as_bytes(), &mut bytes)
            .map_err(|source| Error::map("read", self.name, source))?;
        Ok(bytes
            .chunks_exact(stride)
            .filter_map(|chunk| T::read_from_prefix(chunk).ok().map(|(value, _)| value))
            .collect())
    }
}

impl Table<u32, u64> {
    /// The sum of a per-CPU counter over all CPUs.
    pub fn sum(&self, index: u32) -> Result<u64, Error> {
        Ok(self.per_cpu::<u64>(index)?.into_iter().sum())
    }
}
