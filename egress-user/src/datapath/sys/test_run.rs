//! Programs that run on a packet which is on no wire (`net/bpf/test_run.c`).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::bpf;

const PROG_TEST_RUN: u32 = 10;

/// What a test run gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TestRun {
    /// What the program returned.
    pub returned: u32,
    /// Nanoseconds of one run, on average.
    pub nanoseconds: u32,
}

/// What a program is run on.
#[derive(Default)]
pub struct TestInput<'a> {
    /// The packet, from its Ethernet header on.
    pub packet: &'a [u8],
    /// The interface it leaves or enters by, of the caller's network namespace; 0 is that namespace's loopback.
    pub ifindex: u32,
    /// Takes the packet as the program left it.
    pub output: Option<&'a mut [u8]>,
    /// How often it runs; 0 is once.
    pub repeat: u32,
}

/// Runs a program that takes a `__sk_buff` without a packet on any wire (`net/bpf/test_run.c`).
pub fn test_run(program: BorrowedFd<'_>, input: TestInput<'_>) -> io::Result<TestRun> {
    let mut context = [0; CONTEXT];
    context[IFINDEX] = input.ifindex;
    run_on(program, input, context, None)
}

/// [`test_run`], once, with the packet's mark and priority. Gives what the program returned, and the mark and priority
/// that it left.
pub fn test_run_marked(
    program: BorrowedFd<'_>,
    packet: &[u8],
    ifindex: u32,
    mark: u32,
    priority: u32,
) -> io::Result<(u32, u32, u32)> {
    let mut context = [0; CONTEXT];
    (context[MARK], context[PRIORITY], context[IFINDEX]) = (mark, priority, ifindex);
    let mut left = [0; WHOLE_CONTEXT];
    let run = run_on(program, TestInput { packet, ..TestInput::default() }, context, Some(&mut left))?;
    Ok((run.returned, left[MARK], left[PRIORITY]))
}

/// Words of `struct __sk_buff` that are given; the kernel takes a shorter one, and lets few of its fields be set.
const CONTEXT: usize = IFINDEX + 1;
/// More than the kernel's whole `struct __sk_buff` has, which it wants room for: 48 in 6.18.
const WHOLE_CONTEXT: usize = 128;
const MARK: usize = 2;
const PRIORITY: usize = 8;
const IFINDEX: usize = 10;

fn run_on(
    program: BorrowedFd<'_>,
    input: TestInput<'_>,
    context: [u32; CONTEXT],
    context_out: Option<&mut [u32; WHOLE_CONTEXT]>,
) -> io::Result<TestRun> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        program: u32,
        returned: u32,
        size_in: u32,
        size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        context_size_in: u32,
        context_size_out: u32,
        context_in: u64,
        context_out: u64,
        rest: [u32; 4],
    }
    let mut attr = Attr {
        program: program.as_raw_fd() as u32,
        size_in: input.packet.len() as u32,
        data_in: input.packet.as_ptr() as u64,
        repeat: input.repeat,
        context_size_in: size_of_val(&context) as u32,
        context_in: context.as_ptr() as u64,
        ..Attr::default()
    };
    if let Some(output) = input.output {
        attr.size_out = output.len() as u32;
        attr.data_out = output.as_mut_ptr() as u64;
    }
    if let Some(out) = context_out {
        attr.context_size_out = size_of_val(out) as u32;
        attr.context_out = out.as_mut_ptr() as u64;
    }
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(TestRun { returned: attr.returned, nanoseconds: attr.duration })
}
