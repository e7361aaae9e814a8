//! The packets that nearly all are: TCP or UDP right behind a bare IP header, whole. They are read by a few words.

use super::{Headers, Packet, ipv6};
use crate::abi::{Address, PROTO_TCP, PROTO_UDP};

/// Reads a plain packet whose network header is at `offset`, as [`super::parse`] does; `None` for every other, and whatever that refuses.
#[inline(always)]
pub fn plain<H: Headers>(headers: H, offset: usize) -> Option<Packet> {
    let first = headers.read_64(offset)?;
    let second = headers.read_64(offset + 8)?;
    let mut packet = Packet::UNKNOWN;
    match first as u8 {
        0x45 => {
            // More fragments, or a fragment's offset.
            if first & 0xff3f << 48 != 0 {
                return None;
            }
            packet.source = Address::v4_word((second >> 32) as u32);
            packet.destination = Address::v4_word(headers.read_32(offset + 16)?);
            packet.version = 4;
            packet.proto = (second >> 8) as u8;
            packet.hops = second as u8;
            packet.fragment_id = u32::from(((first >> 32) as u16).swap_bytes()).to_be();
            packet.transport = 20;
            packet.end = ((first >> 16) as u16).swap_bytes();
        }
        version if version >> 4 == 6 => {
            packet.source = Address { high: second.to_le(), low: headers.read_64(offset + 16)?.to_le() };
            let (high, low) = (headers.read_64(offset + 24)?, headers.read_64(offset + 32)?);
            packet.destination = Address { high: high.to_le(), low: low.to_le() };
            packet.version = 6;
            packet.proto = (first >> 48) as u8;
            packet.hops = (first >> 56) as u8;
            packet.transport = 40;
            packet.end = ipv6::end(((first >> 32) as u16).swap_bytes());
        }
        _ => return None,
    }
    let at = offset + usize::from(packet.transport);
    let ports = match packet.proto {
        PROTO_TCP => {
            let (ports, lengths) = headers.tcp(at)?;
            let length = (lengths as u16 & 0xf0) >> 2;
            if length < 20 {
                return None;
            }
            packet.tcp_flags = (lengths >> 8) as u8;
            packet.payload = packet.transport + length;
            ports
        }
        PROTO_UDP => {
            headers.read_32(at + 4)?;
            packet.payload = packet.transport + 8;
            headers.read_32(at)?
        }
        _ => return None,
    };
    packet.source_port = (ports as u16).swap_bytes();
    packet.destination_port = ((ports >> 16) as u16).swap_bytes();
    Some(packet)
}
