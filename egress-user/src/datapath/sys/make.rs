//! Types, maps and programs made from an object file's parts.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd, RawFd},
};

use aya_obj::generated::bpf_insn;

use super::{bpf, own};

const MAP_CREATE: u32 = 0;
const PROG_LOAD: u32 = 5;
const BTF_LOAD: u32 = 18;
const MAP_FREEZE: u32 = 22;

/// Gives the kernel an object's types (BTF).
pub fn types_load(types: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        types: u64,
        log: u64,
        size: u32,
        log_size: u32,
        log_level: u32,
        pad: u32,
    }
    let mut attr = Attr { types: types.as_ptr() as u64, size: types.len() as u32, ..Attr::default() };
    bpf(BTF_LOAD, &mut attr).map(own)
}

/// A map to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewMap<'a> {
    pub name: &'a str,
    pub map_type: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
    /// The object's types, and those of key and value among them; for map types that take any.
    pub types: Option<(BorrowedFd<'a>, u32, u32)>,
}

/// Makes a map.
pub fn map_create(map: &NewMap<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
        inner: u32,
        numa_node: u32,
        name: [u8; 16],
        interface: u32,
        types: u32,
        key_type: u32,
        value_type: u32,
        pad: u32,
        extra: u64,
    }
    let (types, key_type, value_type) =
        map.types.map_or((0, 0, 0), |(types, key, value)| (types.as_raw_fd() as u32, key, value));
    let mut attr = Attr {
        map_type: map.map_type,
        key_size: map.key_size,
        value_size: map.value_size,
        max_entries: map.max_entries,
        flags: map.flags,
        name: short(map.name),
        types,
        key_type,
        value_type,
        ..Attr::default()
    };
    bpf(MAP_CREATE, &mut attr).map(own)
}

/// From here on nobody writes the map by system call: the verifier may take what is in it for constants.
pub fn map_freeze(map: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [map.as_raw_fd() as u32];
    bpf(MAP_FREEZE, &mut attr).map(drop)
}

/// A program to be loaded.
#[derive(Clone, Copy, Debug)]
pub struct NewProgram<'a> {
    pub name: &'a str,
    pub program_type: u32,
    /// What it is loaded for (`expected_attach_type`).
    pub attach_type: u32,
    /// The function of the kernel that an LSM program is called by, by its number among the kernel's types; else 0.
    pub hook: u32,
    pub license: &'a CStr,
    pub instructions: &'a [bpf_insn],
    /// What its instructions name by their place here (`BPF_PSEUDO_MAP_IDX`, kernel 5.14).
    pub maps: &'a [RawFd],
    pub types: BorrowedFd<'a>,
    /// `struct bpf_func_info`, and the bytes of one.
    pub functions: (&'a [u8], u32),
    /// `struct bpf_line_info`, and the bytes of one.
    pub lines: (&'a [u8], u32),
}

/// Verifies and loads a program. With room in `log` the verifier writes there what it saw, ended by a zero byte; ENOSPC where that does
/// not fit.
pub fn program_load(program: &NewProgram<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        program_type: u32,
        instructions: u32,
        instruction: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attach_type: u32,
        types: u32,
        function_size: u32,
        function: u64,
        functions: u32,
        line_size: u32,
        line: u64,
        lines: u32,
        hook: u32,
        hook_in: u32,
        relocations: u32,
        maps: u64,
    }
    /// Each step, and the figures at the end: without the state at each step, whose log takes minutes.
    const STEPS: u32 = 1 | 4;
    let count = |(records, size): (&[u8], u32)| (records.len() as u32).checked_div(size).unwrap_or(0);
    let mut attr = Attr {
        program_type: program.program_type,
        instructions: program.instructions.len() as u32,
        instruction: program.instructions.as_ptr() as u64,
        license: program.license.as_ptr() as u64,
        name: short(program.name),
        attach_type: program.attach_type,
        types: program.types.as_raw_fd() as u32,
        function_size: program.functions.1,
        function: program.functions.0.as_ptr() as u64,
        functions: count(program.functions),
        line_size: program.lines.1,
        line: program.lines.0.as_ptr() as u64,
        lines: count(program.lines),
        hook: program.hook,
        maps: program.maps.as_ptr() as u64,
        ..Attr::default()
    };
    if !log.is_empty() {
        (attr.log_level, attr.log_size, attr.log) = (STEPS, log.len() as u32, log.as_mut_ptr() as u64);
    }
    bpf(PROG_LOAD, &mut attr).map(own)
}

/// The first 15 bytes of a name, which is what the kernel keeps.
fn short(name: &str) -> [u8; 16] {
    let mut short = [0; 16];
    for (to, from) in short[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    short
}

/// `BPF_PROG_TYPE_SCHED_CLS`.
pub const CLASSIFIER: u32 = 3;

/// Loads a program of nothing but these instructions (`struct bpf_insn` as words), whose type is one of `enum bpf_prog_type`.
pub fn bare_program(program_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    bare_program_for(program_type, 0, instructions)
}

/// [`bare_program`], of a type whose programs say when they are loaded where they will be attached (`enum bpf_attach_type`).
pub fn bare_program_for(program_type: u32, attach_type: u32, instructions: &[u64]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_version_flags_name_interface: [u32; 11],
        attach_type: u32,
        rest: [u64; 8],
    }
    let mut attr = Attr {
        program_type,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        attach_type,
        ..Attr::default()
    };
    bpf(PROG_LOAD, &mut attr).map(own)
}
