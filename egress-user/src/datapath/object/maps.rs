//! The object's maps, made side by side.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use aya_obj::{EbpfSectionKind, Map, generated::bpf_map_type};

use super::parts::MapPart;
use crate::datapath::{Error, sys};

/// How one map is to be made.
#[derive(Debug)]
pub struct Wanted<'a> {
    pub part: &'a MapPart,
    /// Instead of what the object says.
    pub max_entries: Option<u32>,
    /// Where it is pinned; what is pinned there is taken up as it is.
    pub pin: Option<PathBuf>,
}

/// Makes all, or takes up what is pinned, in the order given. The large ones take milliseconds each, since the kernel makes their elements
/// with them: as many threads as processors.
pub fn make(wanted: &[Wanted<'_>], types: BorrowedFd<'_>) -> Result<Vec<OwnedFd>, Error> {
    let mut order: Vec<_> = wanted.iter().enumerate().collect();
    order.sort_by_key(|(_, wanted)| std::cmp::Reverse(wanted.bytes()));
    let next = AtomicUsize::new(0);
    let some = || {
        let mut made = Vec::new();
        while let Some((place, wanted)) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            made.push((*place, wanted.make(types).map_err(|source| wanted.refusal(source))));
        }
        made
    };
    let mut made = thread::scope(|scope| {
        let threads: Vec<_> = (1..super::processors()).map(|_| scope.spawn(some)).collect();
        let mut made = some();
        for thread in threads {
            made.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        made
    });
    made.sort_by_key(|(place, _)| *place);
    made.into_iter().map(|(_, map)| map).collect()
}

impl Wanted<'_> {
    fn max_entries(&self) -> u32 {
        self.max_entries.unwrap_or(self.part.map.max_entries())
    }

    fn bytes(&self) -> u64 {
        u64::from(self.max_entries()) * u64::from(self.part.map.key_size() + self.part.map.value_size())
    }

    fn make(&self, types: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        match self.pin.as_deref().map(sys::open_pin) {
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Some(taken) => return taken,
            None => {}
        }
        let Self { part: MapPart { name, map }, .. } = self;
        let made = sys::map_create(&sys::NewMap {
            name,
            map_type: map.map_type(),
            key_size: map.key_size(),
            value_size: if is(map, bpf_map_type::BPF_MAP_TYPE_RINGBUF) { 0 } else { map.value_size() },
            max_entries: self.max_entries(),
            flags: map.map_flags(),
            types: types_of(map).map(|(key, value)| (types, key, value)),
        })?;
        if !map.data().is_empty() {
            sys::map_update(made.as_fd(), &0_u32.to_ne_bytes(), map.data(), sys::ANY)?;
        }
        if map.section_kind() == EbpfSectionKind::Rodata {
            sys::map_freeze(made.as_fd())?;
        }
        if let Some(pin) = &self.pin {
            sys::pin(made.as_fd(), pin)?;
        }
        Ok(made)
    }

    fn refusal(&self, source: io::Error) -> Error {
        let place = self.pin.as_deref().map(Path::display).map(|pin| format!(", pinned at {pin}"));
        let what = format!("the map {}{}", self.part.name, place.unwrap_or_default());
        Error::Object(Refusal { what, source }.into())
    }
}

/// With the errno to be found among its sources.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
struct Refusal {
    what: String,
    source: io::Error,
}

/// The types of key and value, by their numbers among the object's; these kinds of map take none.
fn types_of(map: &Map) -> Option<(u32, u32)> {
    use bpf_map_type::*;
    let Map::Btf(with_types) = map else { return None };
    let takes_none = [BPF_MAP_TYPE_RINGBUF, BPF_MAP_TYPE_DEVMAP, BPF_MAP_TYPE_DEVMAP_HASH];
    let takes_none = takes_none.into_iter().any(|kind| is(map, kind));
    (!takes_none).then_some((with_types.def.btf_key_type_id, with_types.def.btf_value_type_id))
}

fn is(map: &Map, kind: bpf_map_type) -> bool {
    map.map_type() == kind as u32
}
