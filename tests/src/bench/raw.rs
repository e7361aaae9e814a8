//! Programs in bare instructions: nothing round them, to compare with.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

pub use egress_user::datapath::sys::CLASSIFIER;
use egress_user::datapath::sys::{ANY, AttachType, bare_program, bare_program_for, map_update};

const MAP_CREATE: u32 = 0;
const PROG_ATTACH: u32 = 8;
const LINK_CREATE: u32 = 28;

/// `BPF_MAP_TYPE_HASH`.
const MAP_HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`.
const MAP_ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PROG_ARRAY`.
const MAP_PROG_ARRAY: u32 = 3;
/// `BPF_MAP_TYPE_LRU_HASH`.
const MAP_LRU_HASH: u32 = 9;
/// `BPF_MAP_TYPE_LPM_TRIE`.
const MAP_LPM_TRIE: u32 = 11;
/// `BPF_F_NO_PREALLOC`, as Egress' own tables have it where the kernel can.
const NO_PREALLOC: u32 = 1;

/// `BPF_PROG_TYPE_CGROUP_SKB`.
pub const CGROUP_SKB: u32 = 8;
/// `BPF_PROG_TYPE_CGROUP_SOCK`.
const CGROUP_SOCK: u32 = 9;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const CGROUP_SOCK_ADDR: u32 = 18;

fn bpf<T>(command: u32, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the callers pass the attributes of their commands, zero after what they set; the kernel gives a descriptor
    // to us alone, or an error.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, value: i32) -> u64 {
    code as u64 | ((source << 4 | destination) as u64) << 8 | (offset as u16 as u64) << 16 | (value as u32 as u64) << 32
}

/// A program that lets everything pass.
pub fn empty(kind: u32) -> io::Result<OwnedFd> {
    constant(kind, 1)
}

/// Programs that let every socket be made (`BPF_CGROUP_INET_SOCK_CREATE`), and every IPv4 address be connected to.
pub fn empty_hooks() -> io::Result<[(OwnedFd, AttachType); 2]> {
    let hook = |kind, at: AttachType| io::Result::Ok((bare_program_for(kind, at as u32, &saying(1))?, at));
    Ok([hook(CGROUP_SOCK, AttachType::CgroupSockCreate)?, hook(CGROUP_SOCK_ADDR, AttachType::CgroupConnect4)?])
}

/// Attaches a program to a cgroup for good, without the flag by which others may attach theirs too. `attach_type`: `enum bpf_attach_type`.
pub fn attach_alone(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<()> {
    let attr = [cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, attach_type, 0];
    // SAFETY: the attributes of that command, which the kernel only reads.
    let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, attr.as_ptr(), size_of_val(&attr)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a program to an interface of this namespace after all that are there. `attach_type`: `enum bpf_attach_type`.
pub fn tcx_last(program: BorrowedFd<'_>, index: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = [0_u32; 16];
    attr[..3].copy_from_slice(&[program.as_raw_fd() as u32, index, attach_type]);
    bpf(LINK_CREATE, &mut attr)
}

/// A program that says the same of every packet.
pub fn constant(kind: u32, answer: i32) -> io::Result<OwnedFd> {
    bare_program(kind, &saying(answer))
}

const fn saying(answer: i32) -> [u64; 2] {
    [instruction(0xb7, 0, 0, 0, answer), instruction(0x95, 0, 0, 0, 0)]
}

/// A classifier that writes an element into a map and goes on to another classifier, with the table that names it: what is in that
/// goes when nobody outside the kernel has it any more.
pub fn update_and_go_on(
    map: BorrowedFd<'_>,
    key: &[u8],
    value: &[u8],
    goes_on: BorrowedFd<'_>,
) -> io::Result<[OwnedFd; 2]> {
    // A value lies aligned behind its key: keys that are no whole words are filled up.
    let mut element = key.to_vec();
    element.resize(key.len().next_multiple_of(8), 0);
    let value_from = element.len();
    element.extend_from_slice(value);
    let array = map_of(MAP_ARRAY, 4, element.len() as u32, 1, 0)?;
    map_update(array.as_fd(), &0_u32.to_ne_bytes(), &element, ANY)?;
    let programs = map_of(MAP_PROG_ARRAY, 4, 4, 1, 0)?;
    map_update(programs.as_fd(), &0_u32.to_ne_bytes(), &goes_on.as_raw_fd().to_ne_bytes(), ANY)?;
    // A pointer into an array's first element: BPF_PSEUDO_MAP_VALUE, with the offset in the second half.
    let value_at = |register, offset: usize| {
        [instruction(0x18, register, 2, 0, array.as_raw_fd()), instruction(0, 0, 0, 0, offset as i32)]
    };
    let map_in = |register, map: i32| [instruction(0x18, register, 1, 0, map), 0];
    let program = [
        &[instruction(0xbf, 6, 1, 0, 0)][..],
        &map_in(1, map.as_raw_fd()),
        &value_at(2, 0),
        &value_at(3, value_from),
        // bpf_map_update_elem, then bpf_tail_call
        &[instruction(0xb7, 4, 0, 0, 0), instruction(0x85, 0, 0, 0, 2), instruction(0xbf, 1, 6, 0, 0)],
        &map_in(2, programs.as_raw_fd()),
        &[instruction(0xb7, 3, 0, 0, 0), instruction(0x85, 0, 0, 0, 12)],
        &saying(-1),
    ]
    .concat();
    Ok([bare_program(CLASSIFIER, &program)?, programs])
}

/// A hash table of `size` elements with 8-byte values.
pub fn hash(key_size: u32, size: u32) -> io::Result<OwnedFd> {
    map(MAP_HASH, key_size, size, NO_PREALLOC)
}

/// The same that evicts what was not used for longest.
pub fn lru_hash(key_size: u32, size: u32) -> io::Result<OwnedFd> {
    map(MAP_LRU_HASH, key_size, size, 0)
}

/// A trie of `size` prefixes with 8-byte values; of a key's bytes four are its length.
pub fn trie(key_size: u32, size: u32) -> io::Result<OwnedFd> {
    map(MAP_LPM_TRIE, key_size, size, NO_PREALLOC)
}

fn map(kind: u32, key_size: u32, size: u32, flags: u32) -> io::Result<OwnedFd> {
    map_of(kind, key_size, 8, size, flags)
}

fn map_of(kind: u32, key_size: u32, value_size: u32, size: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = [0_u32; 32];
    attr[..5].copy_from_slice(&[kind, key_size, value_size, size, flags]);
    bpf(MAP_CREATE, &mut attr)
}

/// A classifier that looks a packet's IPv4 destination up, and does no more: the least that a table can cost whose keys are the
/// words of `before`, the address, and 0 bytes up to `key_size`, a multiple of 4 and at most 128.
pub fn lookup(map: BorrowedFd<'_>, before: &[i32], key_size: i16) -> io::Result<OwnedFd> {
    let mut key = Vec::new();
    let mut at = -((key_size + 7) & !7);
    let start = at;
    for word in before {
        key.push(instruction(0x62, 10, 0, at, *word));
        at += 4;
    }
    // The address is at 30 of the frame.
    key.extend([instruction(0x61, 4, 7, 30, 0), instruction(0x63, 10, 4, at, 0)]);
    at += 4;
    while at < start + key_size {
        let whole = at % 8 == 0;
        key.push(instruction(if whole { 0x7a } else { 0x62 }, 10, 0, at, 0));
        at += if whole { 8 } else { 4 };
    }
    let mut program = vec![
        // r7 = data, r3 = data_end; pass when there are less than 34 bytes.
        instruction(0x61, 7, 1, 76, 0),
        instruction(0x61, 3, 1, 80, 0),
        instruction(0xbf, 2, 7, 0, 0),
        instruction(0x07, 2, 0, 0, 34),
        instruction(0x2d, 2, 3, key.len() as i16 + 5, 0),
    ];
    program.extend(key);
    program.extend([
        instruction(0x18, 1, 1, 0, map.as_raw_fd()),
        0,
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, i32::from(start)),
        // bpf_map_lookup_elem
        instruction(0x85, 0, 0, 0, 1),
        instruction(0xb7, 0, 0, 0, -1),
        instruction(0x95, 0, 0, 0, 0),
    ]);
    bare_program(CLASSIFIER, &program)
}

/// How often a program of [`calls`] or [`helpers`] calls.
pub const CALLS: i32 = 10;

/// A classifier that calls a function of its own, which does nothing, [`CALLS`] times.
pub fn calls() -> io::Result<OwnedFd> {
    let mut program: Vec<_> = (0..CALLS).map(|n| instruction(0x85, 0, 1, 0, CALLS - n + 1)).collect();
    program.extend([instruction(0xb7, 0, 0, 0, -1), instruction(0x95, 0, 0, 0, 0)]);
    program.extend([instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)]);
    bare_program(CLASSIFIER, &program)
}

/// A classifier that calls a helper (`enum bpf_func_id`), which takes the context or nothing, [`CALLS`] times.
pub fn helpers(helper: i32) -> io::Result<OwnedFd> {
    let mut program = vec![instruction(0xbf, 6, 1, 0, 0)];
    for _ in 0..CALLS {
        program.extend([instruction(0xbf, 1, 6, 0, 0), instruction(0x85, 0, 0, 0, helper)]);
    }
    program.extend([instruction(0xb7, 0, 0, 0, -1), instruction(0x95, 0, 0, 0, 0)]);
    bare_program(CLASSIFIER, &program)
}
