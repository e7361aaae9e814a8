//! What an attacker has and does: a container's capabilities, a user namespace of its own, sockets past every egress hook.
//!
//! Everything here is for [`Place::fork`](crate::Place::fork): it changes the process that calls it.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{SockaddrIn, SockaddrIn6, bind};

use crate::probe::{self, V4, datagram, ipv4, ipv6};

/// Docker's default capabilities, by their numbers in `include/uapi/linux/capability.h`; CAP_NET_RAW (13) is one of them,
/// CAP_NET_ADMIN (12) and CAP_SYS_ADMIN (21) are not.
const CONTAINER: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];

/// Leaves root of this process no more than a container has.
pub fn as_container() -> Result<()> {
    let mask: u32 = CONTAINER.iter().map(|number| 1 << number).sum();
    // struct __user_cap_header_struct (version 3) and two of struct __user_cap_data_struct (capget(2)).
    let header: [u32; 2] = [0x2008_0522, 0];
    let data: [u32; 6] = [mask, mask, 0, 0, 0, 0];
    // SAFETY: both structures have the sizes that version 3 reads.
    let set = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    ensure!(set == 0, "capset: {}", io::Error::last_os_error());
    Ok(())
}

const NOBODY: u32 = 65_534;

/// Becomes an unprivileged user of the host.
pub fn as_nobody() -> Result<()> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    setgroups(&[]).context("drop the groups")?;
    setresgid(Gid::from_raw(NOBODY), Gid::from_raw(NOBODY), Gid::from_raw(NOBODY))?;
    setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY))?;
    Ok(())
}

/// Becomes an unprivileged user of the host, and then root of a user and network namespace of its own (`unshare -Urn`).
pub fn into_own_namespaces() -> Result<()> {
    use nix::sched::{CloneFlags, unshare};
    as_nobody()?;
    // A process that changed its user is not dumpable, and its files in /proc are root's.
    nix::sys::prctl::set_dumpable(true)?;
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context("unshare -Urn")?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {NOBODY} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {NOBODY} 1"))?;
    Ok(())
}

/// Sends a frame by a packet socket that skips the queueing layer, and with it every egress hook.
pub fn send_bypassing(interface: &str, frame: &[u8]) -> io::Result<()> {
    let socket = probe::open(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &1_i32)?;
    send_frame_by(&socket, interface, frame)
}

/// Sends a frame, link header and all, by a packet socket.
pub fn send_raw(interface: &str, frame: &[u8]) -> io::Result<()> {
    send_frame_by(&probe::open(libc::AF_PACKET, libc::SOCK_RAW, 0)?, interface, frame)
}

fn send_frame_by(socket: &OwnedFd, interface: &str, frame: &[u8]) -> io::Result<()> {
    // SAFETY: an all-zero sockaddr_ll is a valid value; the length given is its size.
    let sent = unsafe {
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = nix::net::if_::if_nametoindex(interface)?.cast_signed();
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes of a chunk of AF_XDP's memory, and descriptors of a ring.
const CHUNK: usize = 4096;
const RING: u32 = 4;

/// Sends a frame by AF_XDP in copy mode (Documentation/networking/af_xdp.rst): one chunk of memory, one descriptor. The
/// kernel lets go of a queue a moment after its last socket was closed, so a busy one is tried again for two seconds.
pub fn send_by_xdp(interface: &str, frame: &[u8]) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match send_by_xdp_now(interface, frame) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && start.elapsed() < Duration::from_secs(2) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            done => return done,
        }
    }
}

fn send_by_xdp_now(interface: &str, frame: &[u8]) -> io::Result<()> {
    let socket = probe::open(libc::AF_XDP, libc::SOCK_RAW, 0)?;
    let memory = map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, CHUNK * RING as usize, 0)?;
    let umem = libc::xdp_umem_reg {
        addr: memory as u64,
        len: (CHUNK * RING as usize) as u64,
        chunk_size: CHUNK as u32,
        headroom: 0,
        flags: 0,
        tx_metadata_len: 0,
    };
    set(&socket, libc::SOL_XDP, libc::XDP_UMEM_REG, &umem)?;
    for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_TX_RING] {
        set(&socket, libc::SOL_XDP, ring, &RING)?;
    }
    // SAFETY: all-zero is a valid value of both structures, and the lengths given are their sizes. The ring's memory is
    // as long as the offsets that the kernel gave say, and the kernel only reads it after the producer was moved.
    unsafe {
        let mut offsets: libc::xdp_mmap_offsets = std::mem::zeroed();
        let mut size = size_of_val(&offsets) as libc::socklen_t;
        let (fd, level, what) = (socket.as_raw_fd(), libc::SOL_XDP, libc::XDP_MMAP_OFFSETS);
        if libc::getsockopt(fd, level, what, (&raw mut offsets).cast(), &raw mut size) != 0 {
            return Err(io::Error::last_os_error());
        }
        let length = offsets.tx.desc as usize + RING as usize * size_of::<libc::xdp_desc>();
        let ring = map(libc::MAP_SHARED | libc::MAP_POPULATE, fd, length, libc::XDP_PGOFF_TX_RING)?.cast::<u8>();
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: nix::net::if_::if_nametoindex(interface)?,
            sxdp_queue_id: 0,
            sxdp_shared_umem_fd: 0,
        };
        if libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32) != 0 {
            return Err(io::Error::last_os_error());
        }
        std::ptr::copy_nonoverlapping(frame.as_ptr(), memory.cast(), frame.len());
        let descriptor = libc::xdp_desc { addr: 0, len: frame.len() as u32, options: 0 };
        ring.add(offsets.tx.desc as usize).cast::<libc::xdp_desc>().write(descriptor);
        ring.add(offsets.tx.producer as usize).cast::<u32>().write_volatile(1);
        if libc::sendto(fd, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn map(flags: i32, fd: i32, length: usize, offset: libc::off_t) -> io::Result<*mut libc::c_void> {
    // SAFETY: a new mapping, at an address that the kernel chooses; it goes with the process.
    let memory =
        unsafe { libc::mmap(std::ptr::null_mut(), length, libc::PROT_READ | libc::PROT_WRITE, flags, fd, offset) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(memory) }
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value is live for the call, and its size is given.
    let result = unsafe {
        let (value, size) = ((&raw const *value).cast(), size_of::<T>() as libc::socklen_t);
        libc::setsockopt(socket.as_raw_fd(), level, option, value, size)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A UDP socket that is bound to an address of somebody else: of IPv4 that takes CAP_NET_RAW (IP_TRANSPARENT), of IPv6 nothing.
pub fn bound_to_anothers(address: SocketAddr) -> io::Result<UdpSocket> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = probe::open(family, libc::SOCK_DGRAM, 0)?;
    let (level, option) =
        if address.is_ipv4() { (libc::SOL_IP, libc::IP_TRANSPARENT) } else { (libc::SOL_IPV6, IPV6_FREEBIND) };
    set(&socket, level, option, &1_i32)?;
    match address {
        SocketAddr::V4(address) => bind(socket.as_raw_fd(), &SockaddrIn::from(address))?,
        SocketAddr::V6(address) => bind(socket.as_raw_fd(), &SockaddrIn6::from(address))?,
    }
    Ok(socket.into())
}

/// `include/uapi/linux/in6.h`.
const IPV6_FREEBIND: i32 = 78;

/// Has a socket send to groups by the interface of this index.
pub fn sends_to_groups_by(socket: &UdpSocket, index: u32) -> io::Result<()> {
    let socket = socket.as_fd().try_clone_to_owned()?;
    let four = libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: 0 },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: index.cast_signed(),
    };
    set(&socket, libc::SOL_IPV6, libc::IPV6_MULTICAST_IF, &index)
        .or_else(|_| set(&socket, libc::SOL_IP, libc::IP_MULTICAST_IF, &four))
}

/// Sends to a group that it joins itself, on the interface of this index, so that the kernel gives the packet back by that interface, without a
/// link header. Who takes the IPv6 header for one finds an IPv4 datagram behind it, `from` whoever one likes: the addresses of
/// the packet and of the group are its header, with options as long as may be, and the payload is the rest.
pub fn send_looped(index: u32, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> io::Result<()> {
    let datagram = datagram(from.port(), to.port(), payload);
    let [high, low] = (60 + datagram.len() as u16).to_be_bytes();
    let own = [0x20, 1, 0x0d, 0xb8, 8, 0, 0x4f, 0, high, low, 0, 0, 0, 0, 64, 17];
    let mut group = [0; 16];
    group[..2].copy_from_slice(&[0xff, 2]);
    group[2..6].copy_from_slice(&from.ip().octets());
    group[6..10].copy_from_slice(&to.ip().octets());
    let group = Ipv6Addr::from(group);
    let socket = bound_to_anothers(SocketAddr::new(Ipv6Addr::from(own).into(), 0))?;
    socket.join_multicast_v6(&group, index)?;
    sends_to_groups_by(&socket, index)?;
    socket.send_to(&[&[0; 26], &datagram[..]].concat(), (group, 9))?;
    Ok(())
}

/// A UDP packet with whatever source one likes.
#[must_use]
pub fn forged(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let header = V4 { protocol: libc::IPPROTO_UDP as u8, ..V4::default() };
    ipv4(*from.ip(), *to.ip(), &header, &datagram(from.port(), to.port(), payload))
}

/// The same by IPv6, with its checksum.
#[must_use]
pub fn forged_6(from: SocketAddrV6, to: SocketAddrV6, payload: &[u8]) -> Vec<u8> {
    let mut bytes = datagram(from.port(), to.port(), payload);
    let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, 0, bytes[4], bytes[5], 0, 0, 0, 17]].concat();
    let even = [&pseudo[..], &bytes, &[0][..bytes.len() % 2]].concat();
    let sum: u32 = even.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    bytes[6..8].copy_from_slice(&(!((folded + (folded >> 16)) as u16)).to_be_bytes());
    ipv6(*from.ip(), *to.ip(), libc::IPPROTO_UDP as u8, &bytes)
}

/// An Ethernet frame round an IPv4 packet.
#[must_use]
pub fn frame(from: [u8; 6], to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [&to[..], &from, &[8, 0], packet].concat()
}

/// The answer that says: this name has this address for five minutes. `query` has one question and nothing after it.
#[must_use]
pub fn answer(query: &[u8], address: [u8; 4]) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[7] = 1;
    message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4]);
    message.extend(address);
    message
}

/// A way to `/dev/net/tun` that anybody may open, as it is on most systems: made as root, opened later.
pub fn tun_device() -> Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let path = std::env::temp_dir().join(crate::netns::unique_name("tun"));
    mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(10, 200)).context("make a tun device")?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let device = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty());
    std::fs::remove_file(&path)?;
    Ok(device?)
}

/// A tap interface in the network namespace of this process; frames are read from the file and written to it.
pub fn tap(device: &OwnedFd, name: &str) -> Result<std::fs::File> {
    let file =
        std::fs::OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", device.as_raw_fd()))?;
    // SAFETY: an all-zero ifreq is a valid value, and TUNSETIFF reads and writes one.
    let made = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request)
    };
    ensure!(made == 0, "TUNSETIFF: {}", io::Error::last_os_error());
    Ok(file)
}
