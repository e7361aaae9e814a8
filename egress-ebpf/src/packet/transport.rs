//! TCP (RFC 9293), UDP (RFC 768) and ICMP (RFC 792, RFC 4443): ports, flags, type.

use super::{Fragment, Headers, Packet, Parsed, icmp};
use crate::abi::{PROTO_TCP, PROTO_UDP};

/// Bytes of a TCP header without options.
const TCP_HEADER: u16 = 20;

/// Fills in what the transport header says. `fragment_offset` is in units of 8 bytes.
#[inline(always)]
pub(super) fn parse<H: Headers>(headers: H, offset: usize, packet: &mut Packet, fragment_offset: u16) -> Parsed {
    if matches!(packet.fragment, Fragment::Later) {
        // RFC 1858, RFC 3128: a later fragment over the TCP header that was judged, at offset 1 over its flags.
        if packet.proto == PROTO_TCP && fragment_offset * 8 < TCP_HEADER {
            return Parsed::Malformed;
        }
        return Parsed::Good;
    }
    let at = offset + usize::from(packet.transport);
    let length = match packet.proto {
        PROTO_TCP => {
            // The whole header must be in a first fragment, or a later one could change what was judged.
            let Some((ports, lengths)) = headers.tcp(at) else { return Parsed::Malformed };
            let length = (lengths as u16 & 0xf0) >> 2;
            if length < TCP_HEADER {
                return Parsed::Malformed;
            }
            set_ports(packet, ports);
            packet.tcp_flags = (lengths >> 8) as u8;
            packet.payload = packet.transport.wrapping_add(length);
            length
        }
        PROTO_UDP => {
            let Some(header) = headers.read_64(at) else { return Parsed::Malformed };
            set_ports(packet, header as u32);
            packet.payload = packet.transport.wrapping_add(8);
            8
        }
        _ if packet.is_icmp() => {
            let Some(header) = headers.read::<8>(at) else { return Parsed::Malformed };
            packet.destination_port = u16::from_be_bytes([header[0], header[1]]);
            if icmp::is_echo(packet) {
                packet.source_port = u16::from_be_bytes([header[4], header[5]]);
            }
            8
        }
        _ => 0,
    };
    // RFC 7112: what the buffer has behind the packet's own end its receiver takes from the next fragment.
    if !matches!(packet.fragment, Fragment::Whole) && packet.transport.wrapping_add(length) > packet.end {
        return Parsed::Malformed;
    }
    Parsed::Good
}

/// The first word of a TCP or UDP header.
#[inline(always)]
fn set_ports(packet: &mut Packet, ports: u32) {
    packet.source_port = (ports as u16).swap_bytes();
    packet.destination_port = ((ports >> 16) as u16).swap_bytes();
}
