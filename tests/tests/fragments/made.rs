//! Fragments made by hand, for either family.

use std::net::IpAddr;

use egress_tests::probe::{V4, ipv4, ipv6};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// IPv6's extension headers, by their protocol numbers.
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const OPTIONS: u8 = 60;

/// What must become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Passes,
    /// Dropped, for this reason.
    Drops(&'static str),
}

/// One packet of a case.
#[derive(Clone, Debug)]
pub struct Part {
    pub packet: Vec<u8>,
    pub to: IpAddr,
    pub then: Then,
}

/// Packets that are sent one after the other, by one sender.
#[derive(Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    pub parts: fn(&Maker) -> Vec<Part>,
    /// Its length field says less than is there: a router would cut it, and a raw IPv4 socket mend it.
    pub lies: bool,
}

/// Who sends, and under which identification.
#[derive(Clone, Copy, Debug)]
pub struct Maker {
    pub from: IpAddr,
    /// The first of four that are the case's own.
    pub id: u32,
}

impl Maker {
    pub fn six(&self) -> bool {
        self.from.is_ipv6()
    }

    /// The address of this sender's family.
    pub fn of(&self, v4: &str, v6: &str) -> IpAddr {
        if self.six() { v6 } else { v4 }.parse().unwrap()
    }

    pub fn allowed(&self) -> IpAddr {
        self.of("203.0.113.10", "2001:db8:1::10")
    }

    pub fn denied(&self) -> IpAddr {
        self.of("198.51.100.77", "2001:db8:77::77")
    }

    /// ICMP of the family.
    pub fn icmp(&self) -> u8 {
        if self.six() { 58 } else { 1 }
    }

    /// A fragment to the allowed address: `offset` in bytes, a multiple of eight.
    pub fn cut(&self, proto: u8, offset: u16, more: bool, data: &[u8], then: Then) -> Part {
        self.cut_to(self.allowed(), proto, offset, more, data, then)
    }

    pub fn cut_to(&self, to: IpAddr, proto: u8, offset: u16, more: bool, data: &[u8], then: Then) -> Part {
        let packet = match (self.from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let fragment = (offset / 8) | (u16::from(more) << 13);
                ipv4(from, to, &V4 { protocol: proto, id: self.id as u16, fragment, options: &[] }, data)
            }
            _ => return self.chain(to, &[(FRAGMENT, self.header(offset, more))], proto, data, then),
        };
        Part { packet, to, then }
    }

    /// An IPv6 packet with these extension headers, each without its first byte (RFC 8200, 4), before `proto`.
    pub fn chain(&self, to: IpAddr, headers: &[(u8, Vec<u8>)], proto: u8, data: &[u8], then: Then) -> Part {
        let (IpAddr::V6(from), IpAddr::V6(far)) = (self.from, to) else { panic!("IPv6 alone has extension headers") };
        let next = |index: usize| headers.get(index).map_or(proto, |header| header.0);
        let mut rest = Vec::new();
        for (index, (_, header)) in headers.iter().enumerate() {
            rest.push(next(index + 1));
            rest.extend(header);
        }
        rest.extend(data);
        Part { packet: ipv6(from, far, next(0), &rest), to, then }
    }

    /// A fragment header without its first byte (RFC 8200, 4.5).
    pub fn header(&self, offset: u16, more: bool) -> Vec<u8> {
        let field = (offset | u16::from(more)).to_be_bytes();
        [&[0, field[0], field[1]][..], &self.id.to_be_bytes()].concat()
    }
}

/// A hop-by-hop or destination options header of eight bytes with padding alone, without its first byte.
pub fn padding() -> Vec<u8> {
    vec![0, 1, 4, 0, 0, 0, 0]
}

/// Says in the length field that the packet ends after `payload` bytes behind the IP header; the rest stays.
pub fn ends_after(mut part: Part, payload: u16) -> Part {
    if part.to.is_ipv6() {
        part.packet[4..6].copy_from_slice(&payload.to_be_bytes());
        return part;
    }
    part.packet[2..4].copy_from_slice(&(20 + payload).to_be_bytes());
    part.packet[10..12].fill(0);
    let sum: u32 = part.packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    part.packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    part
}

/// A TCP header that opens a connection to port 7000: `words` of four bytes, the options after the first five padding.
pub fn syn(words: u8) -> Vec<u8> {
    let mut header = vec![0x9c, 0x40, 0x1b, 0x58, 0, 0, 0, 1, 0, 0, 0, 0, words << 4, 2, 0xff, 0xff, 0, 0, 0, 0];
    header.resize(usize::from(words) * 4, 1);
    header
}
