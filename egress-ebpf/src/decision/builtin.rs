//! What passes without a rule, unless the policy says `builtins:` otherwise: what keeps a link and its addresses alive.

use crate::{
    abi::{
        Address, BUILTIN_ARP, BUILTIN_DHCPV4, BUILTIN_DHCPV6, BUILTIN_EAPOL, BUILTIN_IGMP, BUILTIN_LLDP, BUILTIN_MLD,
        BUILTIN_NEIGHBOUR_DISCOVERY, Config, PROTO_UDP,
    },
    packet::{EtherType, Fragment, Packet},
    reason::Reason,
};

/// IGMP's IP protocol number (RFC 3376).
const PROTO_IGMP: u8 = 2;

/// Whether a builtin lets an IP packet pass. Fragments never do: none of these protocols is sent in fragments.
#[inline(always)]
pub fn builtin(config: &Config, packet: &Packet) -> bool {
    if !matches!(packet.fragment, Fragment::Whole) {
        return false;
    }
    let bit = if packet.proto == PROTO_UDP {
        match (packet.version, packet.source_port, packet.destination_port) {
            (4, 68, 67) => BUILTIN_DHCPV4,
            (6, 546, 547) if is_link_scoped(&packet.destination) => BUILTIN_DHCPV6,
            _ => return false,
        }
    } else if packet.version == 6 && packet.is_icmp() {
        match packet.icmp_type() {
            // RFC 4861, 7.1: a hop limit of 255 proves that no router forwarded it, nor will its receiver's peer.
            133..=136 if packet.hops == 255 => BUILTIN_NEIGHBOUR_DISCOVERY,
            130..=132 | 143 if packet.hops == 1 => BUILTIN_MLD,
            _ => return false,
        }
    } else if packet.version == 4 && packet.proto == PROTO_IGMP && packet.hops == 1 {
        BUILTIN_IGMP
    } else {
        return false;
    };
    config.builtins & bit != 0
}

/// The verdict for a frame that is not IP.
#[inline(always)]
pub fn ethertype(config: &Config, ethertype: EtherType) -> Reason {
    let bit = match ethertype {
        EtherType::Arp => BUILTIN_ARP,
        EtherType::Eapol => BUILTIN_EAPOL,
        EtherType::Lldp => BUILTIN_LLDP,
        EtherType::Ip(_) | EtherType::Other(_) => return Reason::EtherType,
    };
    if config.builtins & bit != 0 { Reason::Builtin } else { Reason::EtherType }
}

/// fe80::/10, or multicast of link scope (ff02::/16): where a DHCPv6 client sends (RFC 8415, 7.1).
#[inline(always)]
const fn is_link_scoped(address: &Address) -> bool {
    let address = address.high.to_ne_bytes();
    (address[0] == 0xfe && address[1] & 0xc0 == 0x80) || (address[0] == 0xff && address[1] == 0x02)
}
