//! IPv6 (RFC 8200) and its extension headers.

use super::{Fragment, Headers, Packet, Parsed, transport};
use crate::dns::bytes::opaque;
use crate::{
    abi::Address,
    repeat::{Step, repeat},
};

/// Extension headers that one packet may have. Real packets have two at most; a longer chain is dropped as malformed.
const EXTENSIONS_MAX: u32 = 8;

/// Where the transport header starts at most, from the network header on: direct packet access wraps at 16 KiB, and would
/// read another place for a header behind that.
const TRANSPORT_MAX: u16 = 8192;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

#[inline(always)]
pub(super) fn parse<H: Headers>(headers: H, offset: usize, packet: &mut Packet) -> Parsed {
    let Some(header) = headers.read_64(offset) else { return Parsed::Malformed };
    let (Some(source_high), Some(source_low)) = (headers.read_64(offset + 8), headers.read_64(offset + 16)) else {
        return Parsed::Malformed;
    };
    let (Some(high), Some(low)) = (headers.read_64(offset + 24), headers.read_64(offset + 32)) else {
        return Parsed::Malformed;
    };
    let payload = ((header >> 32) as u16).swap_bytes();
    *packet = Packet {
        source: Address { high: source_high.to_le(), low: source_low.to_le() },
        destination: Address { high: high.to_le(), low: low.to_le() },
        source_port: 0,
        destination_port: 0,
        version: 6,
        proto: (header >> 48) as u8,
        hops: (header >> 56) as u8,
        tcp_flags: 0,
        fragment: Fragment::Whole,
        fragment_id: 0,
        transport: 40,
        payload: 0,
        end: end(payload),
    };
    let mut fragment_offset = 0;
    if is_extension(packet.proto) {
        fragment_offset = match headers.extensions(offset, packet) {
            Ok(offset) => offset,
            Err(bad) => return bad,
        };
    }
    transport::parse(headers, offset, packet, fragment_offset)
}

/// Where a packet with this payload length ends. A length of 0 is a jumbogram's or GSO's; no end is known then.
#[inline(always)]
pub(super) const fn end(payload: u16) -> u16 {
    if payload == 0 { 0 } else { payload.saturating_add(40) }
}

/// Walks the extension headers behind the fixed one at `offset`: see [`Headers::extensions`]. `packet.proto` is the first one's.
#[inline(always)]
pub fn extensions<H: Headers>(headers: H, offset: usize, packet: &mut Packet) -> Result<u16, Parsed> {
    let mut walk = Extensions {
        headers,
        base: offset as u16,
        at: 40,
        next: packet.proto,
        fragment: 0,
        fragment_id: 0,
        fragment_end: 0,
        found: Found::Chain,
    };
    repeat(EXTENSIONS_MAX, &mut walk);
    match walk.found {
        Found::Transport => {}
        Found::Chain if !is_extension(walk.next) => {}
        Found::Chain | Found::Bad => return Err(Parsed::Malformed),
        Found::Route => return Err(Parsed::SourceRoute),
    }
    if walk.at > TRANSPORT_MAX {
        return Err(Parsed::Malformed);
    }
    packet.proto = walk.next;
    packet.transport = walk.at;
    packet.fragment_id = walk.fragment_id;
    if walk.fragment_end == 0 {
        return Ok(0);
    }
    let fragment_offset = walk.fragment >> 3;
    packet.fragment = match (fragment_offset, walk.fragment & 1) {
        // An atomic fragment (RFC 6946) is a whole datagram.
        (0, 0) => Fragment::Whole,
        (0, _) if walk.at != walk.fragment_end => Fragment::FirstExtended,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    Ok(fragment_offset)
}

/// By one bit of a word, not by four comparisons, each of which would be one more branch for the verifier to walk.
#[inline(always)]
fn is_extension(next: u8) -> bool {
    const THEM: u64 = 1 << HOP_BY_HOP | 1 << ROUTING | 1 << FRAGMENT | 1 << DESTINATION_OPTIONS;
    next < 64 && opaque(THEM) >> (next & 63) & 1 != 0
}

#[derive(Clone, Copy)]
enum Found {
    Chain,
    Transport,
    Bad,
    Route,
}

struct Extensions<H: Headers> {
    headers: H,
    // 16 bits wide on purpose: the verifier forgets what it knows of a narrow store, and so sees every turn alike.
    base: u16,
    at: u16,
    next: u8,
    fragment: u16,
    fragment_id: u32,
    /// Where the fragment header ends; 0 where there is none.
    fragment_end: u16,
    found: Found,
}

impl<H: Headers> Step for Extensions<H> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        if !is_extension(self.next) {
            self.found = Found::Transport;
            return false;
        }
        if self.next == ROUTING {
            self.found = Found::Route;
            return false;
        }
        let Some(header) = self.headers.read::<8>(usize::from(self.base) + usize::from(self.at)) else {
            self.found = Found::Bad;
            return false;
        };
        if self.next == FRAGMENT {
            if self.fragment_end != 0 {
                // A fragment inside a fragment: no sender makes it, and reassembly would judge another header.
                self.found = Found::Bad;
                return false;
            }
            self.fragment = u16::from_be_bytes([header[2], header[3]]) & 0xfff9;
            self.fragment_id = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
            self.at += 8;
            self.fragment_end = self.at;
            self.next = header[0];
            if self.fragment >> 3 != 0 {
                // What follows is the middle of a datagram, not a header.
                self.found = Found::Transport;
                return false;
            }
            return true;
        }
        self.next = header[0];
        self.at += (u16::from(header[1]) + 1) * 8;
        true
    }
}
