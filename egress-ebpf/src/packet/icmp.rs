//! ICMP for both families: echo, and the packets that errors quote.

use super::{Headers, Packet};

const ECHO_REPLY_4: u8 = 0;
const ECHO_REQUEST_4: u8 = 8;
const ECHO_REQUEST_6: u8 = 128;
const ECHO_REPLY_6: u8 = 129;

/// Whether it is an echo request or reply, whose identifier tells flows apart.
#[inline(always)]
pub(super) const fn is_echo(packet: &Packet) -> bool {
    packet.is_echo_request() || packet.is_echo_reply()
}

impl Packet {
    /// Whether it is an ICMP echo request.
    #[inline(always)]
    pub const fn is_echo_request(&self) -> bool {
        self.is_icmp() && self.icmp_type() == if self.version == 4 { ECHO_REQUEST_4 } else { ECHO_REQUEST_6 }
    }

    /// Whether it is an ICMP echo reply.
    #[inline(always)]
    pub const fn is_echo_reply(&self) -> bool {
        self.is_icmp() && self.icmp_type() == if self.version == 4 { ECHO_REPLY_4 } else { ECHO_REPLY_6 }
    }

    /// Whether it is an ICMP error, which quotes the packet that it is about: destination unreachable, time exceeded,
    /// parameter problem, and ICMPv6's packet too big. Redirects are not: they reroute.
    #[inline(always)]
    pub const fn is_icmp_error(&self) -> bool {
        self.is_icmp()
            && match self.version {
                4 => matches!(self.icmp_type(), 3 | 11 | 12),
                _ => matches!(self.icmp_type(), 1..=4),
            }
    }
}

/// The packet that an ICMP error at network offset `offset` quotes: `error` is that error, parsed.
///
/// The quoted transport header may be cut after 8 bytes (RFC 792), so that TCP's flags are not read.
#[inline(always)]
pub fn quoted<H: Headers>(headers: H, offset: usize, error: &Packet) -> Option<Packet> {
    let inner = offset + usize::from(error.transport) + 8;
    // The network header must be whole: only of the transport header may bytes be missing.
    headers.read::<20>(inner)?;
    let mut packet = Packet::UNKNOWN;
    headers.parse_quoted(inner, &mut packet).reason().is_none().then_some(packet)
}

/// Reads a TCP header of which only the first 8 bytes were quoted as one without flags.
#[derive(Clone, Copy)]
pub(super) struct Quoted<H>(pub H);

impl<H: Headers> Headers for Quoted<H> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.read(offset)
    }

    #[inline(always)]
    fn tcp(&self, at: usize) -> Option<(u32, u32)> {
        self.0.tcp(at).or_else(|| cut_tcp(self.0, at))
    }
}

/// [`Headers::tcp`] of a header of which no more than its first 8 bytes are there: without flags.
#[inline(always)]
pub fn cut_tcp<H: Headers>(headers: H, at: usize) -> Option<(u32, u32)> {
    headers.read_32(at + 4)?;
    // A data offset of five words: the least that a TCP header has.
    Some((headers.read_32(at)?, 5 << 4))
}
