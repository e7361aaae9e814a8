//! An address of either family.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv6 address, or an IPv4 address as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2): 16 bytes in network order.
///
/// It is two words because that is what the BPF target copies and compares best; `[u8; 16]` travels through Rust's
/// calling convention as an `i128`, whose 16-byte alignment LLVM's BPF back end cannot copy.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Address {
    /// The first 8 bytes, as they are in memory.
    pub high: u64,
    /// The last 8 bytes, as they are in memory.
    pub low: u64,
}

impl Address {
    /// All zero: no address.
    pub const UNSPECIFIED: Self = Self { high: 0, low: 0 };

    /// An IPv6 address from its bytes in network order.
    #[inline(always)]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self { high: u64::from_ne_bytes([a, b, c, d, e, f, g, h]), low: u64::from_ne_bytes([i, j, k, l, m, n, o, p]) }
    }

    /// An IPv4 address from its bytes in network order.
    #[inline(always)]
    pub const fn v4([a, b, c, d]: [u8; 4]) -> Self {
        Self { high: 0, low: u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d]) }
    }

    /// An IPv4 address from its bytes in network order, read as a little-endian number.
    #[inline(always)]
    pub const fn v4_word(address: u32) -> Self {
        Self { high: 0, low: ((address as u64) << 32 | 0xffff_0000).to_le() }
    }

    /// The bytes in network order.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.high.to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.low.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.high == 0 && self.low & MAPPED_MASK == MAPPED
    }

    /// Whether it is no address: `::` or 0.0.0.0.
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.high == 0 && (self.low == 0 || self.low == MAPPED)
    }

    /// Whether it is a multicast group's: 224.0.0.0/4, ff00::/8.
    #[inline(always)]
    pub const fn is_group(&self) -> bool {
        (self.is_v4() && self.v4_bytes()[0] & 0xf0 == 0xe0) || self.high.to_ne_bytes()[0] == 0xff
    }

    /// The bytes of an IPv4 address, in network order; of an IPv6 address its last four.
    #[inline(always)]
    pub const fn v4_bytes(self) -> [u8; 4] {
        // By one word: four bytes that were stored one by one are read as a word by the hash, which has to wait for them.
        ((self.low.to_le() >> 32) as u32).to_le_bytes()
    }
}

const MAPPED_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::v4(address.octets()),
            IpAddr::V6(address) => Self::v6(address.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        if address.is_v4() {
            Self::V4(Ipv4Addr::from(address.v4_bytes()))
        } else {
            Self::V6(Ipv6Addr::from(address.bytes()))
        }
    }
}

impl core::fmt::Debug for Address {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        IpAddr::from(*self).fmt(f)
    }
}
