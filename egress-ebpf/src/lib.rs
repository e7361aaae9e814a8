//! Egress' data plane, apart from the kernel: the types that cross the kernel boundary, the parsers and the decision.
//!
//! Everything here is ordinary `no_std` Rust. The programs (`src/programs`, built for the BPF target) are thin shells
//! round it, and the same code runs in unit, property and fuzz tests on the host.
#![cfg_attr(not(test), no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod abi;
pub mod atomic;
pub mod decision;
pub mod dns;
pub mod learn;
pub mod packet;
pub mod reason;
pub mod repeat;
