//! The governed cgroup: packets that have a socket.

use super::{
    Destination, Tables, Verdict, datagram_arrives, fragment, fresh, from_resolver, goes_on, inward_key,
    is_odd_fragment, outward_key, policy::PORT_DNS, to_resolver,
};
use crate::{
    abi::{
        Address, BUILTIN_LOOPBACK, Config, Flow, LEARN_BY_LOOPBACK, ORIGIN_IN, ORIGIN_NONE, ORIGIN_OUT, PROTO_TCP,
        PROTO_UDP, PeerKey, ResolverKey, SocketState, Ticks, ZONE_SOCKET, ZONE_UPLINK,
    },
    packet::{Fragment, Packet},
    reason::Reason,
};

/// What a socket can be trusted to say of its packets.
///
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketKind(u32);

impl SocketKind {
    /// TCP: the kernel writes its headers, and a segment other than the first SYN belongs to a connection.
    pub const STREAM: Self = Self(1);
    /// UDP and the like: the kernel writes its headers.
    pub const DATAGRAM: Self = Self(2);
    /// Raw IP, the kernel's own control sockets among them: headers are as the sender likes.
    pub const RAW: Self = Self(3);

    /// The kind of a socket type (`SOCK_STREAM` and the others, which are the same on x86-64 and Arm); all but two are raw.
    #[inline(always)]
    pub const fn of(socket_type: u32) -> Self {
        Self(socket_type)
    }

    /// The socket type.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self.0
    }

    #[inline(always)]
    const fn is_stream(self) -> bool {
        self.0 == Self::STREAM.0
    }

    #[inline(always)]
    const fn is_datagram(self) -> bool {
        self.0 == Self::DATAGRAM.0
    }

    #[inline(always)]
    const fn is_raw(self) -> bool {
        !self.is_stream() && !self.is_datagram()
    }
}

/// What tells a socket's kind, anew each time that it counts: for each value that a known one can have the verifier would walk all that
/// follows by itself.
pub trait Kind {
    /// The kind.
    fn get(&self) -> SocketKind;
}

impl Kind for SocketKind {
    #[inline(always)]
    fn get(&self) -> SocketKind {
        *self
    }
}

/// The socket that a packet leaves by.
#[derive(Clone, Copy, Debug)]
pub struct Sender<K = SocketKind> {
    /// Its kind.
    pub kind: K,
    /// Its cookie.
    pub cookie: u64,
    /// Whether the packet leaves by a loopback interface.
    pub loopback: bool,
}

/// The verdict for a packet that leaves a governed socket. `state` is what is remembered of the socket, and
/// `about_arrival` answers for an ICMP error whether it is about a packet that came in ([`super::quoted_origin`]).
#[inline(always)]
pub fn leaves_socket<T: Tables, K: Kind>(
    tables: &T,
    config: &Config,
    about_arrival: impl FnOnce(&Packet) -> bool,
    packet: &Packet,
    sender: &Sender<K>,
    state: Option<&SocketState>,
    now: Ticks,
) -> Verdict {
    if sender.loopback && config.builtins & BUILTIN_LOOPBACK != 0 {
        return Verdict::plain(by_loopback(tables, config, packet, sender.kind.get(), state));
    }
    if is_odd_fragment(packet) {
        return Verdict::plain(fragment(tables, packet, ZONE_SOCKET, now));
    }
    let destination = Destination::of(packet);
    if let Some(query) = to_resolver(tables, config, &destination, now) {
        return query;
    }
    let known = if packet.opens_tcp() { None } else { known_flow(tables, packet, sender, state) };
    let known = fresh(known, packet.proto_again(), now);
    if known.origin == ORIGIN_IN {
        return Verdict::by(Reason::Reply, 0, ORIGIN_IN);
    }
    if known.origin == ORIGIN_OUT && known.generation == config.generation {
        return Verdict::by(Reason::Established, known.grant, ORIGIN_OUT);
    }
    // None of them is TCP, and that is seen without a call.
    if packet.proto_again() != PROTO_TCP && tables.builtin(config, packet, is_hosts(config, state)) {
        return Verdict::plain(Reason::Builtin);
    }
    let verdict = tables.policy(config, &destination, now);
    if verdict.reason.passes() {
        // A raw socket's segments need not follow one another: a resolver could be made to see another stream than the
        // one that was judged.
        if matches!(verdict.reason, Reason::Dns) && packet.proto_again() == PROTO_TCP && sender.kind.get().is_raw() {
            return Verdict::plain(Reason::BadQuery);
        }
        return verdict;
    }
    if goes_on(tables, config, &known, &verdict) {
        return Verdict::by(Reason::Established, known.grant, ORIGIN_OUT);
    }
    // What the socket opened itself is no reply, whatever arrived since with the same addresses and ports.
    if known.origin != ORIGIN_OUT && replies_without_state(tables, about_arrival, packet, sender, state, now) {
        // A raw socket writes its own headers: what one packet answers says nothing of the next.
        let remember = if sender.kind.get().is_raw() { ORIGIN_NONE } else { ORIGIN_IN };
        return Verdict::by(Reason::Reply, 0, remember);
    }
    verdict
}

/// What leaves by loopback passes, but for queries to a trusted stub of this node: whoever asks it is answered with what it
/// asks outside, or has in its cache, so they are judged and learned from like others (P4, P5). Only those of the network
/// namespace that the stub is in: in others its address is somebody else's.
// Not inlined, for the stack's sake.
#[inline(never)]
fn by_loopback<T: Tables>(
    tables: &T,
    config: &Config,
    packet: &Packet,
    kind: SocketKind,
    state: Option<&SocketState>,
) -> Reason {
    let port = packet.destination_port;
    if !packet.has_ports()
        || matches!(packet.fragment, Fragment::Later)
        || (port != PORT_DNS && !config.has(Config::RESOLVER_PORTS))
        || (config.teaching_netns != 0 && state.is_none_or(|state| state.netns != config.teaching_netns))
    {
        return Reason::Loopback;
    }
    let key = ResolverKey { generation: config.generation, address: packet.destination, port, pad: 0 };
    if tables.resolver(&key).is_none_or(|trust| trust & LEARN_BY_LOOPBACK == 0) {
        return Reason::Loopback;
    }
    if packet.proto == PROTO_TCP && kind.is_raw() { Reason::BadQuery } else { Reason::Dns }
}

/// The flow that a socket's packet belongs to, from the socket's own storage or, for datagram sockets with several far
/// ends, from the table of peers.
#[inline(always)]
fn known_flow<'a, T: Tables, K: Kind>(
    tables: &'a T,
    packet: &Packet,
    sender: &Sender<K>,
    state: Option<&'a SocketState>,
) -> Option<&'a Flow> {
    if let Some(state) = state
        && state.flow.origin != ORIGIN_NONE
        && state.remote_port == packet.destination_port
        && state.proto == packet.proto
        && state.remote == packet.destination
    {
        return Some(&state.flow);
    }
    if packet.proto_again() == PROTO_UDP && sender.kind.get().is_datagram() {
        return peer(tables, sender.cookie, &packet.destination, packet.destination_port);
    }
    None
}

/// A datagram flow of a socket.
// Not inlined, for the stack's sake.
#[inline(never)]
fn peer<'a, T: Tables>(tables: &'a T, cookie: u64, remote: &Address, remote_port: u16) -> Option<&'a Flow> {
    tables.peer(&PeerKey { cookie, remote: *remote, remote_port, proto: PROTO_UDP, pad: [0; 5] })
}

/// Whether the packet answers what came in, by tables that outlive the socket's own storage.
// Not inlined: rare, and its keys would crowd the stack.
#[inline(always)]
fn replies_without_state<T: Tables, K: Kind>(
    tables: &T,
    about_arrival: impl FnOnce(&Packet) -> bool,
    packet: &Packet,
    sender: &Sender<K>,
    state: Option<&SocketState>,
    now: Ticks,
) -> bool {
    let netns = state.map_or(0, |state| state.netns as u32);
    if sender.kind.get().is_datagram() {
        // Another socket of the same port was called.
        return netns != 0 && packet.has_ports() && accepted(tables, packet, netns, now);
    }
    let segment = packet.proto_again() == PROTO_TCP && !packet.opens_tcp();
    if sender.kind.get().is_stream() {
        // A connection that was accepted: its SYN was seen, or it was there before Egress was. Where its addresses are translated, what
        // leaves has those that the uplink saw come in.
        return segment && (accepted(tables, packet, netns, now) || arrived(tables, packet, ZONE_UPLINK));
    }
    // The kernel's own answers (RST, echo replies, errors) leave by raw control sockets. A workload's raw socket
    // looks the same, so only what an uplink saw come in counts, which no workload can forge.
    if packet.is_icmp_error() {
        return about_arrival(packet);
    }
    (segment || packet.is_echo_reply()) && arrived(tables, packet, ZONE_UPLINK)
}

/// Whether the packet's connection, or exchange of datagrams, was opened from outside, to a socket of the network namespace `netns` ([`accepted_flow`]). An
/// accepted socket is of no known one, and has opened no connection; a socket that was made by a process of the cgroup is, and what
/// arrives in another namespace says nothing of it: whoever makes one chooses the addresses there.
// Not inlined, for the stack's sake.
#[inline(never)]
fn accepted<T: Tables>(tables: &T, packet: &Packet, netns: u32, now: Ticks) -> bool {
    let known = fresh(tables.flow(&outward_key(packet, ZONE_SOCKET)), packet.proto, now);
    known.origin == ORIGIN_IN && (netns == 0 || known.grant == netns)
}

/// Whether the packet's flow was opened from outside.
// Not inlined, for the stack's sake.
#[inline(never)]
fn arrived<T: Tables>(tables: &T, packet: &Packet, zone: u8) -> bool {
    tables.flow(&outward_key(packet, zone)).is_some_and(|flow| flow.origin == ORIGIN_IN)
}

/// What to remember of a packet that arrives at a governed socket: the origin to write, or [`ORIGIN_NONE`].
///
/// What arrives by a loopback interface is never remembered: its answer leaves by loopback too, and whoever may write
/// raw packets to a loopback can forge any source.
#[inline(always)]
pub fn arrives_at_socket<T: Tables>(
    tables: &T,
    config: &Config,
    packet: &Packet,
    cookie: u64,
    loopback: bool,
    state: Option<&SocketState>,
    now: impl FnOnce() -> Ticks,
) -> u32 {
    if loopback || matches!(packet.fragment, Fragment::Later) {
        return ORIGIN_NONE;
    }
    if packet.proto == PROTO_TCP {
        return if packet.opens_tcp() { ORIGIN_IN } else { ORIGIN_NONE };
    }
    if packet.proto != PROTO_UDP {
        return ORIGIN_NONE;
    }
    if from_resolver(tables, config, packet) {
        return ORIGIN_NONE;
    }
    if state.is_some_and(|state| is_asked(state, packet)) {
        return ORIGIN_NONE;
    }
    datagram_arrives(config, peer(tables, cookie, &packet.source, packet.source_port), now)
}

/// Whether a datagram that arrives is the answer to what the socket sent, which is no new arrival: else a removed rule's flow would turn into
/// a reply.
#[inline(always)]
pub(super) fn is_asked(state: &SocketState, packet: &Packet) -> bool {
    state.flow.origin == ORIGIN_OUT && state.remote_port == packet.source_port && state.remote == packet.source
}

/// Whether the host itself sends what leaves a socket, as far as is known: sockets that were there before Egress count as its own.
#[inline(always)]
fn is_hosts(config: &Config, state: Option<&SocketState>) -> bool {
    let netns = state.map_or(0, |state| state.netns);
    config.teaching_netns == 0 || netns == 0 || netns == config.teaching_netns
}

/// What is written down of a connection whose SYN arrives at a governed socket, and of datagrams that do. By no grant does it pass; there stands the network namespace
/// of the socket that listens, the lower half of its cookie, or 0 where that is unknown.
#[inline(always)]
pub fn accepted_flow(config: &Config, state: Option<&SocketState>, now: Ticks) -> Flow {
    let grant = state.map_or(0, |state| state.netns as u32);
    Flow { seen: now, generation: config.generation, grant, origin: ORIGIN_IN }
}

/// The flow key of that.
#[inline(always)]
pub fn accepted_key(packet: &Packet) -> crate::abi::FlowKey {
    inward_key(packet, ZONE_SOCKET)
}
