//! The programs that learn names, in the running kernel, by BPF_PROG_TEST_RUN: nothing is attached anywhere. Needs root,
//! and the object: `EGRESS_EBPF_OBJECT` names it.

mod attacks;
mod cost;
mod kernel;
mod learning;
mod wire;
