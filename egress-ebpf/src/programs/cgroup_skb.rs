//! cgroup_skb: every packet of every socket below the governed cgroup, in every network namespace.
//!
//! Each step is a function with a stack frame of its own, given back before the next one: a program has 512 bytes for all
//! frames of a call chain, and the DNS message takes most of them.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use egress_ebpf::{
    abi::{
        Address, Config, Flow, HOOK_CGROUP_EGRESS, LEARN_AT_CGROUP, LEARN_BY_LOOPBACK, ORIGIN_IN, ORIGIN_NONE,
        PROTO_TCP, PROTO_UDP, Process, ResolverKey, ResolverTrust, ZONE_SOCKET,
    },
    decision::{self, Kind, Sender, SocketKind, Tables, Verdict},
    packet::{Packet, plain},
    reason::Reason,
};

use super::{
    clock::now,
    dns, global, log, maps, paths, rehearsal,
    report::{self, Refused},
    skb::{Direct, socket},
    sockets,
    tables::{Kernel, live},
    uplink::{LEFT_TO_UPLINK, PACKET_LOOPBACK},
};

/// The loopback interface's index, the same in every network namespace (the kernel's LOOPBACK_IFINDEX).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// A TCP socket's state in `bpf_sock` (the kernel's BPF_TCP_SYN_SENT).
const TCP_SYN_SENT: u32 = 2;

const PASS: i32 = 1;
const DROP: i32 = 0;

/// cgroup_skb/egress: returns 1 to pass, 0 to drop (the sender gets EPERM).
#[cgroup_skb]
pub fn socket_egress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(config) = live() else { return DROP };
    if let Some(verdict) = established(skb, config) {
        // SAFETY: the context is valid.
        report::count(&verdict, unsafe { (*skb).len });
        return PASS;
    }
    let kind = rehearsal::kind_of(skb, config);
    let rehearsed = kind != 0;
    let mut packet = Packet::UNKNOWN;
    if let Err(reason) = global::parse(skb, 0, &mut packet) {
        if rehearsed {
            return rehearsal::end(skb, config, &Verdict::plain(reason), PASS, DROP);
        }
        return refuse(skb, config, &report::unknown(), &Refused::plain(reason));
    }
    let mut verdict = Verdict::unpack(global::egress_judge_socket(skb, config, &raw const packet, kind));
    let mut refused = Refused::plain(verdict.reason);
    if matches!(verdict.reason, Reason::Dns) {
        // SAFETY: the context is valid, and helper 46 takes it.
        let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
        let trust = verdict.trust();
        let trust_here = !rehearsed && believes(skb, config, &packet.destination, packet.destination_port, trust);
        let asked = dns::Asked { network_offset: 0, cookie, trust_here };
        if let Err(bad) = dns::query(skb, config, &packet, &asked) {
            refused = bad;
        }
    }
    if rehearsed {
        let verdict = if refused.reason.passes() { verdict } else { Verdict::plain(refused.reason) };
        return rehearsal::end(skb, config, &verdict, PASS, DROP);
    }
    if refused.reason.passes() {
        log::judged(HOOK_CGROUP_EGRESS, &packet, verdict.reason as u32, verdict.grant);
        // SAFETY: the context is valid.
        report::count(&verdict, unsafe { (*skb).len });
        if matches!(refused.reason, Reason::Dns) && packet.proto == PROTO_UDP {
            paths::asks(skb, config);
        }
        return PASS;
    }
    let verdict = refuse(skb, config, &packet, &refused);
    if matches!(refused.reason, Reason::NameNotAllowed) && packet.proto == PROTO_UDP {
        if verdict == PASS {
            // In audit mode it goes its way.
            paths::asks(skb, config);
        } else if is_answered_below(skb, config, &packet.source) {
            // SAFETY: the context is valid.
            unsafe { (*skb).mark = LEFT_TO_UPLINK };
            return PASS;
        }
    }
    verdict
}

/// Whether what is refused here goes on to an interface whose program refuses it again, and answers: a resolver library
/// takes the error of a system call for a resolver that is down, and an answer for an answer (decisions 0018 and 0031).
#[inline(never)]
fn is_answered_below(skb: *mut __sk_buff, config: &Config, source: &Address) -> bool {
    // An interface's number counts in its own network namespace alone.
    let in_the_host = config.teaching_netns != 0
        && socket(skb).and_then(sockets::state).is_some_and(|state| state.netns == config.teaching_netns);
    if !in_the_host {
        return paths::lead_to_a_veth(skb, config, source);
    }
    // SAFETY: the context is valid.
    maps::UPLINKS.get_ifindex(unsafe { (*skb).ifindex }).is_some()
}

/// The short way, for a packet of the flow that its socket carries, and for what stays on this node.
#[inline(always)]
fn established(skb: *mut __sk_buff, config: &Config) -> Option<Verdict> {
    let packet = plain(Direct(skb), 0)?;
    if is_by_loopback(skb) {
        return decision::by_loopback(config, &packet);
    }
    // What may be a query is judged each time.
    if packet.opens_tcp() || packet.destination_port == 53 {
        return None;
    }
    let state = sockets::state_of(skb)?;
    decision::established_at_socket(config, &packet, state, now)
}

#[inline(always)]
fn is_by_loopback(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid.
    unsafe { (*skb).ifindex == LOOPBACK_IFINDEX }
}

/// Whether it is on this host that a packet was sent: it goes by loopback, or comes back of a group.
#[inline(always)]
fn is_from_here(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid.
    is_by_loopback(skb) || unsafe { (*skb).pkt_type } == PACKET_LOOPBACK
}

/// Decides, and writes down what the decision asks to be remembered.
#[inline(always)]
pub fn judge(skb: *mut __sk_buff, config: &Config, packet: &Packet, rehearsed: u32) -> Verdict {
    // The hook runs for full sockets only.
    let Some(sk) = socket(skb) else { return Verdict::plain(Reason::Malformed) };
    let loopback = is_by_loopback(skb);
    let kind = KindOf { sk, rehearsed };
    let cookie = cookie(skb, packet);
    let sender = Sender { kind, cookie, loopback };
    let state = sockets::state(sk);
    let now = now();
    let about_arrival =
        |error: &Packet| is_kernels(skb, config) || global::quoted_origin(skb, config, 0, error) == ORIGIN_IN;
    let verdict = decision::leaves_socket(&Kernel, config, about_arrival, packet, &sender, state.as_deref(), now);
    if verdict.reason.passes() && rehearsed == 0 {
        maps::remember_fragment(packet, &verdict, ZONE_SOCKET, now);
        if verdict.remember != ORIGIN_NONE {
            sockets::remember(sk, cookie, packet, &verdict, config.generation, now, state);
        }
    }
    verdict
}

/// The kind of a full socket, or the one that a rehearsal stands for, whose own socket has no type.
struct KindOf {
    sk: *mut bpf_sock,
    rehearsed: u32,
}

impl Kind for KindOf {
    #[inline(always)]
    fn get(&self) -> SocketKind {
        // SAFETY: `sk` is a full socket.
        let own = unsafe { (&raw const (*self.sk).type_).read_volatile() };
        // Joined without a look at either, which would part what follows in two.
        SocketKind::of(own | self.rehearsed)
    }
}

/// Whether the kernel itself sends the error: one that a workload's packet is too large for the uplink, say. Its own sockets were made by no
/// process. An uplink judges all errors that leave by it, whoever sends them.
// Not inlined: rare, and what it asks would be kept in the caller's frame.
#[inline(never)]
fn is_kernels(skb: *mut __sk_buff, config: &Config) -> bool {
    sockets::state_of(skb).is_none() && !rehearsal::is_on(skb, config)
}

/// The socket's cookie, by which the flows of datagrams are known; 0 for others, which spares them the call.
#[inline(always)]
fn cookie(skb: *mut __sk_buff, packet: &Packet) -> u64 {
    // SAFETY: the context is valid, and helper 46 takes it.
    if packet.proto == PROTO_UDP { unsafe { bpf_get_socket_cookie(skb.cast()) } } else { 0 }
}

/// Whether an answer from this resolver to this packet's socket may teach. `trust` is the resolver's, or 0 where it is not known.
#[inline(never)]
fn believes(skb: *mut __sk_buff, config: &Config, resolver: &Address, port: u16, trust: ResolverTrust) -> bool {
    let trust = if trust == 0 {
        let key = ResolverKey { generation: config.generation, address: *resolver, port, pad: 0 };
        Kernel.resolver(&key).unwrap_or(0)
    } else {
        trust
    };
    if trust & LEARN_AT_CGROUP == 0 {
        return false;
    }
    // By loopback only a resolver of this node answers; anyone with a raw socket can write what arrives there.
    if is_from_here(skb) && trust & LEARN_BY_LOOPBACK == 0 {
        return false;
    }
    // A namespace of a workload's own making has a resolver of its own making.
    config.teaching_netns == 0
        || socket(skb).and_then(sockets::state).is_some_and(|state| state.netns == config.teaching_netns)
}

#[inline(always)]
fn refuse(skb: *mut __sk_buff, config: &Config, packet: &Packet, refused: &Refused) -> i32 {
    global::egress_refuse_socket(skb, config, packet, refused.pack());
    if config.has(Config::ENFORCE) { DROP } else { PASS }
}

/// Counts and tells of a refusal.
#[inline(always)]
pub fn refused(skb: *mut __sk_buff, config: &Config, packet: &Packet, what: u32) {
    // SAFETY: the context is valid, and helper 79 takes it.
    let (bytes, ifindex, cgroup) = unsafe { ((*skb).len, (*skb).ifindex, bpf_skb_cgroup_id(skb)) };
    report::count_refused(what, bytes);
    let (netns, process) = match socket(skb).and_then(sockets::state) {
        Some(state) => (state.netns, state.creator),
        None => (0, Process { pid: 0, uid: 0, comm: [0; 16] }),
    };
    let sender = report::Sender { hook: HOOK_CGROUP_EGRESS, bytes, ifindex, cgroup, netns, process };
    report::refused(config, packet, what, &sender);
}

/// cgroup_skb/ingress: learns names and remembers who may be answered. It never drops.
#[cgroup_skb]
pub fn socket_ingress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(config) = live() else { return PASS };
    if tells_nothing(skb, config) {
        return PASS;
    }
    let mut packet = Packet::UNKNOWN;
    if global::parse(skb, 0, &mut packet).is_err() {
        return PASS;
    }
    if packet.proto != PROTO_TCP && packet.proto != PROTO_UDP {
        return PASS;
    }
    if (packet.source_port == 53 || config.has(Config::RESOLVER_PORTS))
        && believes(skb, config, &packet.source, packet.source_port, 0)
    {
        // SAFETY: the context is valid, and helper 46 takes it.
        let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
        dns::answer(skb, config, &packet, 0, cookie);
    }
    arrive(skb, config, &packet);
    PASS
}

/// The short way, for what nothing is learned or remembered of.
#[inline(always)]
fn tells_nothing(skb: *mut __sk_buff, config: &Config) -> bool {
    let Some(packet) = plain(Direct(skb), 0) else { return false };
    if decision::tells_nothing(config, &packet, is_by_loopback(skb)) {
        return true;
    }
    packet.proto == PROTO_UDP
        && sockets::state_of(skb).is_some_and(|state| decision::tells_nothing_to(config, &packet, state))
}

#[inline(never)]
fn arrive(skb: *mut __sk_buff, config: &Config, packet: &Packet) {
    let Some(sk) = socket(skb) else { return };
    let cookie = cookie(skb, packet);
    let state = sockets::state(sk);
    let origin = decision::arrives_at_socket(&Kernel, config, packet, cookie, is_from_here(skb), state.as_deref(), now);
    if origin != ORIGIN_IN {
        return;
    }
    // SAFETY: `sk` is a full socket.
    let (tcp_state, far_port) = unsafe { ((*sk).state, (*sk).dst_port) };
    if packet.proto == PROTO_TCP {
        // A socket that connects is called by the far end only in a simultaneous open (RFC 9293, 3.5), which a workload can forge.
        if tcp_state == TCP_SYN_SENT {
            return;
        }
    } else {
        let flow = Flow { seen: now(), generation: config.generation, grant: 0, origin };
        sockets::remember_peer(cookie, &packet.source, packet.source_port, &flow);
        // A connected socket answers by itself; a server's others may be bound to the same port for one peer each.
        if far_port != 0 {
            return;
        }
    }
    let flow = decision::accepted_flow(config, state.as_deref(), now());
    let _ = maps::FLOWS.insert(&decision::accepted_key(packet), &flow, 0);
}
