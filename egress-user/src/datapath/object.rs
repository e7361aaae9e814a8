//! The embedded eBPF object: its maps sized, its programs loaded.
//!
//! aya-obj reads and links it; what is made of it in the kernel is made here, since a start must be fast (decision 0061).

mod kernel_types;
mod loading;
mod maps;
mod parts;
mod program;

use std::{
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use aya_obj::generated::bpf_map_type;

use self::{
    maps::Wanted,
    parts::Parts,
    program::{Program, With},
};
use super::{Error, Pins, Plain, Table, sys};
use crate::{beside::Beside, policy::Compiled};

pub use self::{kernel_types::functions as kernel_functions, loading::Loading};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress.bpf.o"));

/// How many elements the maps that depend on the policy can hold.
///
/// During a reload two generations are in the tables, so each size is that of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Addresses of each family.
    pub addresses: u32,
    /// Prefixes of each family, allowed or denied.
    pub prefixes: u32,
    /// Chunks of classes ([`egress_ebpf::abi::ClassChunk`]).
    pub classes: u32,
    /// Grants.
    pub grants: u32,
    /// Name table entries.
    pub names: u32,
    /// Wildcards inside a label.
    pub inner: u32,
    /// Flows of the uplinks and of accepted connections; half as many datagram flows of sockets.
    pub flows: u32,
}

/// What a user asks the tables that traffic fills to hold, beyond what the policy itself needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Addresses of each family, those of two generations; `None` for [`Room::ADDRESSES`].
    pub addresses: Option<u32>,
    /// Flows; `None` for [`Room::FLOWS`].
    pub flows: Option<u32>,
}

impl Room {
    /// Addresses of each family where nothing else is said.
    pub const ADDRESSES: u32 = 1 << 17;
    /// Flows where nothing else is said.
    pub const FLOWS: u32 = 1 << 17;
    /// What may be asked for. Below it an LRU map is mostly its processors' free lists (kernel/bpf/bpf_lru_list.c); above it the
    /// flows, which are made whole, take gigabytes.
    pub const RANGE: std::ops::RangeInclusive<u32> = 1 << 10..=1 << 24;
}

impl Sizes {
    /// Sizes for one command: a few thousand flows and addresses, which are made faster than a node's.
    pub fn for_command(policy: &Compiled) -> Self {
        let node = Self::for_policy(policy, Room::default());
        let least = |len: usize| u32::try_from(len * 4).unwrap_or(u32::MAX / 8).next_power_of_two().max(512);
        Self {
            addresses: least(policy.addresses.len()).max(1 << 14),
            prefixes: least(policy.addresses.len().max(policy.denies.len())),
            classes: least(policy.classes.len()).max(node.classes.min(512)),
            grants: least(policy.grants.len()),
            flows: 1 << 12,
            ..node
        }
    }

    /// Sizes that hold `policy`, a successor twice as large, and what `room` asks for.
    pub fn for_policy(policy: &Compiled, room: Room) -> Self {
        let twice = |len: usize, least: u32| {
            u32::try_from(len).unwrap_or(u32::MAX / 8).saturating_mul(4).next_power_of_two().max(least)
        };
        let chunks: usize =
            policy.classes.iter().map(|class| class.ports.len().div_ceil(egress_ebpf::abi::CHUNK_PORTS)).sum();
        let inner: usize = policy.names.iter().map(|entry| entry.inner.len()).sum();
        Self {
            addresses: twice(
                policy.addresses.len() + policy.exact_names.len() * 4,
                room.addresses.unwrap_or(Room::ADDRESSES),
            ),
            prefixes: twice(policy.addresses.len().max(policy.denies.len()), 4096),
            classes: twice(chunks, 4096),
            grants: twice(policy.grants.len(), 4096),
            names: twice(policy.names.len() + policy.dns.internal.len() * 2 + policy.dns.allow_private.len(), 4096),
            inner: twice(inner, 512),
            flows: room.flows.unwrap_or(Room::FLOWS),
        }
    }

    fn of(&self) -> [(&'static str, u32); 13] {
        [
            ("ADDRESSES_4", self.addresses),
            ("ADDRESSES_6", self.addresses),
            ("PREFIXES_4", self.prefixes),
            ("PREFIXES_6", self.prefixes),
            ("DENIES_4", self.prefixes),
            ("DENIES_6", self.prefixes),
            ("CLASSES", self.classes),
            ("GRANTS", self.grants),
            ("GRANT_HITS", self.grants),
            ("NAMES", self.names),
            ("INNER_WILDCARDS", self.inner),
            ("FLOWS", self.flows),
            ("PEERS", self.flows / 2),
        ]
    }
}

/// aya-log's ring buffer.
const LOG_MAP: &str = "AYA_LOGS";
/// A program that writes to it, as all do that judge.
const LOGS: &str = "socket_egress";

/// The programs' own debug lines, off and on.
static TELL_NOTHING: [u8; 1] = [0];
static TELL: [u8; 1] = [aya_log::Level::Debug as u8];

/// The object in the kernel: its maps are made, its programs are loaded when they are needed. Clones share both.
#[derive(Clone, Debug)]
pub struct Object {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    maps: Vec<Made>,
    /// The maps' descriptors, in the order that the programs know them by.
    places: Vec<RawFd>,
    programs: Vec<Program>,
    types: OwnedFd,
}

#[derive(Debug)]
struct Made {
    name: String,
    map_type: u32,
    fd: OwnedFd,
}

/// What [`prepare`] began.
static AHEAD: Mutex<Option<Beside<Result<Parts, Error>>>> = Mutex::new(None);

/// Begins, on a thread, what [`Object::load`] does first, whatever the policy: for a start that must be fast. `tells` as in
/// [`Object::load_telling`].
pub fn prepare(tells: bool) {
    *AHEAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(Beside::begin(move || Parts::read(tells)));
}

/// How many threads are of use.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

impl Object {
    /// The ELF object that is loaded.
    pub fn elf() -> &'static [u8] {
        OBJECT
    }

    /// Makes the maps and loads no program yet. With `pins` the maps are pinned there, and those that are pinned there
    /// already are taken up as they are.
    pub fn load(sizes: &Sizes, pins: Option<&Pins>) -> Result<Self, Error> {
        Self::load_telling(sizes, pins, false)
    }

    /// [`Object::load`]; `tells` has the programs write their debug lines, for [`Object::log`].
    pub fn load_telling(sizes: &Sizes, pins: Option<&Pins>, tells: bool) -> Result<Self, Error> {
        let ahead = AHEAD.lock().unwrap_or_else(PoisonError::into_inner).take();
        let parts = match ahead.map(Beside::finish).transpose()? {
            Some(parts) if parts.tells == tells => parts,
            _ => Parts::read(tells)?,
        };
        let types = types(&parts)?;
        let mut sizes = sizes.of().to_vec();
        if !tells {
            sizes.push((LOG_MAP, 1 << 12));
        }
        let pin = |name: &str| pins.filter(|_| super::pins::MAPS.contains(&name)).map(|pins| pins.map(name));
        let size = |name: &str| sizes.iter().find(|(sized, _)| *sized == name).map(|(_, size)| *size);
        let wanted: Vec<_> = parts
            .maps
            .iter()
            .map(|part| Wanted { part, max_entries: size(&part.name), pin: pin(&part.name) })
            .collect();
        let made = maps::make(&wanted, types.as_fd())?;
        let places = made.iter().map(|map| map.as_raw_fd()).collect();
        let named = parts.maps.iter().zip(made);
        let maps =
            named.map(|(part, fd)| Made { name: part.name.clone(), map_type: part.map.map_type(), fd }).collect();
        let programs = parts.programs.into_iter().map(Program::new).collect();
        Ok(Self { shared: Arc::new(Shared { maps, places, programs, types }) })
    }

    /// Whether the maps, perhaps pinned by an earlier daemon, hold as much as `sizes` asks for.
    pub fn has_room(&self, sizes: &Sizes) -> Result<bool, Error> {
        for (name, wanted) in sizes.of() {
            let shape =
                sys::map_shape(self.made(name)?.fd.as_fd()).map_err(|source| Error::map("look at", name, source))?;
            if shape.max_entries < wanted {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A map as a typed table, with a descriptor of its own.
    pub fn table<K: Plain, V: Plain>(&self, name: &'static str) -> Result<Table<K, V>, Error> {
        Table::new(name, self.map_fd(name)?)
    }

    /// A descriptor of a map.
    pub fn map_fd(&self, name: &'static str) -> Result<OwnedFd, Error> {
        let map = self.made(name)?;
        map.fd.as_fd().try_clone_to_owned().map_err(|source| Error::map("open", name, source))
    }

    fn made(&self, name: &'static str) -> Result<&Made, Error> {
        self.shared.maps.iter().find(|map| map.name == name).ok_or(Error::Missing { kind: "map", name })
    }

    /// The ring buffer of events.
    pub fn events(&self) -> Result<aya::maps::RingBuf<aya::maps::MapData>, Error> {
        const NAME: &str = "EVENTS";
        if self.made(NAME)?.map_type != bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32 {
            return Err(Error::Missing { kind: "ring buffer", name: NAME });
        }
        let refused = |source: aya::maps::MapError| Error::Object(Box::new(source));
        let data = aya::maps::MapData::from_fd(self.map_fd(NAME)?).map_err(refused)?;
        aya::maps::RingBuf::try_from(aya::maps::Map::RingBuf(data)).map_err(refused)
    }

    /// The reader of the programs' debug lines.
    pub fn log<L: log::Log>(&self, to: L) -> Result<aya_log::EbpfLogger<L>, Error> {
        let missing = |_| Error::Missing { kind: "map", name: LOG_MAP };
        let program = sys::program_id(self.program(LOGS)?).map_err(|source| Error::map("look at", LOG_MAP, source))?;
        aya_log::EbpfLogger::init_from_id_with_logger(program, to).map_err(missing)
    }

    /// Loads these programs side by side: the verifier takes tens of milliseconds for the larger ones, which go first. What fails is
    /// told by [`Object::program`], which tries it again.
    pub fn load_programs(&self, names: &[&'static str]) {
        self.load_beside(names.to_vec()).finish();
    }

    /// Begins to load these programs, in this order, on as many threads as there are processors, while the caller goes on.
    pub fn load_beside(&self, names: Vec<&'static str>) -> Loading {
        Loading::begin(self, names)
    }

    /// Loads a program, if it is not yet, and gives its descriptor.
    pub fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, Error> {
        self.hooked(name, 0)
    }

    /// Loads an LSM program, to be called by a function of the kernel, which [`kernel_functions`] gives the number of, and gives its
    /// descriptor.
    pub fn lsm(&self, name: &'static str, function: u32) -> Result<BorrowedFd<'_>, Error> {
        self.hooked(name, function)
    }

    fn hooked(&self, name: &'static str, hook: u32) -> Result<BorrowedFd<'_>, Error> {
        let Shared { places, programs, types, .. } = &*self.shared;
        let program = programs.iter().find(|program| program.part.name == name);
        let program = program.ok_or(Error::Missing { kind: "program", name })?;
        program.load(name, With { maps: places, types: types.as_fd(), hook })
    }
}

/// The object's types, in the kernel.
fn types(parts: &Parts) -> Result<OwnedFd, Error> {
    let refused = |source: std::io::Error| Error::Object(format!("its types: {source}").into());
    match sys::types_load(&parts.types) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let older = parts.older_types().ok_or_else(|| refused(error))?;
            sys::types_load(&older).map_err(refused)
        }
        loaded => loaded.map_err(refused),
    }
}
