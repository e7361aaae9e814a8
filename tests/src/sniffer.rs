//! What arrived: an AF_PACKET socket that records every frame coming in on a namespace's interfaces.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::netns::NetNs;

static SOCKET_BUFFER: libc::c_int = 64 << 20;

/// One frame. Addresses are `None` where the frame is not IP; ports where it has none, or is a later fragment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub ifindex: u32,
    pub ether_type: u16,
    pub source: Option<IpAddr>,
    pub destination: Option<IpAddr>,
    /// The IP protocol, after IPv6 extension headers.
    pub protocol: Option<u8>,
    pub source_port: Option<u16>,
    pub destination_port: Option<u16>,
    /// Bytes after the transport header (after the IP header for other protocols).
    pub payload: Vec<u8>,
    /// The whole frame, Ethernet header included.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// Whether it is of what hosts say to keep a link going: ARP, neighbour discovery, MLD, IGMP.
    #[must_use]
    pub fn is_chatter(&self) -> bool {
        let icmp6 = self.protocol == Some(58)
            && self.payload.first().is_some_and(|kind| (130..=137).contains(kind) || *kind == 143);
        self.ether_type == 0x0806 || icmp6 || self.protocol == Some(2)
    }

    #[must_use]
    pub fn goes_to(&self, address: IpAddr, protocol: u8, port: Option<u16>) -> bool {
        self.destination == Some(address)
            && self.protocol == Some(protocol)
            && (port.is_none() || self.destination_port == port)
    }
}

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |ip: Option<IpAddr>, port: Option<u16>| match (ip, port) {
            (Some(ip), Some(port)) => format!("{ip}#{port}"),
            (Some(ip), None) => ip.to_string(),
            (None, _) => "-".into(),
        };
        let (from, to) = (end(self.source, self.source_port), end(self.destination, self.destination_port));
        write!(f, "{:#06x} proto {:?} {from} -> {to}, {} bytes", self.ether_type, self.protocol, self.bytes.len())
    }
}

#[derive(Debug)]
pub struct Sniffer {
    socket: OwnedFd,
    loopback: u32,
    seen: Mutex<Vec<Frame>>,
}

impl Sniffer {
    /// Records from now on, on every interface of `ns` but `lo`, new ones too.
    pub fn new(ns: &NetNs) -> Result<Self> {
        let loopback = ns.ifindex("lo")?;
        let socket = ns.run(open).context("open a packet socket (needs CAP_NET_RAW)")?;
        Ok(Self { socket, loopback, seen: Mutex::default() })
    }

    /// Every frame that came in so far, oldest first.
    ///
    /// # Panics
    /// When the kernel dropped frames for want of room: "nothing arrived" would then be a guess.
    #[must_use]
    pub fn frames(&self) -> Vec<Frame> {
        self.read();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn read(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = vec![0; 1 << 17];
        while let Some((length, from)) = self.receive(&mut buffer) {
            let ifindex = from.sll_ifindex.cast_unsigned();
            if from.sll_pkttype != libc::PACKET_OUTGOING && ifindex != self.loopback {
                seen.push(parse(ifindex, &buffer[..length]));
            }
        }
        assert_eq!(self.dropped(), 0, "the sniffer lost frames: its buffer is full");
    }

    /// What came in so far, which is forgotten.
    ///
    /// # Panics
    /// As [`Sniffer::frames`].
    #[must_use]
    pub fn take(&self) -> Vec<Frame> {
        self.read();
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets what came in so far.
    pub fn clear(&self) {
        drop(self.take());
    }

    /// The frames that match, after `settle` for what is still on its way.
    pub fn matching(&self, settle: Duration, mut want: impl FnMut(&Frame) -> bool) -> Vec<Frame> {
        std::thread::sleep(settle);
        self.frames().into_iter().filter(|frame| want(frame)).collect()
    }

    /// Waits until a frame matches.
    pub fn wait_for(&self, limit: Duration, mut want: impl FnMut(&Frame) -> bool) -> Option<Frame> {
        let start = Instant::now();
        loop {
            if let Some(found) = self.frames().into_iter().find(|frame| want(frame)) {
                return Some(found);
            }
            if start.elapsed() > limit {
                return None;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Panics, with the frames, when one that matches arrived (50 ms are given to what is on its way).
    ///
    /// # Panics
    /// As said.
    #[track_caller]
    pub fn assert_none(&self, what: &str, want: impl FnMut(&Frame) -> bool) {
        let found = self.matching(Duration::from_millis(50), want);
        assert!(found.is_empty(), "{what} got out:\n{}", list(&found));
    }

    fn receive(&self, buffer: &mut [u8]) -> Option<(usize, libc::sockaddr_ll)> {
        // SAFETY: an all-zero sockaddr_ll is a valid value.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut size = size_of_val(&from) as libc::socklen_t;
        // SAFETY: buffer and from are live for the call, with their true sizes.
        let length = unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
                (&raw mut from).cast(),
                &raw mut size,
            )
        };
        if let Ok(length) = usize::try_from(length) {
            return Some((length, from));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => None,
            io::ErrorKind::Interrupted => self.receive(buffer),
            // Taken for "nothing more" it would make "nothing arrived" a guess.
            _ => panic!("the sniffer cannot receive: {error}"),
        }
    }

    /// Frames dropped since the last call (`PACKET_STATISTICS` counts anew each time).
    fn dropped(&self) -> u32 {
        let mut stats = [0_u32; 2];
        let mut size = size_of_val(&stats) as libc::socklen_t;
        // SAFETY: stats has the shape of struct tpacket_stats (two u32) and its size is given.
        let got = unsafe {
            libc::getsockopt(self.socket.as_raw_fd(), libc::SOL_PACKET, 6, stats.as_mut_ptr().cast(), &raw mut size)
        };
        assert_eq!(got, 0, "the sniffer does not know what it lost: {}", io::Error::last_os_error());
        stats[1]
    }
}

/// One line a frame.
#[must_use]
pub fn list(frames: &[Frame]) -> String {
    frames.iter().map(|frame| format!("  {frame}\n")).collect()
}

fn open() -> io::Result<OwnedFd> {
    let all = libc::c_int::from((libc::ETH_P_ALL as u16).to_be());
    // SAFETY: socket takes three integers; the descriptor is owned from here on.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // SAFETY: the option is one c_int and its size is given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const SOCKET_BUFFER).cast(),
            size_of_val(&SOCKET_BUFFER) as libc::socklen_t,
        )
    };
    if set == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}

pub(crate) fn parse(ifindex: u32, bytes: &[u8]) -> Frame {
    let ether_type = bytes.get(12..14).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let mut frame = Frame {
        ifindex,
        ether_type,
        source: None,
        destination: None,
        protocol: None,
        source_port: None,
        destination_port: None,
        payload: Vec::new(),
        bytes: bytes.to_vec(),
    };
    let packet = bytes.get(14..).unwrap_or_default();
    // A header that is cut short leaves the rest unknown: the frame is recorded all the same.
    let _ = match ether_type {
        0x0800 => parse_v4(&mut frame, packet),
        0x86dd => parse_v6(&mut frame, packet),
        _ => Some(()),
    };
    frame
}

fn parse_v4(frame: &mut Frame, packet: &[u8]) -> Option<()> {
    let header = packet.get(..20)?;
    frame.source = Some(Ipv4Addr::from(<[u8; 4]>::try_from(&header[12..16]).ok()?).into());
    frame.destination = Some(Ipv4Addr::from(<[u8; 4]>::try_from(&header[16..20]).ok()?).into());
    frame.protocol = Some(header[9]);
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    // A segment to be cut by the device later may have a total length of 0: then the frame's length counts.
    let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
    let rest = packet.get(usize::from(header[0] & 15) * 4..end)?;
    let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    parse_transport(frame, rest, first)
}

fn parse_v6(frame: &mut Frame, packet: &[u8]) -> Option<()> {
    let header = packet.get(..40)?;
    frame.source = Some(Ipv6Addr::from(<[u8; 16]>::try_from(&header[8..24]).ok()?).into());
    frame.destination = Some(Ipv6Addr::from(<[u8; 16]>::try_from(&header[24..40]).ok()?).into());
    let (mut next, mut rest, mut first) = (header[6], packet.get(40..)?, true);
    loop {
        frame.protocol = Some(next);
        let length = match next {
            0 | 43 | 60 => (usize::from(*rest.get(1)?) + 1) * 8,
            44 => {
                first = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]) >> 3 == 0;
                8
            }
            51 => (usize::from(*rest.get(1)?) + 2) * 4,
            _ => return parse_transport(frame, rest, first),
        };
        next = *rest.first()?;
        rest = rest.get(length..)?;
    }
}

fn parse_transport(frame: &mut Frame, rest: &[u8], first: bool) -> Option<()> {
    frame.payload = rest.to_vec();
    if first && matches!(frame.protocol, Some(6 | 17 | 132)) {
        let ports = rest.get(..4)?;
        frame.source_port = Some(u16::from_be_bytes([ports[0], ports[1]]));
        frame.destination_port = Some(u16::from_be_bytes([ports[2], ports[3]]));
        let header = if frame.protocol == Some(6) { usize::from(rest.get(12)? >> 4) * 4 } else { 8 };
        frame.payload = rest.get(header..)?.to_vec();
    }
    Some(())
}
