//! The clients: programs as people use them, and sockets of our own for what no program does.

use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::place::{Place, Run};
use crate::servers::BANNER;
use crate::stub::{self, Style};
use crate::world::{DNS_V4, NODE_V4, UPLINK, World};

const LIMIT: Duration = Duration::from_secs(8);
const WAIT: Duration = Duration::from_millis(700);

#[derive(Debug)]
pub enum Client {
    Curl {
        url: String,
        extra: Vec<String>,
    },
    PythonHttps {
        host: String,
    },
    PythonTcp {
        host: String,
        port: u16,
        family: u8,
    },
    Dig {
        args: Vec<String>,
    },
    Ping {
        to: String,
    },
    Ntp {
        to: String,
    },
    Udp {
        to: String,
    },
    /// A static program: its own stub resolver, then TCP to the first IPv4 address.
    GoTcp {
        host: String,
        port: u16,
    },
    /// A datagram built by hand, headers included (`IPPROTO_RAW`).
    RawUdp {
        to: Ipv4Addr,
        port: u16,
    },
    /// The same, as an Ethernet frame on the uplink.
    PacketUdp {
        to: Ipv4Addr,
        port: u16,
        gateway: [u8; 6],
    },
}

/// What the client said of its attempt.
#[derive(Debug)]
pub struct Told {
    /// It got a true answer from the other side.
    pub pass: bool,
    pub words: String,
}

/// Runs a client in `place` to its end.
pub fn drive(client: &Client, place: &Place, world: &World) -> Result<Told> {
    let ca = world.ca_file().to_string_lossy().into_owned();
    Ok(match client {
        Client::Curl { url, extra } => {
            let mut args = vec!["-sS", "--noproxy", "*", "--connect-timeout", "2", "--max-time", "4", "--cacert", &ca];
            args.extend(extra.iter().map(String::as_str));
            args.push(url);
            told(&place.run("curl", &args, LIMIT)?, |run| run.stdout == "ok\n")
        }
        Client::PythonHttps { host } => {
            let script = "import ssl, sys, urllib.request as u\n\
                          c = ssl.create_default_context(cafile=sys.argv[2])\n\
                          sys.stdout.write(u.urlopen(f'https://{sys.argv[1]}/', timeout=3, context=c).read().decode())";
            told(&place.run(python(), &["-c", script, host, &ca], LIMIT)?, |run| run.stdout == "ok\n")
        }
        Client::PythonTcp { host, port, family } => {
            let script = "import socket, sys\n\
                          family = socket.AF_INET if sys.argv[3] == '4' else socket.AF_INET6\n\
                          a = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), family, socket.SOCK_STREAM)[0]\n\
                          s = socket.socket(*a[:3]); s.settimeout(2); s.connect(a[4])\n\
                          sys.stdout.write(s.recv(100).decode())";
            let (port, family) = (port.to_string(), family.to_string());
            let run = place.run(python(), &["-c", script, host, &port, &family], LIMIT)?;
            told(&run, |run| run.stdout == BANNER)
        }
        Client::Dig { args } => {
            let mut all = vec!["+short", "+time=1", "+tries=1"];
            all.extend(args.iter().map(String::as_str));
            // An answer ends in an address; dig's complaints start with a semicolon, on standard output too.
            told(&place.run("dig", &all, LIMIT)?, |run| {
                run.stdout.lines().last().is_some_and(|line| line.parse::<std::net::IpAddr>().is_ok())
            })
        }
        Client::Ping { to } => told(&place.run("ping", &["-c1", "-W1", "-n", to], LIMIT)?, Run::ok),
        Client::Ntp { to } => exchange(place, to, &ntp_question(), |answer| answer.len() == 48 && answer[0] & 7 == 4),
        Client::Udp { to } => exchange(place, to, b"hello", |answer| answer == b"hello"),
        Client::GoTcp { host, port } => by_hand(place.fork(LIMIT, || {
            let found = stub::resolve(Style::Go, SocketAddr::new(DNS_V4.parse()?, 53), host)?;
            let first = found.into_iter().find(IpAddr::is_ipv4).context("no IPv4 address")?;
            let mut stream = TcpStream::connect_timeout(&SocketAddr::new(first, *port), Duration::from_secs(2))?;
            stream.set_read_timeout(Some(WAIT))?;
            let mut banner = [0; BANNER.len()];
            stream.read_exact(&mut banner)?;
            ensure!(banner == *BANNER.as_bytes(), "a wrong banner");
            Ok(format!("the banner of {first}"))
        })),
        Client::RawUdp { to, port } => {
            let (to, port) = (*to, *port);
            by_hand(place.fork(LIMIT, move || raw_exchange(to, port, |packet| send_raw(to, packet))))
        }
        Client::PacketUdp { to, port, gateway } => {
            let (to, port, gateway) = (*to, *port, *gateway);
            by_hand(place.fork(LIMIT, move || raw_exchange(to, port, |packet| send_frame(gateway, packet))))
        }
    })
}

fn told(run: &Run, right: impl Fn(&Run) -> bool) -> Told {
    let words = run.stderr.trim().lines().chain(run.stdout.trim().lines()).last().unwrap_or("said nothing").to_owned();
    Told { pass: run.ok() && right(run), words }
}

/// The system's Python, not a version manager's wrapper, where there is one.
fn python() -> &'static str {
    if Path::new("/usr/bin/python3").exists() { "/usr/bin/python3" } else { "python3" }
}

fn ntp_question() -> Vec<u8> {
    let mut question = vec![0; 48];
    question[0] = 0x23;
    question[40..48].copy_from_slice(&[7; 8]);
    question
}

fn by_hand(result: Result<String>) -> Told {
    match result {
        Ok(words) => Told { pass: true, words },
        Err(error) => Told { pass: false, words: format!("{error:#}") },
    }
}

/// One datagram there and one back, from an ordinary socket.
fn exchange(place: &Place, to: &str, question: &[u8], right: impl Fn(&[u8]) -> bool) -> Told {
    by_hand(place.fork(LIMIT, || {
        let to: SocketAddr = to.parse()?;
        let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
        socket.set_read_timeout(Some(WAIT))?;
        socket.send_to(question, to)?;
        answered(&socket, right)
    }))
}

fn answered(socket: &UdpSocket, right: impl Fn(&[u8]) -> bool) -> Result<String> {
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer)?;
    ensure!(right(&buffer[..length]), "a wrong answer of {length} bytes from {from}");
    Ok(format!("{length} bytes from {from}"))
}

/// Sends a hand-made datagram by `send`, and waits for its echo on an ordinary socket that owns the source port.
fn raw_exchange(to: Ipv4Addr, port: u16, send: impl Fn(&[u8]) -> io::Result<()>) -> Result<String> {
    let own: Ipv4Addr = NODE_V4.parse()?;
    let socket = UdpSocket::bind((own, 0))?;
    socket.set_read_timeout(Some(WAIT))?;
    send(&datagram((own, socket.local_addr()?.port()), (to, port), b"by hand"))?;
    answered(&socket, |answer| answer == b"by hand")
}

/// An IPv4 packet with a UDP datagram; the UDP checksum is left out (0), as RFC 768 allows.
fn datagram(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let length = |header: usize| u16::try_from(header + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0x45, 0, 0, 0, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0];
    packet[2..4].copy_from_slice(&length(28));
    packet.extend(from.0.octets());
    packet.extend(to.0.octets());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    for field in [from.1.to_be_bytes(), to.1.to_be_bytes(), length(8), [0, 0]] {
        packet.extend(field);
    }
    packet.extend(payload);
    packet
}

fn open(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: socket takes three integers; the descriptor is owned from here on.
    let fd = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send<T>(socket: &OwnedFd, bytes: &[u8], to: &T) -> io::Result<()> {
    // SAFETY: bytes and to are live for the call, with their true sizes; to is a socket address of the socket's family.
    let sent = unsafe {
        let address = std::ptr::from_ref(to).cast();
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            address,
            size_of::<T>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn send_raw(to: Ipv4Addr, packet: &[u8]) -> io::Result<()> {
    let socket = open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(to).to_be() },
        sin_zero: [0; 8],
    };
    send(&socket, packet, &address)
}

fn send_frame(gateway: [u8; 6], packet: &[u8]) -> io::Result<()> {
    let ip = (libc::ETH_P_IP as u16).to_be();
    // A cooked socket: the kernel puts the Ethernet header on.
    let socket = open(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(ip))?;
    // SAFETY: an all-zero sockaddr_ll is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ip;
    address.sll_ifindex = nix::net::if_::if_nametoindex(UPLINK)?.cast_signed();
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&gateway);
    send(&socket, packet, &address)
}
