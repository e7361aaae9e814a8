//! IPv4 (RFC 791).

use super::{Fragment, Headers, Packet, Parsed, transport};
use crate::{
    abi::Address,
    repeat::{Step, repeat},
};

/// The longest IPv4 header's options, in bytes.
const OPTIONS_MAX: u32 = 40;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

#[inline(always)]
pub(super) fn parse<H: Headers>(headers: H, offset: usize, packet: &mut Packet) -> Parsed {
    // By words: the BPF target would load and store an array of bytes one by one.
    let (Some(first), Some(second), Some(third)) =
        (headers.read_64(offset), headers.read_64(offset + 8), headers.read_32(offset + 16))
    else {
        return Parsed::Malformed;
    };
    let length = (first & 0xf) as usize * 4;
    if length < 20 {
        return Parsed::Malformed;
    }
    if length > 20 {
        match headers.options(offset, length) {
            Parsed::Good => {}
            bad => return bad,
        }
    }
    let flags = ((first >> 48) as u16).swap_bytes();
    let fragment = match (flags & 0x1fff, flags & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    *packet = Packet {
        source: Address::v4_word((second >> 32) as u32),
        destination: Address::v4_word(third),
        source_port: 0,
        destination_port: 0,
        version: 4,
        proto: (second >> 8) as u8,
        hops: second as u8,
        tcp_flags: 0,
        fragment,
        fragment_id: u32::from(((first >> 32) as u16).swap_bytes()).to_be(),
        transport: length as u16,
        payload: 0,
        end: ((first >> 16) as u16).swap_bytes(),
    };
    transport::parse(headers, offset, packet, flags & 0x1fff)
}

/// Walks the options and refuses those that reroute: what they say overrides the destination that was judged.
#[inline(always)]
pub fn options<H: Headers>(headers: H, offset: usize, length: usize) -> Parsed {
    let mut walk = Options { headers, at: (offset + 20) as u16, end: (offset + length) as u16, found: Parsed::Good };
    repeat(OPTIONS_MAX, &mut walk);
    walk.found
}

struct Options<H: Headers> {
    headers: H,
    // 16 bits wide on purpose: the verifier forgets what it knows of a narrow store, and so sees every turn alike.
    at: u16,
    end: u16,
    found: Parsed,
}

impl<H: Headers> Step for Options<H> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        if self.at >= self.end {
            return false;
        }
        let kind = match self.headers.read::<1>(self.at as usize) {
            Some([OPTION_END]) => return false,
            Some([OPTION_NOP]) => {
                self.at += 1;
                return true;
            }
            Some([OPTION_LSRR | OPTION_SSRR]) => Parsed::SourceRoute,
            Some(_) => match self.headers.read::<2>(self.at as usize) {
                Some([_, length]) if length >= 2 && u32::from(self.at) + u32::from(length) <= u32::from(self.end) => {
                    self.at += u16::from(length);
                    return true;
                }
                _ => Parsed::Malformed,
            },
            None => Parsed::Malformed,
        };
        self.found = kind;
        false
    }
}
