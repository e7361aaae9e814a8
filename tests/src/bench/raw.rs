//! Programs in bare instructions: nothing round them, to compare with.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;

/// `BPF_MAP_TYPE_HASH`.
const MAP_HASH: u32 = 1;
/// `BPF_F_NO_PREALLOC`, as Egress' own hash tables have it.
const NO_PREALLOC: u32 = 1;

/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const CLASSIFIER: u32 = 3;
/// `BPF_PROG_TYPE_CGROUP_SKB`.
pub const CGROUP_SKB: u32 = 8;

fn bpf<T>(command: u32, attr: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the callers pass the attributes of their commands, zero after what they set; the kernel gives a descriptor
    // to us alone, or an error.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

/// Loads a program of these instructions (`struct bpf_insn` as words).
pub fn load(kind: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 13],
    }
    let mut attr = Attr {
        kind,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..Attr::default()
    };
    bpf(PROG_LOAD, &mut attr)
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, value: i32) -> u64 {
    code as u64 | ((source << 4 | destination) as u64) << 8 | (offset as u16 as u64) << 16 | (value as u32 as u64) << 32
}

/// A program that lets everything pass.
pub fn empty(kind: u32) -> io::Result<OwnedFd> {
    constant(kind, 1)
}

/// Attaches a program to an interface of this namespace after all that are there. `attach_type`: `enum bpf_attach_type`.
pub fn tcx_last(program: BorrowedFd<'_>, index: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = [0_u32; 16];
    attr[..3].copy_from_slice(&[program.as_raw_fd() as u32, index, attach_type]);
    bpf(LINK_CREATE, &mut attr)
}

/// A program that says the same of every packet.
pub fn constant(kind: u32, answer: i32) -> io::Result<OwnedFd> {
    load(kind, &[instruction(0xb7, 0, 0, 0, answer), instruction(0x95, 0, 0, 0, 0)])
}

/// A hash table of `size` elements with 8-byte values.
pub fn hash(key_size: u32, size: u32) -> io::Result<OwnedFd> {
    let mut attr = [0_u32; 32];
    attr[..5].copy_from_slice(&[MAP_HASH, key_size, 8, size, NO_PREALLOC]);
    bpf(MAP_CREATE, &mut attr)
}

/// A classifier that looks a packet's IPv4 destination up in a hash table whose keys are the address and 20 zero bytes:
/// the least that an address table with keys for both families, ports and protocol can cost.
pub fn lookup_24(map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let program = [
        // r7 = data, r3 = data_end; pass when there are less than 34 bytes.
        instruction(0x61, 7, 1, 76, 0),
        instruction(0x61, 3, 1, 80, 0),
        instruction(0xbf, 2, 7, 0, 0),
        instruction(0x07, 2, 0, 0, 34),
        instruction(0x2d, 2, 3, 10, 0),
        // The key on the stack: the address at 30, then zeros.
        instruction(0x7a, 10, 0, -24, 0),
        instruction(0x7a, 10, 0, -16, 0),
        instruction(0x7a, 10, 0, -8, 0),
        instruction(0x61, 4, 7, 30, 0),
        instruction(0x63, 10, 4, -24, 0),
        instruction(0x18, 1, 1, 0, map.as_raw_fd()),
        0,
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -24),
        // bpf_map_lookup_elem
        instruction(0x85, 0, 0, 0, 1),
        instruction(0xb7, 0, 0, 0, -1),
        instruction(0x95, 0, 0, 0, 0),
    ];
    load(CLASSIFIER, &program)
}
