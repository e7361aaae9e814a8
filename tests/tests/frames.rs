//! The frames of each program's calls, as kernels before 6.8 add them up: the object needs no kernel, and no root, for this.
//! Newer kernels are more generous, so that a program can load here and be refused there.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use aya_obj::{Object, generated::bpf_insn};

/// MAX_BPF_STACK.
const MOST: u32 = 512;
/// How deep the frames above a function that makes a tail call may be, at most (less than this).
const MOST_ABOVE_TAIL_CALL: u32 = 256;
/// BPF_FUNC_tail_call.
const TAIL_CALL: i32 = 12;

/// One function's own frame, and where it goes from there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Frame {
    /// Bytes below the frame pointer.
    bytes: u32,
    /// The first instructions of the functions that it calls, or hands to a helper to call.
    calls: BTreeSet<usize>,
    tail_calls: bool,
}

/// The functions of a program, each by its first instruction.
fn frames(code: &[bpf_insn]) -> BTreeMap<usize, Frame> {
    let target = |at: usize| (at as i64 + 1 + i64::from(code[at].imm)) as usize;
    // BPF_CALL with BPF_PSEUDO_CALL, and BPF_LD_IMM64 with BPF_PSEUDO_FUNC.
    let calls = |at: usize| matches!((code[at].code, code[at].src_reg()), (0x85, 1) | (0x18, 4));
    let starts: BTreeSet<usize> = [0].into_iter().chain((0..code.len()).filter(|&at| calls(at)).map(target)).collect();
    let mut frames = BTreeMap::new();
    for &start in &starts {
        let end = starts.range(start + 1..).next().copied().unwrap_or(code.len());
        let mut frame = Frame::default();
        // How far each register is from the frame pointer; only constants are added to it in compiled code.
        let mut distance = [None; 16];
        distance[10] = Some(0);
        for at in start..end {
            let insn = &code[at];
            let (source, destination) = (usize::from(insn.src_reg()), usize::from(insn.dst_reg()));
            match insn.code {
                _ if calls(at) => _ = frame.calls.insert(target(at)),
                0x85 => frame.tail_calls |= insn.imm == TAIL_CALL,
                0xbf => distance[destination] = distance[source],
                0x07 => distance[destination] = distance[destination].map(|from| from + insn.imm),
                code => {
                    // Loads reach by their source, stores by their destination.
                    let base = if code & 7 == 1 { source } else { destination };
                    if let (1..=3, Some(from)) = (code & 7, distance[base]) {
                        frame.bytes = frame.bytes.max(0.max(-(from + i32::from(insn.off))) as u32);
                    }
                    // Of what else is written to a register nothing is known; jumps and stores write to none.
                    if matches!(code & 7, 0 | 1 | 4 | 7) {
                        distance[destination] = None;
                    }
                }
            }
            // The address of something in the frame, for a helper or a function.
            if let Some(from) = distance[destination].filter(|_| insn.code == 0x07) {
                frame.bytes = frame.bytes.max(0.max(-from) as u32);
            }
        }
        frames.insert(start, frame);
    }
    frames
}

/// `check_max_stack_depth` of kernel/bpf/verifier.c, 6.1: the deepest sum of frames, each a multiple of 32 and 32 at
/// least, with the chain of functions that has it.
fn deepest(frames: &BTreeMap<usize, Frame>, at: usize, above: u32) -> (u32, Vec<usize>) {
    let frame = &frames[&at];
    assert!(at == 0 || !frame.tail_calls || above < MOST_ABOVE_TAIL_CALL, "{above} bytes above the tail call in {at}");
    let depth = above + frame.bytes.max(1).next_multiple_of(32);
    let below = frame.calls.iter().map(|&callee| deepest(frames, callee, depth)).max();
    let (depth, mut chain) = below.unwrap_or((depth, Vec::new()));
    chain.insert(0, at);
    (depth, chain)
}

#[test]
fn frames_of_every_program_fit_kernel_6_1() {
    let mut object = Object::parse(egress_user::datapath::Object::elf()).expect("the object is read");
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).expect("calls are linked");
    assert!(object.programs.len() > 10, "{:?}", object.programs.keys());
    let mut too_deep = Vec::new();
    for (name, program) in &object.programs {
        let function = &object.functions[&program.function_key()];
        let frames = frames(&function.instructions);
        let (depth, chain) = deepest(&frames, 0, 0);
        let chain: Vec<u32> = chain.iter().map(|at| frames[at].bytes).collect();
        println!("{name}: {depth} bytes, by frames of {chain:?}");
        // The smallest calls helpers alone; what judges packets calls functions, or their frames were not found.
        assert!(name == "socket_create" || (chain.len() > 1 && depth >= 64), "{name}: {chain:?}");
        assert!(chain.len() <= 8, "{name}: more than 8 frames (MAX_CALL_FRAMES): {chain:?}");
        if depth > MOST {
            too_deep.push(format!("{name}: {depth} bytes, by frames of {chain:?}"));
        }
    }
    assert!(too_deep.is_empty(), "more than {MOST} bytes of stack on kernels before 6.8:\n{}", too_deep.join("\n"));
}

/// `r2 = r10; r2 += -40; *(u64 *)(r2 - 8) = 0; call +2; r1 = func +2; exit`, then a function with a tail call.
#[test]
fn frames_count_what_is_reached_through_registers_and_callbacks() {
    let insn = |code, source: u8, destination: u8, off, imm| {
        // SAFETY: an instruction is integers and bit fields, for which zeros are a value.
        let mut insn: bpf_insn = unsafe { std::mem::zeroed() };
        insn.code = code;
        insn.set_src_reg(source);
        insn.set_dst_reg(destination);
        (insn.off, insn.imm) = (off, imm);
        insn
    };
    let code = [
        insn(0xbf, 10, 2, 0, 0),
        insn(0x07, 0, 2, 0, -40),
        insn(0x7a, 0, 2, -8, 0),
        insn(0x85, 1, 0, 0, 3),
        insn(0x18, 4, 1, 0, 4),
        insn(0, 0, 0, 0, 0),
        insn(0x95, 0, 0, 0, 0),
        // Called.
        insn(0x7b, 1, 10, -100, 0),
        insn(0x95, 0, 0, 0, 0),
        // A callback.
        insn(0x7b, 1, 10, -130, 0),
        insn(0x85, 0, 0, 0, TAIL_CALL),
        insn(0x95, 0, 0, 0, 0),
    ];
    let frames = frames(&code);
    let frame =
        |bytes, calls: &[usize], tail_calls| Frame { bytes, calls: calls.iter().copied().collect(), tail_calls };
    assert_eq!(
        frames,
        BTreeMap::from([(0, frame(48, &[7, 9], false)), (7, frame(100, &[], false)), (9, frame(130, &[], true))])
    );
    assert_eq!(deepest(&frames, 0, 0), (64 + 160, vec![0, 9]));
    assert!(std::panic::catch_unwind(|| deepest(&frames, 9, 256)).is_err(), "a tail call below 256 bytes");
}
