//! Single attempts at a destination, and packets made by hand, for what no client program does.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::socket::{MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike, sendto};
use serde::{Deserialize, Serialize};

use crate::daemon::patient;
use crate::place::Place;

const LIMIT: Duration = Duration::from_secs(8);
const WAIT: Duration = Duration::from_millis(600);

/// How an attempt went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// The bytes that were sent came back.
    pub echoed: bool,
    /// The error of the system call that failed.
    pub errno: Option<i32>,
    pub error: String,
    /// Milliseconds until the end.
    pub took: u64,
}

impl Attempt {
    /// It was refused by the system call itself.
    #[must_use]
    pub fn refused(&self) -> bool {
        self.errno == Some(libc::EPERM)
    }

    fn of(start: Instant, result: io::Result<bool>) -> Self {
        let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        match result {
            Ok(echoed) => Self { echoed, errno: None, error: String::new(), took },
            Err(error) => Self { echoed: false, errno: error.raw_os_error(), error: error.to_string(), took },
        }
    }
}

/// Runs `f` in `place` and tells how it went; its result says whether the echo came.
pub fn attempt(place: &Place, f: impl FnOnce() -> io::Result<bool>) -> Result<Attempt> {
    place.fork(patient(LIMIT), || {
        let start = Instant::now();
        Ok(Attempt::of(start, f()))
    })
}

/// Connects to an echo server over TCP and says something.
pub fn tcp(place: &Place, to: &str) -> Result<Attempt> {
    let to: SocketAddr = to.parse()?;
    attempt(place, || {
        let mut stream = TcpStream::connect_timeout(&to, patient(WAIT))?;
        converse(&mut stream, b"hello")
    })
}

/// Sends a datagram of `size` bytes by an unconnected socket to an echo server.
pub fn udp(place: &Place, to: &str, size: usize) -> Result<Attempt> {
    let to: SocketAddr = to.parse()?;
    attempt(place, || {
        let socket = UdpSocket::bind(any(to))?;
        let sent = vec![0x5a; size];
        socket.send_to(&sent, to)?;
        echoed(&socket, &sent)
    })
}

/// Connects a datagram socket, and sends a datagram by it.
pub fn udp_connected(place: &Place, to: &str) -> Result<Attempt> {
    let to: SocketAddr = to.parse()?;
    attempt(place, || {
        let socket = UdpSocket::bind(any(to))?;
        socket.connect(to)?;
        socket.send(b"hello")?;
        echoed(&socket, b"hello")
    })
}

/// Says something on an open connection to an echo server; whether it comes back in time.
pub fn converse(stream: &mut TcpStream, words: &[u8]) -> io::Result<bool> {
    stream.set_read_timeout(Some(patient(WAIT)))?;
    stream.write_all(words)?;
    let mut back = vec![0; words.len()];
    match stream.read_exact(&mut back) {
        Ok(()) => Ok(back == words),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits for the datagram that was sent to come back.
pub fn echoed(socket: &UdpSocket, sent: &[u8]) -> io::Result<bool> {
    socket.set_read_timeout(Some(patient(WAIT)))?;
    let mut back = vec![0; 65_535];
    match socket.recv(&mut back) {
        Ok(length) => Ok(back[..length] == *sent),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// The unspecified address of the family of `to`, any port.
#[must_use]
pub fn any(to: SocketAddr) -> SocketAddr {
    let ip = if to.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    SocketAddr::new(ip, 0)
}

pub fn open(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes three integers.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `sendto` with flags; the address is of the socket's family.
pub fn send(socket: &OwnedFd, bytes: &[u8], to: SocketAddr, flags: i32) -> io::Result<()> {
    let flags = MsgFlags::from_bits_retain(flags);
    match to {
        SocketAddr::V4(to) => sendto(socket.as_raw_fd(), bytes, &SockaddrIn::from(to), flags)?,
        SocketAddr::V6(to) => sendto(socket.as_raw_fd(), bytes, &SockaddrIn6::from(to), flags)?,
    };
    Ok(())
}

/// Sends an IP packet with its header by a raw socket.
pub fn send_ip(packet: &[u8], to: IpAddr) -> io::Result<()> {
    let family = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    send(&open(family, libc::SOCK_RAW, libc::IPPROTO_RAW)?, packet, SocketAddr::new(to, 0), 0)
}

/// Sends an IP packet as an Ethernet frame on an interface of this namespace, below every socket hook.
pub fn send_frame(interface: &str, gateway: [u8; 6], packet: &[u8]) -> io::Result<()> {
    let ether_type = if packet[0] >> 4 == 4 { libc::ETH_P_IP } else { libc::ETH_P_IPV6 } as u16;
    let socket = open(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(ether_type.to_be()))?;
    // SAFETY: an all-zero sockaddr_ll is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ether_type.to_be();
    address.sll_ifindex = nix::net::if_::if_nametoindex(interface)?.cast_signed();
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&gateway);
    // SAFETY: address is a full sockaddr_ll, and the length given is its size.
    let address = unsafe {
        nix::sys::socket::LinkAddr::from_raw((&raw const address).cast(), Some(size_of_val(&address) as u32))
    };
    sendto(socket.as_raw_fd(), packet, &address.ok_or(io::ErrorKind::InvalidInput)?, MsgFlags::empty())?;
    Ok(())
}

/// What an IPv4 header says beside its addresses.
#[derive(Debug, Clone, Default)]
pub struct V4<'a> {
    pub protocol: u8,
    pub id: u16,
    /// Flags and offset, as the header has them: 0x2000 is "more fragments", the lower 13 bits count 8 bytes.
    pub fragment: u16,
    /// A multiple of four bytes.
    pub options: &'a [u8],
}

/// An IPv4 packet with a checksum.
#[must_use]
pub fn ipv4(from: Ipv4Addr, to: Ipv4Addr, header: &V4<'_>, payload: &[u8]) -> Vec<u8> {
    let words = 5 + header.options.len() / 4;
    let total = words * 4 + payload.len();
    let mut packet = vec![0x40 | words as u8, 0];
    packet.extend((total as u16).to_be_bytes());
    packet.extend(header.id.to_be_bytes());
    packet.extend(header.fragment.to_be_bytes());
    packet.extend([64, header.protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(header.options);
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet.extend(payload);
    packet
}

/// An IPv6 packet; `next` is the protocol of what follows the header.
#[must_use]
pub fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// A UDP datagram without a checksum.
#[must_use]
pub fn datagram(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let mut bytes: Vec<u8> = [from, to, length, 0].into_iter().flat_map(u16::to_be_bytes).collect();
    bytes.extend(payload);
    bytes
}
