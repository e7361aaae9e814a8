//! The packets that nearly all are: TCP or UDP right behind a bare IP header, whole. They are read by a few words.

use super::{Headers, TCP_ACK, TCP_SYN};
use crate::abi::{Address, PROTO_TCP, PROTO_UDP};

/// What an established flow is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plain {
    /// The source, IPv4 as IPv4-mapped.
    pub source: Address,
    /// The destination, IPv4 as IPv4-mapped.
    pub destination: Address,
    /// The source port.
    pub source_port: u16,
    /// The destination port.
    pub destination_port: u16,
    /// TCP's or UDP's IP protocol number.
    pub proto: u8,
    /// TCP's flags, else 0.
    pub tcp_flags: u8,
}

impl Plain {
    /// Whether it opens a TCP connection: [`super::Packet::opens_tcp`].
    #[inline(always)]
    pub const fn opens_tcp(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }
}

/// Reads a plain packet whose network header is at `offset`; `None` for every other, and whatever [`super::parse`] refuses.
#[inline(always)]
pub fn plain<H: Headers>(headers: H, offset: usize) -> Option<Plain> {
    let first = headers.read_64(offset)?;
    let second = headers.read_64(offset + 8)?;
    let (source, destination, proto, at) = match first as u8 {
        0x45 => {
            // More fragments, or a fragment's offset.
            if first & 0xff3f << 48 != 0 {
                return None;
            }
            (
                Address::v4_word((second >> 32) as u32),
                Address::v4_word(headers.read_32(offset + 16)?),
                (second >> 8) as u8,
                offset + 20,
            )
        }
        version if version >> 4 == 6 => {
            let source = Address { high: second.to_le(), low: headers.read_64(offset + 16)?.to_le() };
            let (high, low) = (headers.read_64(offset + 24)?, headers.read_64(offset + 32)?);
            (source, Address { high: high.to_le(), low: low.to_le() }, (first >> 48) as u8, offset + 40)
        }
        _ => return None,
    };
    let (ports, tcp_flags) = match proto {
        PROTO_TCP => {
            let (ports, lengths) = headers.tcp(at)?;
            if lengths & 0xf0 < 5 << 4 {
                return None;
            }
            (ports, (lengths >> 8) as u8)
        }
        PROTO_UDP => {
            headers.read_32(at + 4)?;
            (headers.read_32(at)?, 0)
        }
        _ => return None,
    };
    let (source_port, destination_port) = ((ports as u16).swap_bytes(), ((ports >> 16) as u16).swap_bytes());
    Some(Plain { source, destination, source_port, destination_port, proto, tcp_flags })
}
