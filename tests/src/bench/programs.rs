//! What the kernel says of a loaded program: how long the verifier took, how much stack it has.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// Every program but those for BPF LSM, which most machines refuse.
pub const ALL: [&str; 14] = [
    "denial_egress",
    "socket_egress",
    "socket_ingress",
    "uplink_egress",
    "uplink_egress_l3",
    "uplink_ingress",
    "uplink_ingress_l3",
    "workload_ingress",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "socket_create",
    "control",
];

const OBJ_GET_INFO_BY_FD: u32 = 15;

/// `struct bpf_prog_info` of `include/uapi/linux/bpf.h`, as words of 32 bits.
type Info = [u32; 58];
const XLATED_LEN: usize = 5;
const XLATED: usize = 8;
const FUNC_INFO_SIZE: usize = 33;
const FUNC_INFO: usize = 34;
const FUNC_COUNT: usize = 36;
const VERIFIED: usize = 54;

/// What a program costs its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shape {
    /// Instructions that the verifier walked, each way that leads to one counted.
    pub verified: u32,
    /// Instructions that the program has.
    pub instructions: u32,
    /// Bytes of the deepest chain of frames, each made a multiple of 16 (the kernel's JIT does; it takes 512).
    pub stack: u32,
}

/// The shape of a loaded program.
pub fn shape(program: BorrowedFd<'_>) -> io::Result<Shape> {
    let mut info: Info = [0; 58];
    ask(program, &mut info)?;
    let (len, functions) = (info[XLATED_LEN] as usize, info[FUNC_COUNT] as usize);
    let verified = info[VERIFIED];
    let mut code = vec![0_u64; len / 8];
    let mut starts = vec![[0_u32; 2]; functions];
    info = [0; 58];
    info[XLATED_LEN] = len as u32;
    set(&mut info, XLATED, code.as_mut_ptr() as u64);
    info[FUNC_INFO_SIZE] = 8;
    info[FUNC_COUNT] = functions as u32;
    set(&mut info, FUNC_INFO, starts.as_mut_ptr() as u64);
    ask(program, &mut info)?;
    let starts: Vec<usize> = starts.into_iter().map(|[at, _]| at as usize).collect();
    Ok(Shape { verified, instructions: code.len() as u32, stack: deepest(&code, &starts, 0, 0) })
}

fn set(info: &mut Info, at: usize, pointer: u64) {
    info[at] = pointer as u32;
    info[at + 1] = (pointer >> 32) as u32;
}

fn ask(program: BorrowedFd<'_>, info: &mut Info) -> io::Result<()> {
    let mut attr = [0_u64; 2];
    attr[0] = program.as_raw_fd() as u64 | (size_of::<Info>() as u64) << 32;
    attr[1] = std::ptr::from_mut(info) as u64;
    // SAFETY: the kernel writes as many bytes as `info` has, and to the buffers in it as many as their counts say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, attr.as_mut_ptr(), size_of_val(&attr)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of the frames from `function` on: its own, and the deepest of those it calls.
fn deepest(code: &[u64], starts: &[usize], function: usize, level: u32) -> u32 {
    let Some(&start) = starts.get(function) else { return 0 };
    let end = starts.get(function + 1).copied().unwrap_or(code.len());
    let mut own = 0;
    let mut below = 0;
    // The registers that hold the frame pointer, until an offset is added.
    let mut copies = [false; 16];
    for at in start..end {
        let word = code[at];
        let (class, source, destination) = (word as u8, (word >> 12 & 15) as usize, (word >> 8 & 15) as usize);
        let (offset, value) = ((word >> 16) as i16, (word >> 32) as i32);
        match class {
            0xbf => copies[destination] = source == 10,
            0x07 if copies[destination] => {
                own = own.max(value.unsigned_abs());
                copies[destination] = false;
            }
            // A call of the program's own function; the dump has the function's number.
            0x85 if source == 1 && level < 16 => below = below.max(deepest(code, starts, value as usize, level + 1)),
            // A callback, its number in the second half.
            0x18 if source == 4 && level < 16 => {
                let callback = code.get(at + 1).map_or(0, |word| (word >> 32) as usize);
                below = below.max(deepest(code, starts, callback, level + 1));
            }
            _ => {
                let base = if class & 7 == 1 { source } else { destination };
                if (1..=3).contains(&(class & 7)) && base == 10 {
                    own = own.max(u32::from(offset.unsigned_abs()));
                }
            }
        }
    }
    own.next_multiple_of(16) + below
}
