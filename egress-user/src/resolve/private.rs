//! Addresses that an answer for a public name must not hold (DNS rebinding).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

/// The range that makes an address unfit for a public name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// 0.0.0.0/8 (RFC 1122 section 3.2.1.3) and `::` (RFC 4291 section 2.5.2). Linux connects 0.0.0.0 to itself.
    Unspecified,
    /// 127.0.0.0/8 (RFC 1122 section 3.2.1.3), `::1` (RFC 4291 section 2.5.3).
    Loopback,
    /// 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 (RFC 1918).
    Private,
    /// 100.64.0.0/10, carrier-grade NAT (RFC 6598).
    SharedAddressSpace,
    /// 169.254.0.0/16 (RFC 3927), where clouds keep instance metadata; fe80::/10 (RFC 4291 section 2.5.6).
    LinkLocal,
    /// fc00::/7 (RFC 4193).
    UniqueLocal,
    /// fec0::/10, deprecated yet routed as any unicast (RFC 3879).
    SiteLocal,
    /// 224.0.0.0/4 (RFC 5771), ff00::/8 (RFC 4291 section 2.7).
    Multicast,
    /// 255.255.255.255 (RFC 919 section 7).
    Broadcast,
    /// 240.0.0.0/4 (RFC 1112 section 4), ::/96 (IPv4-compatible, deprecated by RFC 4291 section 2.5.5.1): nobody's addresses.
    Reserved,
    /// 64:ff9b:1::/48, NAT64 for local use (RFC 8215): what stands behind it is the network's own choice.
    LocalNat64,
}

/// The range that `address` lies in, where no public name has its addresses; `None` for a public address.
///
/// Whether it is one, the kernel's own function says, so that both refuse the same. IPv6 forms that carry an IPv4 address are called by
/// that: IPv4-mapped (RFC 4291 section 2.5.5.2), IPv4-compatible (2.5.5.1), NAT64's 64:ff9b::/96 (RFC 6052) and 6to4's 2002::/16 (RFC
/// 3056). Documentation ranges are public here.
pub fn is_private(address: IpAddr) -> Option<Kind> {
    egress_ebpf::dns::is_private(&address.into()).then(|| match address {
        IpAddr::V4(address) => v4(address),
        IpAddr::V6(address) => v6(address),
    })
}

/// What the range of a private address is called.
fn v4(address: Ipv4Addr) -> Kind {
    match address.octets() {
        [0, ..] => Kind::Unspecified,
        [127, ..] => Kind::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Kind::Private,
        [100, 64..=127, ..] => Kind::SharedAddressSpace,
        [169, 254, ..] => Kind::LinkLocal,
        [224..=239, ..] => Kind::Multicast,
        [255, 255, 255, 255] => Kind::Broadcast,
        _ => Kind::Reserved,
    }
}

fn v6(address: Ipv6Addr) -> Kind {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Kind::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Kind::Loopback,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] => v4(embedded(high, low)),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => v4(embedded(high, low)),
        [0x64, 0xff9b, 1, ..] => Kind::LocalNat64,
        [0x2002, high, low, ..] => v4(embedded(high, low)),
        [0xfe80..=0xfebf, ..] => Kind::LinkLocal,
        [0xfec0..=0xfeff, ..] => Kind::SiteLocal,
        [0xfc00..=0xfdff, ..] => Kind::UniqueLocal,
        [0xff00..=0xffff, ..] => Kind::Multicast,
        _ => Kind::Reserved,
    }
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low))
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::SharedAddressSpace => "carrier-grade NAT",
            Self::LinkLocal => "link-local",
            Self::UniqueLocal => "unique local",
            Self::SiteLocal => "site-local",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Reserved => "reserved",
            Self::LocalNat64 => "local NAT64",
        })
    }
}
