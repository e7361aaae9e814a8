//! What is remembered of flows: per socket where there is one, else by addresses and ports.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Ticks};

/// Key of map `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlowKey {
    /// The near end: the source of what leaves.
    pub local: Address,
    /// The far end: the destination of what leaves.
    pub remote: Address,
    /// The near port; for ICMP echo its identifier.
    pub local_port: u16,
    /// The far port; 0 for ICMP.
    pub remote_port: u16,
    /// The IP protocol number.
    pub proto: u8,
    /// [`ZONE_UPLINK`] or [`ZONE_SOCKET`]: what was seen in a workload's namespace never speaks for an uplink.
    pub zone: u8,
    /// Zero.
    pub pad: u16,
}

/// Seen on an uplink.
pub const ZONE_UPLINK: u8 = 0;
/// Seen at the governed cgroup.
pub const ZONE_SOCKET: u8 = 1;

/// Value of map `FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow {
    /// When its last packet passed.
    pub seen: Ticks,
    /// The generation that judged it last.
    pub generation: u32,
    /// The grant that it passes by, for [`ORIGIN_OUT`]. Of what a governed socket accepted ([`ZONE_SOCKET`]) the lower half
    /// of its network namespace's cookie, or 0 where that is unknown.
    pub grant: u32,
    /// [`ORIGIN_IN`] or [`ORIGIN_OUT`].
    pub origin: u32,
}

/// No verdict is known.
pub const ORIGIN_NONE: u32 = 0;
/// Opened from outside: what leaves is a reply.
pub const ORIGIN_IN: u32 = 1;
/// Opened by the node, as a grant allows.
pub const ORIGIN_OUT: u32 = 2;

/// How long a UDP or ICMP flow lives without a packet: 180 s, as `nf_conntrack_udp_timeout_stream` has it.
pub const IDLE: Ticks = 168;

/// Value of map `SOCKETS` (socket storage): whose the socket is, and the verdict of the flow that it carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SocketState {
    /// The far end that the verdict is for.
    pub remote: Address,
    /// The far port.
    pub remote_port: u16,
    /// The IP protocol number.
    pub proto: u8,
    /// Whether `creator` is known.
    pub known: u8,
    /// The verdict; see [`Flow`].
    pub flow: Flow,
    /// The process that made the socket.
    pub creator: Process,
    /// The generation that let a refused query of it go last.
    pub left_by: u32,
    /// The cookie of the network namespace that it was made in, or 0 where unknown.
    pub netns: u64,
    /// The index of the one interface that all its queries to resolvers left by, with [`SocketState::LEFT`]; 0 before the first
    /// one, [`SocketState::MIXED`] after two interfaces. Kept where `netns` is a workload's; only used atomically.
    pub way: u64,
    /// When a refused query of it was let go last.
    pub left: Ticks,
    /// The port of `asked`; 0 for none.
    pub asked_port: u16,
    /// Zero.
    pub pad: u16,
    /// The resolver that a datagram was addressed to last (sendmsg with an address), before any translation.
    pub asked: Address,
}

impl SocketState {
    /// A refused query of it was let go, to be answered at the veth's host side.
    pub const LEFT: u64 = 1 << 32;
    /// Its queries left by several interfaces: what arrives says nothing of any of them.
    pub const MIXED: u64 = u64::MAX;
}

/// A process, as the kernel knows it at the moment.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Process {
    /// The process id (the kernel's tgid) in the initial PID namespace; 0 where no process is known.
    pub pid: u32,
    /// The user id in the initial user namespace.
    pub uid: u32,
    /// The command name, ended by a 0 byte.
    pub comm: [u8; 16],
}

/// Key of map `PEERS`: who sent a datagram to a socket, and so may be answered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PeerKey {
    /// The cookie of the socket that received it.
    pub cookie: u64,
    /// Who sent it.
    pub remote: Address,
    /// From which port.
    pub remote_port: u16,
    /// The IP protocol number.
    pub proto: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// Key of map `FRAGMENTS`: a datagram whose first fragment passed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FragmentKey {
    /// The source.
    pub source: Address,
    /// The destination.
    pub destination: Address,
    /// The identification field (IPv4: 16 bits), in network order.
    pub id: u32,
    /// The IP protocol number.
    pub proto: u8,
    /// [`ZONE_UPLINK`] or [`ZONE_SOCKET`].
    pub zone: u8,
    /// Zero.
    pub pad: u16,
}
