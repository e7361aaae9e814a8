//! Ethernet (IEEE 802.3) and VLAN tags (IEEE 802.1Q) in front of the network header.

use super::Headers;

/// What follows the link header, with the offset of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtherType {
    /// IPv4 or IPv6, at this offset.
    Ip(usize),
    /// ARP.
    Arp,
    /// EAPOL (IEEE 802.1X).
    Eapol,
    /// LLDP (IEEE 802.1AB).
    Lldp,
    /// Anything else, by its number in the host's order; 0 where the frame is cut short.
    Other(u16),
}

/// Bytes of an Ethernet header without VLAN tags.
pub const ETHERNET_HEADER: usize = 14;

/// Reads an Ethernet header and up to two VLAN tags.
#[inline(always)]
pub fn link<H: Headers>(headers: H) -> EtherType {
    let Some(first) = headers.read::<2>(12) else { return EtherType::Other(0) };
    let mut number = u16::from_be_bytes(first);
    let mut at = ETHERNET_HEADER;
    if is_vlan(number) {
        let Some(second) = headers.read::<2>(16) else { return EtherType::Other(0) };
        number = u16::from_be_bytes(second);
        at = 18;
        if is_vlan(number) {
            let Some(third) = headers.read::<2>(20) else { return EtherType::Other(0) };
            number = u16::from_be_bytes(third);
            at = 22;
        }
    }
    match number {
        0x0800 | 0x86dd => EtherType::Ip(at),
        0x0806 => EtherType::Arp,
        0x888e => EtherType::Eapol,
        0x88cc => EtherType::Lldp,
        other => EtherType::Other(other),
    }
}

#[inline(always)]
const fn is_vlan(number: u16) -> bool {
    matches!(number, 0x8100 | 0x88a8)
}
