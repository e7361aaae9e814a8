//! The `bpf(2)` calls that aya does not offer, or not for pinned objects: maps as bytes, links, pins, test runs.
//!
//! Every function but [`map_update`] is one call; errors are the call's errno. The kernel takes as many bytes of keys and values as the
//! map's shape says, whatever the slices' lengths: what does not look at the shape itself is unsafe. The attribute layouts are those of `union bpf_attr` in the
//! kernel's `include/uapi/linux/bpf.h`, which only ever grows at the end.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use aya_obj::generated::bpf_map_type;

mod make;
mod test_run;

pub use make::{
    CLASSIFIER, NewMap, NewProgram, bare_program, bare_program_for, map_create, map_freeze, program_load, types_load,
};
pub use test_run::{TestInput, TestRun, test_run, test_run_marked};

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const MAP_LOOKUP_AND_DELETE_ELEM: u32 = 21;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const RAW_TRACEPOINT_OPEN: u32 = 17;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// Update: create a new element or replace an existing one.
pub const ANY: u64 = 0;
/// Update: only create.
pub const NO_EXIST: u64 = 1;

/// `enum bpf_attach_type`, as far as egress attaches.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachType {
    CgroupIngress = 0,
    CgroupEgress = 1,
    CgroupSockCreate = 2,
    CgroupConnect4 = 10,
    CgroupConnect6 = 11,
    CgroupSendmsg4 = 14,
    CgroupSendmsg6 = 15,
    TcxIngress = 46,
    TcxEgress = 47,
}

fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: each caller passes the attributes that its command reads, and every pointer in them outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn own(fd: i64) -> OwnedFd {
    // SAFETY: the kernel has just given this descriptor to us alone; descriptors fit an i32.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

/// Reads an element into `value`; `false` where there is none.
///
/// # Safety
/// `key` has the map's key size at least, and `value` its [`MapShape::value_bytes`].
pub unsafe fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = ElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        value_or_next: value.as_mut_ptr() as u64,
        ..ElemAttr::default()
    };
    absent_is_false(bpf(MAP_LOOKUP_ELEM, &mut attr))
}

/// Writes an element; `flags` is [`ANY`] or [`NO_EXIST`]. Asks for the map's shape first.
///
/// # Errors
/// The key or the value is too short, or the calls' errno.
pub fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let shape = map_shape(map)?;
    if key.len() < shape.key_size as usize || value.len() < shape.value_bytes()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the key or the value is too short for this map"));
    }
    // SAFETY: the lengths are the shape's.
    unsafe { map_update_sized(map, key, value, flags) }
}

/// [`map_update`] of a map whose shape is known.
///
/// # Safety
/// `key` has the map's key size at least, and `value` its [`MapShape::value_bytes`].
pub unsafe fn map_update_sized(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let mut attr = ElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        value_or_next: value.as_ptr() as u64,
        flags,
        ..ElemAttr::default()
    };
    bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Reads an element into `value` and deletes it, in one step (hash tables since kernel 5.14); `false` where there is none.
///
/// # Safety
/// `key` has the map's key size at least, and `value` its [`MapShape::value_bytes`].
pub unsafe fn map_take(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = ElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        value_or_next: value.as_mut_ptr() as u64,
        ..ElemAttr::default()
    };
    absent_is_false(bpf(MAP_LOOKUP_AND_DELETE_ELEM, &mut attr))
}

/// Deletes an element; `false` where there was none.
///
/// # Safety
/// `key` has the map's key size at least.
pub unsafe fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = ElemAttr { map_fd: map.as_raw_fd() as u32, key: key.as_ptr() as u64, ..ElemAttr::default() };
    absent_is_false(bpf(MAP_DELETE_ELEM, &mut attr))
}

/// Reads the key after `key` (the first one without) into `next`; `false` at the end.
///
/// # Safety
/// `key` and `next` have the map's key size at least.
pub unsafe fn map_next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attr = ElemAttr {
        map_fd: map.as_raw_fd() as u32,
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value_or_next: next.as_mut_ptr() as u64,
        ..ElemAttr::default()
    };
    absent_is_false(bpf(MAP_GET_NEXT_KEY, &mut attr))
}

fn absent_is_false(result: io::Result<i64>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes `count` elements, whose keys and values stand one after the other in `keys` and `values` (kernel 5.6).
///
/// # Safety
/// `keys` and `values` have room for `count` of the map's keys and [`MapShape::value_bytes`].
pub unsafe fn map_update_batch(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: u32) -> io::Result<()> {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    bpf(MAP_UPDATE_BATCH, &mut attr).map(drop)
}

/// Reads up to `count` elements of a hash table into `keys` and `values` (kernel 5.6), from `at` on, which an earlier
/// call gave. Gives where to go on, `None` at the end, and how many were read.
///
/// # Safety
/// The map [has numbered places](MapShape::has_places), and `keys` and `values` have room for `count` of its keys and
/// [`MapShape::value_bytes`].
pub unsafe fn map_lookup_batch(
    map: BorrowedFd<'_>,
    at: Option<u32>,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<(Option<u32>, u32)> {
    let mut next = 0_u32;
    let mut attr = BatchAttr {
        in_batch: at.as_ref().map_or(0, |at| std::ptr::from_ref(at) as u64),
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // "No entry" is the end; the elements before it were read.
    let more = absent_is_false(bpf(MAP_LOOKUP_BATCH, &mut attr))?;
    Ok((more.then_some(next), attr.count))
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map's shape, as the kernel has it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapShape {
    pub map_type: u32,
    pub id: u32,
    /// Bytes.
    pub key_size: u32,
    /// Bytes, of one CPU's value where the map is per CPU.
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

impl MapShape {
    /// Whether an element has a value for each CPU.
    pub fn is_per_cpu(&self) -> bool {
        use bpf_map_type::*;
        self.is_one_of(&[
            BPF_MAP_TYPE_PERCPU_HASH,
            BPF_MAP_TYPE_PERCPU_ARRAY,
            BPF_MAP_TYPE_LRU_PERCPU_HASH,
            BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE_DEPRECATED,
        ])
    }

    /// Whether a place in a walk over the map is a number, as [`map_lookup_batch`] has it: of other kinds of maps it is a key.
    pub fn has_places(&self) -> bool {
        use bpf_map_type::*;
        self.is_one_of(&[BPF_MAP_TYPE_HASH, BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_ARRAY])
    }

    fn is_one_of(&self, kinds: &[bpf_map_type]) -> bool {
        kinds.iter().any(|kind| self.map_type == *kind as u32)
    }

    /// The bytes that are read and written of an element: where it has a value for each CPU all of them, each padded to 8
    /// bytes (the kernel's `round_up(value_size, 8)`).
    pub fn value_bytes(&self) -> io::Result<usize> {
        let one = self.value_size as usize;
        if !self.is_per_cpu() {
            return Ok(one);
        }
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        Ok(one.next_multiple_of(8) * cpus)
    }
}

/// A map's shape.
pub fn map_shape(map: BorrowedFd<'_>) -> io::Result<MapShape> {
    let mut shape = MapShape::default();
    info(map, &mut shape)?;
    Ok(shape)
}

/// The first fields of `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LinkInfo {
    pub link_type: u32,
    pub id: u32,
    pub program: u32,
    pad: u32,
    /// Of a cgroup link the low half of the cgroup's id, of a tcx link the interface's index (0 once it is gone).
    pub target: u32,
    pub target_high_or_attach: u32,
    pub attach_type: u32,
    rest: [u32; 9],
}

/// What a link is attached to.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut link_info = LinkInfo::default();
    info(link, &mut link_info)?;
    Ok(link_info)
}

fn info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut attr =
        Attr { fd: object.as_raw_fd() as u32, len: size_of::<T>() as u32, info: std::ptr::from_mut(info) as u64 };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    fd: u32,
    flags: u32,
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// Pins a program, map or link at a path in bpffs.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

/// Puts each of two paths in the other's place, by one step (in bpffs since kernel 5.16).
pub fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let (one, other, here) = (c_path(one)?, c_path(other)?, libc::AT_FDCWD);
    // SAFETY: the kernel reads both paths, which end in NUL and outlive the call.
    let done =
        unsafe { libc::syscall(libc::SYS_renameat2, here, one.as_ptr(), here, other.as_ptr(), libc::RENAME_EXCHANGE) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Opens what is pinned at a path.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, ..ObjAttr::default() };
    bpf(OBJ_GET, &mut attr).map(own)
}

/// Attaches a program to a cgroup (`target` is its directory), after what is attached there already, or to an interface
/// (`target` is its index), before it: tcx calls no program after one that does not say "next" (`net/core/dev.c`).
pub fn link_create(program: BorrowedFd<'_>, target: u32, attach_type: AttachType) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        program: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        rest: [u64; 4],
    }
    /// Without a program to stand before: before all (`include/uapi/linux/bpf.h`).
    const BEFORE: u32 = 1 << 3;
    let flags = if matches!(attach_type, AttachType::TcxIngress | AttachType::TcxEgress) { BEFORE } else { 0 };
    let mut attr =
        Attr { program: program.as_raw_fd() as u32, target, attach_type: attach_type as u32, flags, rest: [0; 4] };
    bpf(LINK_CREATE, &mut attr).map(own)
}

/// Attaches an LSM program, whose hook was fixed when it was loaded: one link, which cannot be updated or detached, only
/// closed.
pub fn lsm_link(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = [0_u32, 0, program.as_raw_fd() as u32, 0];
    bpf(RAW_TRACEPOINT_OPEN, &mut attr).map(own)
}

/// Replaces the program of a link, with no moment unattached.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [link.as_raw_fd() as u32, program.as_raw_fd() as u32, 0, 0];
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link from its target, whoever else holds it.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [link.as_raw_fd() as u32];
    bpf(LINK_DETACH, &mut attr).map(drop)
}

/// The program of this id; needs CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    bpf(PROG_GET_FD_BY_ID, &mut attr).map(own)
}

/// Whether an error says that something is short, or forbidden, and nothing of what was asked about.
pub fn is_want(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EPERM))
}

/// A program's id.
pub fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    /// The first fields of `struct bpf_prog_info`.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        program_type: u32,
        id: u32,
    }
    let mut found = Info::default();
    info(program, &mut found)?;
    Ok(found.id)
}
