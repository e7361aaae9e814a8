//! The decision: one pure function per way out, the same code in the kernel and in the host's tests.
//!
//! Nothing here changes anything. What a verdict asks to be remembered, the program that asked for it writes down.

mod builtin;
mod established;
mod policy;
mod socket;
#[cfg(test)]
mod tests;
mod uplink;
mod workload;

pub use builtin::{builtin, ethertype, is_dhcp_server};
pub use established::{by_loopback, established_at_socket, established_at_uplink, tells_nothing, tells_nothing_to};
pub use policy::{Destination, opens, policy};
pub use socket::{Kind, Sender, SocketKind, accepted_flow, accepted_key, arrives_at_socket, leaves_socket};
pub use uplink::{arrives_at_uplink, leaves_uplink};
pub use workload::{Author, Entry, Route, enters_from_workload};

use crate::{
    abi::{
        Address, AddressEntry, ClassChunk, Config, Flow, FlowKey, FragmentKey, GrantEntry, IDLE, LEARN_AT_UPLINK,
        ORIGIN_IN, ORIGIN_NONE, ORIGIN_OUT, PROTO_TCP, PROTO_UDP, PeerKey, ResolverKey, ResolverTrust, Ticks,
        ZONE_UPLINK,
    },
    dns::bytes::opaque,
    packet::{Fragment, Headers, Packet, quoted},
    reason::Reason,
};

/// The tables that a decision reads: the kernel's maps, or a test's.
pub trait Tables {
    /// The entry of a learned or written address.
    fn address(&self, address: &Address, epoch: u32) -> Option<&AddressEntry>;
    /// How many removals of addresses have begun. Where that is, after a look at an address and its slots, what had ended before
    /// the look, the entry was that address's throughout. Tables that do not change say 0.
    #[inline(always)]
    fn removals_begun(&self) -> u64 {
        0
    }
    /// How many removals of addresses have ended.
    #[inline(always)]
    fn removals_ended(&self) -> u64 {
        0
    }
    /// The class of the longest allowed prefix that covers an address.
    fn prefix(&self, address: &Address, epoch: u32) -> Option<u32>;
    /// The class of the longest denied prefix that covers an address.
    fn deny(&self, address: &Address, epoch: u32) -> Option<u32>;
    /// A chunk of a class's ports.
    fn class(&self, index: u32) -> Option<&ClassChunk>;
    /// For which generations a grant stands.
    fn grant(&self, index: u32) -> Option<GrantEntry>;
    /// Whether a resolver is trusted, and where its answers are believed.
    fn resolver(&self, key: &ResolverKey) -> Option<ResolverTrust>;
    /// A flow by addresses and ports.
    fn flow(&self, key: &FlowKey) -> Option<&Flow>;
    /// A datagram flow by socket and far end.
    fn peer(&self, key: &PeerKey) -> Option<&Flow>;
    /// When the first fragment of a datagram passed.
    fn fragment(&self, key: &FragmentKey) -> Option<Ticks>;

    // The kernel's tables put a function of their own round each of these, which the verifier looks at once instead of
    // at every call.

    /// The grant by which `class` opens a port key in a generation, or 0.
    #[inline(always)]
    fn opens(&self, class: u32, key: u32, generation: u32) -> u32
    where
        Self: Sized,
    {
        opens(self, class, key, generation)
    }

    /// See [`builtin`].
    #[inline(always)]
    fn builtin(&self, config: &Config, packet: &Packet, own: bool) -> bool {
        builtin(config, packet, own)
    }

    /// See [`policy`].
    #[inline(always)]
    fn policy(&self, config: &Config, destination: &Destination, now: Ticks) -> Verdict
    where
        Self: Sized,
    {
        policy(self, config, destination, now)
    }
}

/// What was decided, and what is to be remembered of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why, and by [`Reason::passes`] whether.
    pub reason: Reason,
    /// The grant that it passes by, or 0; see [`Verdict::dns`].
    pub grant: u32,
    /// The flow's origin to remember (`ORIGIN_*`), or `ORIGIN_NONE` for nothing.
    pub remember: u32,
}

impl Verdict {
    /// A verdict that leaves nothing to remember.
    #[inline(always)]
    pub const fn plain(reason: Reason) -> Self {
        Self::by(reason, 0, ORIGIN_NONE)
    }

    /// A verdict by a grant, with the flow's origin to remember.
    #[inline(always)]
    pub const fn by(reason: Reason, grant: u32, remember: u32) -> Self {
        Self { reason, grant, remember }
    }

    /// What goes to a resolver, and is to be looked into. No grant opens it: there stands where the resolver's answers are believed
    /// (`LEARN_*`), for whoever asks for a verdict, who takes it off by [`Verdict::trust`] before it counts it.
    #[inline(always)]
    pub const fn dns(trust: ResolverTrust) -> Self {
        Self::by(Reason::Dns, trust, ORIGIN_NONE)
    }

    /// Takes the resolver's trust off a verdict of [`Reason::Dns`]; 0 where it is not known (by loopback), and of other verdicts.
    #[inline(always)]
    pub fn trust(&mut self) -> ResolverTrust {
        if matches!(self.reason, Reason::Dns) { core::mem::take(&mut self.grant) } else { 0 }
    }

    /// The verdict as one word, as a BPF function returns it.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.grant as u64) << 32 | (self.remember as u64) << 8 | self.reason as u64
    }

    /// The verdict of a packed form. A reason that is none is [`Reason::NoPolicy`].
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        let reason = match Reason::from_number(packed as u8) {
            Some(reason) => reason,
            None => Reason::NoPolicy,
        };
        Self { reason, grant: (packed >> 32) as u32, remember: (packed >> 8) as u8 as u32 }
    }
}

/// How long after its first fragment a datagram's later ones pass: 32 s, over `net.ipv4.ipfrag_time`'s 30.
pub const FRAGMENT_LIFE: Ticks = 30;

/// What is known of a flow, if its last packet is recent enough to count, as is one that another clock dates a moment ahead; else one
/// of no origin. A TCP flow does not age: its socket or peer ends it.
///
/// It is a copy: for each table that a reference may be into, and for none, the verifier would walk all that follows by itself. So
/// it would for each outcome of a comparison; hence the arithmetic.
#[inline(always)]
fn fresh(known: Option<&Flow>, proto: u8, now: Ticks) -> Flow {
    let (times, origin) = known.map_or((0, 0), |flow| {
        let pair = |low, high| u64::from(low) | u64::from(high) << 32;
        (pair(flow.seen, flow.generation), pair(flow.grant, flow.origin))
    });
    let (times, origin) = (opaque(times), opaque(origin));
    let seen = times as u32;
    // All ones where it is too old, and where it is of TCP; else 0.
    let old = i64::from(IDLE).wrapping_sub(i64::from(now)).wrapping_add(i64::from(seen)) >> 63;
    let tcp = (i64::from(proto ^ PROTO_TCP) - 1) >> 63;
    let counts = opaque((!old | tcp) as u64);
    Flow { seen, generation: (times >> 32) as u32, grant: origin as u32, origin: opaque(origin >> 32 & counts) as u32 }
}

/// Whether a flow that the node opened goes on though `verdict`, the policy's of now, does not open it: its grant stands.
#[inline(always)]
fn goes_on<T: Tables>(tables: &T, config: &Config, known: &Flow, verdict: &Verdict) -> bool {
    known.origin == ORIGIN_OUT
        && !matches!(verdict.reason, Reason::Denied)
        && tables.grant(known.grant).is_some_and(|grant| grant.stands(known.generation, config.generation))
}

/// The verdict for a datagram to a trusted resolver: it is a query, and never a reply or of a flow that is known, whatever the tables
/// say of it (P5). So they are not asked.
#[inline(always)]
fn to_resolver<T: Tables>(tables: &T, config: &Config, destination: &Destination, now: Ticks) -> Option<Verdict> {
    if destination.proto != PROTO_UDP || destination.port != policy::PORT_DNS {
        return None;
    }
    let verdict = tables.policy(config, destination, now);
    let asks = match verdict.reason {
        Reason::Dns => true,
        // A deny rule has been found before the resolver was looked for.
        Reason::Denied => is_resolver(tables, config, destination),
        _ => false,
    };
    asks.then_some(verdict)
}

/// The origin to write down of a datagram that arrives, where `known` is known of its flow: none for the answer to what
/// the node sent, nor where the same was written down in this tick, which spares the tables a write for each datagram.
#[inline(always)]
fn datagram_arrives(config: &Config, known: Option<&Flow>, now: impl FnOnce() -> Ticks) -> u32 {
    match known {
        Some(flow) if flow.origin == ORIGIN_OUT => ORIGIN_NONE,
        Some(flow) if flow.origin == ORIGIN_IN && flow.generation == config.generation && flow.seen == now() => {
            ORIGIN_NONE
        }
        _ => ORIGIN_IN,
    }
}

/// Whether a packet that leaves says that it comes from a resolver whose answers are believed where they arrive at an uplink, and that is
/// therefore not on this node: sent to a neighbour that sends it back, it would arrive there as such an answer (P3).
#[inline(always)]
fn forges_resolver<T: Tables>(tables: &T, config: &Config, packet: &Packet) -> bool {
    packet.has_ports() && resolver_of(tables, config, packet).is_some_and(|trust| trust & LEARN_AT_UPLINK != 0)
}

/// Whether a datagram that arrives is a trusted resolver's. It is nothing to reply to: else the next query to that resolver
/// would pass as the reply to an answer, its question not judged (P5).
#[inline(always)]
fn from_resolver<T: Tables>(tables: &T, config: &Config, packet: &Packet) -> bool {
    resolver_of(tables, config, packet).is_some()
}

/// What is believed of the resolver that a packet's source is, if it is one.
#[inline(never)]
fn resolver_of<T: Tables>(tables: &T, config: &Config, packet: &Packet) -> Option<ResolverTrust> {
    if packet.source_port != policy::PORT_DNS && !config.has(Config::RESOLVER_PORTS) {
        return None;
    }
    let (generation, address, port) = (config.generation, packet.source, packet.source_port);
    tables.resolver(&ResolverKey { generation, address, port, pad: 0 })
}

// Not inlined: rare, and its key would crowd the stack.
#[inline(never)]
fn is_resolver<T: Tables>(tables: &T, config: &Config, destination: &Destination) -> bool {
    let Destination { address, port, .. } = *destination;
    tables.resolver(&ResolverKey { generation: config.generation, address, port, pad: 0 }).is_some()
}

/// Whether the packet is a fragment that its own headers do not decide: [`fragment`] does.
#[inline(always)]
const fn is_odd_fragment(packet: &Packet) -> bool {
    !matches!(packet.fragment, Fragment::Whole | Fragment::First)
}

/// Why such a fragment passes or not: a later one passes behind its first one.
// A reason alone: a verdict would be given by a place on the caller's stack.
#[inline(never)]
fn fragment<T: Tables>(tables: &T, packet: &Packet, zone: u8, now: Ticks) -> Reason {
    if matches!(packet.fragment, Fragment::FirstExtended) {
        return Reason::Malformed;
    }
    let passed = tables.fragment(&fragment_key(packet, zone));
    let lives = passed.is_some_and(|seen| now.saturating_sub(seen) <= FRAGMENT_LIFE);
    if lives { Reason::Fragment } else { Reason::OrphanFragment }
}

/// The key under which a datagram's first fragment is remembered.
#[inline(always)]
pub fn fragment_key(packet: &Packet, zone: u8) -> FragmentKey {
    FragmentKey {
        source: packet.source,
        destination: packet.destination,
        id: packet.fragment_id,
        proto: packet.proto,
        zone,
        pad: 0,
    }
}

/// The flow of a packet that leaves.
#[inline(always)]
pub fn outward_key(packet: &Packet, zone: u8) -> FlowKey {
    FlowKey {
        local: packet.source,
        remote: packet.destination,
        local_port: packet.source_port,
        remote_port: if packet.has_ports() { packet.destination_port } else { 0 },
        proto: packet.proto,
        zone,
        pad: 0,
    }
}

/// The flow of a packet that arrives.
#[inline(always)]
pub fn inward_key(packet: &Packet, zone: u8) -> FlowKey {
    let (local_port, remote_port) =
        if packet.has_ports() { (packet.destination_port, packet.source_port) } else { (packet.source_port, 0) };
    FlowKey {
        local: packet.destination,
        remote: packet.source,
        local_port,
        remote_port,
        proto: packet.proto,
        zone,
        pad: 0,
    }
}

/// Whose flow it is that `error`, an ICMP error that leaves, is about, where it goes back to the sender of a packet that came in on an uplink:
/// [`ORIGIN_IN`], or [`ORIGIN_OUT`] where the grant of the flow stands; else [`ORIGIN_NONE`].
///
/// `offset` is that of the error's network header in `headers`.
#[inline(always)]
pub fn quoted_origin<T: Tables, H: Headers>(
    tables: &T,
    config: &Config,
    headers: H,
    offset: usize,
    error: &Packet,
    now: Ticks,
) -> u32 {
    let Some(quoted) = quoted(headers, offset, error) else { return ORIGIN_NONE };
    if quoted.source != error.destination {
        return ORIGIN_NONE;
    }
    let known = fresh(tables.flow(&inward_key(&quoted, ZONE_UPLINK)), quoted.proto, now);
    let stands = |grant: GrantEntry| grant.stands(known.generation, config.generation);
    if known.origin != ORIGIN_OUT || tables.grant(known.grant).is_some_and(stands) { known.origin } else { ORIGIN_NONE }
}
