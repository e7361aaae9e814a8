//! Addresses that a public name has no business to have.

use crate::abi::Address;

/// Whether a rebinding answer would reach inside with this address: unspecified, private (RFC 1918), shared (RFC 6598),
/// loopback, link-local, unique local (RFC 4193), site-local (RFC 3879), multicast, reserved and broadcast, IPv4-compatible, what
/// a local NAT64 makes of it (RFC 8215), and behind the NAT64 prefix of RFC 6052 and in 6to4 (RFC 3056) a private IPv4 address.
/// IPv4 comes as IPv4-mapped.
///
/// The daemon refuses by it too: there is one list.
#[inline(always)]
pub fn is_private(address: &Address) -> bool {
    let upper = u64::from_be(address.high);
    let lower = u64::from_be(address.low);
    let (middle, low) = ((lower >> 32) as u32, lower as u32);
    match (upper, middle) {
        (0, 0xffff) | (0x0064_ff9b_0000_0000, 0) => is_private_4(low),
        // ::, ::1 and the IPv4-compatible addresses (RFC 4291, 2.5.5.1).
        (0, 0) => true,
        _ if upper >> 16 == 0x0064_ff9b_0001 => true,
        _ if upper >> 48 == 0x2002 => is_private_4((upper >> 16) as u32),
        _ => {
            let top = (upper >> 48) as u32;
            top & 0xfe00 == 0xfc00 || top & 0xff80 == 0xfe80 || top & 0xff00 == 0xff00
        }
    }
}

#[inline(always)]
const fn is_private_4(address: u32) -> bool {
    let top = address >> 24;
    top == 0
        || top == 10
        || top == 127
        || address >> 22 == 0x6440_0000 >> 22
        || address >> 16 == 0xa9fe
        || address >> 20 == 0xac1
        || address >> 16 == 0xc0a8
        || top >= 224
}
