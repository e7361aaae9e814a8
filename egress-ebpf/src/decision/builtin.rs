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

/// The longest neighbour solicitation or advertisement that goes to an address beyond the link's own: the IPv6 header, the message and a few
/// options (RFC 4861, 4.3 and 4.4). Extension headers count: there is room for more than a message in them.
const NEIGHBOUR_MAX: u16 = 40 + 72;

/// Whether a builtin lets an IP packet pass. Fragments never do: none of these protocols is sent in fragments. `own` says whether
/// the host itself sends it, not a workload.
#[inline(always)]
pub fn builtin(config: &Config, packet: &Packet, own: bool) -> bool {
    if !matches!(packet.fragment, Fragment::Whole) {
        return false;
    }
    let bit = if packet.proto == PROTO_UDP {
        match (packet.version, packet.source_port, packet.destination_port) {
            (4, 68, 67) if is_dhcp_server(&packet.destination, own) => BUILTIN_DHCPV4,
            (6, 546, 547) if is_link_scoped(&packet.destination) => BUILTIN_DHCPV6,
            _ => return false,
        }
    } else if packet.version == 6 && packet.is_icmp() {
        match packet.icmp_type() {
            // RFC 4861, 7.1: a hop limit of 255 proves that no router forwarded it, nor will its receiver's peer.
            // Of what leaves it proves nothing, so the destination must be on the link, or the message say no more than is asked of neighbours
            // by their other addresses (7.3.1).
            kind @ 133..=136
                if packet.hops == 255
                    && (is_link_scoped(&packet.destination)
                        || (kind >= 135 && packet.end.wrapping_sub(1) < NEIGHBOUR_MAX)) =>
            {
                BUILTIN_NEIGHBOUR_DISCOVERY
            }
            130..=132 | 143 if packet.hops == 1 && packet.destination.is_group() => BUILTIN_MLD,
            _ => return false,
        }
    } else if packet.version == 4 && packet.proto == PROTO_IGMP && packet.hops == 1 && packet.destination.is_group() {
        BUILTIN_IGMP
    } else {
        return false;
    };
    config.builtins & bit != 0
}

/// IEEE 802.3, 57A: of what goes by it the kernel speaks LACP, which keeps a bond's links.
const SLOW_PROTOCOLS: u16 = 0x8809;
/// Below that the number is a length, and IEEE 802.2 follows: of that the kernel speaks a bridge's spanning tree (IEEE 802.1D).
const ETHERTYPES: u16 = 0x600;

/// The verdict for a frame that is not IP. `kernels` says whether the kernel of this node made it for itself: no process can.
#[inline(always)]
pub fn ethertype(config: &Config, ethertype: EtherType, kernels: bool) -> Reason {
    let bit = match ethertype {
        EtherType::Other(number) if kernels && number != 0 && (number < ETHERTYPES || number == SLOW_PROTOCOLS) => {
            return Reason::Builtin;
        }
        EtherType::Arp => BUILTIN_ARP,
        EtherType::Eapol => BUILTIN_EAPOL,
        EtherType::Lldp => BUILTIN_LLDP,
        EtherType::Ip(_) | EtherType::Other(_) => return Reason::EtherType,
    };
    if config.builtins & bit != 0 { Reason::Builtin } else { Reason::EtherType }
}

/// Where a DHCP client sends (RFC 2131, 4.1 and 4.4.5): to everybody on the link, or, to renew its lease, to the server. Which that is
/// nobody tells, so it is taken for one inside, and the host's own client alone may ask it: else port 67 would be a way out to
/// whoever listens there. A client that gets no answer asks everybody, before its lease is over.
/// `address` is an IPv4 one.
#[inline(always)]
pub fn is_dhcp_server(address: &Address, own: bool) -> bool {
    let address = u32::from_be_bytes(address.v4_bytes());
    // RFC 1918, RFC 3927, RFC 6598.
    let inside = address >> 24 == 10
        || address >> 20 == 0xac1
        || address >> 16 == 0xc0a8
        || address >> 16 == 0xa9fe
        || address >> 22 == 0x6440_0000 >> 22;
    address == u32::MAX || (own && inside)
}

/// fe80::/10, or multicast of link scope (ff02::/16): where a DHCPv6 client sends (RFC 8415, 7.1).
#[inline(always)]
const fn is_link_scoped(address: &Address) -> bool {
    let address = address.high.to_ne_bytes();
    (address[0] == 0xfe && address[1] & 0xc0 == 0x80) || (address[0] == 0xff && address[1] == 0x02)
}
