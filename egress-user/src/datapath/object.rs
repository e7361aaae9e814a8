//! The embedded eBPF object: its maps sized, its programs loaded.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use aya::{Ebpf, EbpfLoader, programs::Program};

use super::{Error, Pins, Plain, Table, clock::Jiffies};
use crate::policy::Compiled;

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

/// The loaded object.
#[derive(Debug)]
pub struct Object {
    ebpf: Ebpf,
}

/// What [`prepare`] began.
static AHEAD: Mutex<Option<JoinHandle<EbpfLoader<'static>>>> = Mutex::new(None);

/// Begins, on a thread, what [`Object::load`] does first, whatever the policy: for a start that must be fast.
pub fn prepare() {
    *AHEAD.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::spawn(loader));
}

/// The programs' own debug lines, off and on.
static TELL_NOTHING: u8 = 0;
static TELL: u8 = aya_log::Level::Debug as u8;

/// aya's loader reads the kernel's types (some 20 ms) when it is made. The programs use no CO-RE relocation: relocating by
/// them would take as long again.
fn loader() -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader
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

    /// [`Object::load`]; `tells` has the programs write their debug lines, for [`Object::take_log`].
    pub fn load_telling(sizes: &Sizes, pins: Option<&Pins>, tells: bool) -> Result<Self, Error> {
        let paths: Vec<_> =
            pins.map(|pins| super::pins::MAPS.iter().map(|name| (*name, pins.map(name))).collect()).unwrap_or_default();
        let jiffies = Jiffies::read();
        let ahead = AHEAD.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut loader = ahead.and_then(|thread| thread.join().ok()).unwrap_or_else(loader);
        for (name, size) in sizes.of() {
            loader.map_max_entries(name, size);
        }
        // The verifier knows it as a constant, and takes out what is behind it.
        loader.override_global(aya_log::LEVEL, if tells { &TELL } else { &TELL_NOTHING }, true);
        loader.override_global("JIFFY_LENGTH", &jiffies.length, true);
        loader.override_global("JIFFIES_BEGAN", &jiffies.began, true);
        if !tells {
            loader.map_max_entries(LOG_MAP, 1 << 12);
        }
        for (name, path) in &paths {
            loader.map_pin_path(name, path.as_path());
        }
        let ebpf = loader.load(OBJECT).map_err(|source| Error::Object(Box::new(source)))?;
        Ok(Self { ebpf })
    }

    /// Whether the maps, perhaps pinned by an earlier daemon, hold as much as `sizes` asks for.
    pub fn has_room(&self, sizes: &Sizes) -> Result<bool, Error> {
        for (name, wanted) in sizes.of() {
            let shape = super::sys::map_shape(self.map_fd(name)?.as_fd())
                .map_err(|source| Error::map("look at", name, source))?;
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
        use aya::maps::Map;
        let map = self.ebpf.map(name).ok_or(Error::Missing { kind: "map", name })?;
        let data = match map {
            Map::Array(data)
            | Map::HashMap(data)
            | Map::LruHashMap(data)
            | Map::LpmTrie(data)
            | Map::PerCpuArray(data)
            | Map::RingBuf(data)
            | Map::SkStorage(data)
            | Map::DevMapHash(data) => data,
            _ => return Err(Error::Missing { kind: "map of a known type", name }),
        };
        data.fd().as_fd().try_clone_to_owned().map_err(|source| Error::map("open", name, source))
    }

    /// Takes the ring buffer of events out of the object.
    pub fn take_events(&mut self) -> Result<aya::maps::RingBuf<aya::maps::MapData>, Error> {
        let map = self.ebpf.take_map("EVENTS").ok_or(Error::Missing { kind: "map", name: "EVENTS" })?;
        aya::maps::RingBuf::try_from(map).map_err(|source| Error::Object(Box::new(aya::EbpfError::MapError(source))))
    }

    /// Takes the ring buffer of the programs' debug lines out of the object. It must be kept: programs that are loaded later are
    /// given its descriptor.
    pub fn take_log<L: log::Log>(&mut self, to: L) -> Result<aya_log::EbpfLogger<L>, Error> {
        aya_log::EbpfLogger::init_with_logger(&mut self.ebpf, to)
            .map_err(|_| Error::Missing { kind: "map", name: LOG_MAP })
    }

    /// Loads these programs side by side: the verifier takes tens of milliseconds for the larger ones, which go first. What fails is
    /// told by [`Object::program`], which tries it again.
    pub fn load_programs(&mut self, names: &[&str]) {
        self.load_programs_and(names, |_, _| {});
    }

    /// The same, and calls `loaded` with each program's name as soon as it is loaded, on that program's own thread.
    pub fn load_programs_and(&mut self, names: &[&str], loaded: impl Fn(&str, BorrowedFd<'_>) + Sync) {
        let place = |name: &str| names.iter().position(|wanted| *wanted == name);
        let mut wanted: Vec<_> = self
            .ebpf
            .programs_mut()
            .filter_map(|(name, program)| Some((place(name)?, name, program)))
            .filter(|(_, _, program)| program.fd().is_err())
            .collect();
        // In the order given, so that the longest begins first.
        wanted.sort_by_key(|(place, _, _)| *place);
        let loaded = &loaded;
        thread::scope(|scope| {
            for (_, name, program) in wanted {
                scope.spawn(move || {
                    load_program(program);
                    if let Ok(fd) = program.fd() {
                        loaded(name, fd.as_fd());
                    }
                });
            }
        });
    }

    /// Loads a program, if it is not yet, and gives its descriptor.
    pub fn program(&mut self, name: &'static str) -> Result<BorrowedFd<'_>, Error> {
        let refused = |source| Error::Program { program: name, source: Box::new(source) };
        let program = self.ebpf.program_mut(name).ok_or(Error::Missing { kind: "program", name })?;
        if program.fd().is_err() {
            load_program(program).ok_or(Error::Missing { kind: "program of a known type", name })?.map_err(refused)?;
        }
        let program = self.ebpf.program(name).ok_or(Error::Missing { kind: "program", name })?;
        Ok(program.fd().map_err(refused)?.as_fd())
    }

    /// Loads an LSM program for the hook of the kernel that its section names, and gives its descriptor.
    pub fn lsm(&mut self, name: &'static str, hook: &'static str, kernel: &aya::Btf) -> Result<BorrowedFd<'_>, Error> {
        let refused = |source| Error::Program { program: name, source: Box::new(source) };
        let Some(Program::Lsm(program)) = self.ebpf.program_mut(name) else {
            return Err(Error::Missing { kind: "LSM program", name });
        };
        if program.fd().is_err() {
            program.load(hook, kernel).map_err(refused)?;
        }
        Ok(program.fd().map_err(refused)?.as_fd())
    }

    /// The classifier program of this name, loaded, for the netlink way of attaching (kernels before 6.6).
    pub fn classifier(&mut self, name: &'static str) -> Result<&mut aya::programs::SchedClassifier, Error> {
        self.program(name)?;
        match self.ebpf.program_mut(name) {
            Some(Program::SchedClassifier(program)) => Ok(program),
            _ => Err(Error::Missing { kind: "classifier", name }),
        }
    }
}

/// Loads a program of a type that egress has; `None` for another.
fn load_program(program: &mut Program) -> Option<Result<(), aya::programs::ProgramError>> {
    Some(match program {
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => return None,
    })
}
