//! IPv4 (RFC 791).

use super::{Fragment, Headers, Packet, transport};
use crate::{
    abi::mapped,
    reason::Reason,
    repeat::{Step, repeat},
};

/// The longest IPv4 header's options, in bytes.
const OPTIONS_MAX: u32 = 40;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_LSRR: u8 = 131;
const OPTION_SSRR: u8 = 137;

#[inline(always)]
pub(super) fn parse<H: Headers + ?Sized>(headers: &H, offset: usize) -> Result<Packet, Reason> {
    let header = headers.read::<20>(offset).ok_or(Reason::Malformed)?;
    let length = usize::from(header[0] & 0xf) * 4;
    if length < 20 {
        return Err(Reason::Malformed);
    }
    if length > 20 {
        check_options(headers, offset, length)?;
    }
    let flags = u16::from_be_bytes([header[6], header[7]]);
    let fragment = match (flags & 0x1fff, flags & 0x2000) {
        (0, 0) => Fragment::Whole,
        (0, _) => Fragment::First,
        _ => Fragment::Later,
    };
    let mut packet = Packet {
        source: mapped([header[12], header[13], header[14], header[15]]),
        destination: mapped([header[16], header[17], header[18], header[19]]),
        source_port: 0,
        destination_port: 0,
        version: 4,
        proto: header[9],
        hops: header[8],
        tcp_flags: 0,
        fragment,
        fragment_id: u32::from(u16::from_be_bytes([header[4], header[5]])).to_be(),
        transport: length as u16,
        payload: 0,
        end: u16::from_be_bytes([header[2], header[3]]),
    };
    transport::parse(headers, offset, &mut packet, flags & 0x1fff)?;
    Ok(packet)
}

/// Walks the options and refuses those that reroute: what they say overrides the destination that was judged.
#[inline(always)]
fn check_options<H: Headers + ?Sized>(headers: &H, offset: usize, length: usize) -> Result<(), Reason> {
    let mut walk = Options { headers, at: offset as u64 + 20, end: (offset + length) as u64, found: Found::Good };
    repeat(OPTIONS_MAX, &mut walk);
    match walk.found {
        Found::Good => Ok(()),
        Found::Bad => Err(Reason::Malformed),
        Found::Route => Err(Reason::SourceRoute),
    }
}

#[derive(Clone, Copy)]
enum Found {
    Good,
    Bad,
    Route,
}

struct Options<'a, H: Headers + ?Sized> {
    headers: &'a H,
    at: u64,
    end: u64,
    found: Found,
}

impl<H: Headers + ?Sized> Step for Options<'_, H> {
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
            Some([OPTION_LSRR | OPTION_SSRR]) => Found::Route,
            Some(_) => match self.headers.read::<2>(self.at as usize) {
                Some([_, length]) if length >= 2 && self.at + u64::from(length) <= self.end => {
                    self.at += u64::from(length);
                    return true;
                }
                _ => Found::Bad,
            },
            None => Found::Bad,
        };
        self.found = kind;
        false
    }
}
