//! What a refused query tells.

use egress_ebpf::abi::NAME_KEY;

/// A refused DNS question.
pub struct Name {
    /// The name, reversed.
    pub bytes: [u8; NAME_KEY],
    /// Bytes in use.
    pub len: u16,
    /// A hash of the name.
    pub hash: u32,
}
