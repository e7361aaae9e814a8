//! cgroup_skb: every packet of every socket below the governed cgroup, in every network namespace.

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_socket_cookie, bpf_skb_cgroup_id},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use egress_ebpf::{
    abi::{
        Config, Flow, HOOK_CGROUP_EGRESS, LEARN_AT_CGROUP, LEARN_BY_LOOPBACK, ORIGIN_IN, ORIGIN_NONE, PROTO_TCP,
        PROTO_UDP, Process, ResolverKey, SocketState, ZONE_SOCKET,
    },
    decision::{self, Sender, SocketKind, Tables, Verdict},
    packet::{Fragment, Packet},
    reason::Reason,
};

use super::{
    dns, global, maps, report,
    skb::socket,
    sockets,
    tables::{Kernel, live, now},
};

/// The loopback interface's index, the same in every network namespace (the kernel's LOOPBACK_IFINDEX).
const LOOPBACK_IFINDEX: u32 = 1;

const PASS: i32 = 1;
const DROP: i32 = 0;

const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;

/// cgroup_skb/egress: returns 1 to pass, 0 to drop (the sender gets EPERM).
#[cgroup_skb]
pub fn socket_egress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(config) = live() else { return DROP };
    match global::parse(skb, 0) {
        Ok(packet) => judge(skb, config, &packet),
        Err(reason) => refuse(skb, config, &Packet::UNKNOWN, Verdict::plain(reason), None, None),
    }
}

#[inline(always)]
fn judge(skb: *mut __sk_buff, config: &'static Config, packet: &Packet) -> i32 {
    let Some(sk) = socket(skb) else {
        // The hook runs for full sockets only.
        return refuse(skb, config, packet, Verdict::plain(Reason::Malformed), None, None);
    };
    // SAFETY: the context is valid, and helper 46 takes it.
    let cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    // SAFETY: `sk` is a full socket, `skb` the context.
    let (kind, loopback) = unsafe { (kind(sk), (*skb).ifindex == LOOPBACK_IFINDEX) };
    let sender = Sender { kind, cookie, loopback };
    let state = sockets::state(sk);
    let now = now();
    let about_arrival = |error: &Packet| global::is_about_arrival(skb, 0, error);
    let mut verdict = decision::leaves_socket(&Kernel, config, about_arrival, packet, &sender, state.as_deref(), now);
    let mut name = None;
    if matches!(verdict.reason, Reason::Dns) {
        let trusted = believes(config, &packet.destination, packet.destination_port, state.as_deref(), loopback);
        match dns::query(skb, config, packet, 0, cookie, trusted) {
            Ok(()) => {}
            Err(refused) => {
                verdict = Verdict::plain(refused.reason);
                name = refused.name;
            }
        }
    }
    if !verdict.reason.passes() {
        return refuse(skb, config, packet, verdict, state.as_deref(), name);
    }
    // SAFETY: the context is valid.
    report::count(&verdict, unsafe { (*skb).len });
    if let Fragment::First = packet.fragment {
        let _ = maps::FRAGMENTS.insert(&decision::fragment_key(packet, ZONE_SOCKET), &now, 0);
    }
    if verdict.remember != ORIGIN_NONE {
        sockets::remember(sk, cookie, packet, &verdict, config.generation, now, state);
    }
    PASS
}

#[inline(always)]
unsafe fn kind(sk: *mut bpf_sock) -> SocketKind {
    // SAFETY: the caller has a full socket.
    match unsafe { (*sk).type_ } {
        SOCK_STREAM => SocketKind::Stream,
        SOCK_DGRAM => SocketKind::Datagram,
        _ => SocketKind::Raw,
    }
}

/// Whether an answer from this resolver to this socket may teach.
#[inline(always)]
fn believes(
    config: &Config,
    resolver: &egress_ebpf::abi::Address,
    port: u16,
    state: Option<&SocketState>,
    loopback: bool,
) -> bool {
    let key = ResolverKey { generation: config.generation, address: *resolver, port, pad: 0 };
    let Some(trust) = Kernel.resolver(&key) else { return false };
    // A namespace of a workload's own making has a resolver of its own making.
    let namespace = config.teaching_netns == 0 || state.is_some_and(|state| state.netns == config.teaching_netns);
    // By loopback only a resolver of this node answers; anyone with a raw socket can write what arrives there.
    let arrival = !loopback || trust & LEARN_BY_LOOPBACK != 0;
    trust & LEARN_AT_CGROUP != 0 && namespace && arrival
}

#[inline(never)]
fn refuse(
    skb: *mut __sk_buff,
    config: &Config,
    packet: &Packet,
    verdict: Verdict,
    state: Option<&SocketState>,
    name: Option<&'static report::Name>,
) -> i32 {
    // SAFETY: the context is valid, and helper 79 takes it.
    let (bytes, ifindex, cgroup) = unsafe { ((*skb).len, (*skb).ifindex, bpf_skb_cgroup_id(skb)) };
    report::count(&verdict, bytes);
    let sender = report::Sender {
        hook: HOOK_CGROUP_EGRESS,
        ifindex,
        cgroup,
        netns: state.map_or(0, |state| state.netns),
        process: state.map_or(Process { pid: 0, uid: 0, comm: [0; 16] }, |state| state.creator),
    };
    report::refused(config, packet, verdict.reason, &sender, bytes, name);
    if config.has(Config::ENFORCE) { DROP } else { PASS }
}

/// cgroup_skb/ingress: learns names and remembers who may be answered. It never drops.
#[cgroup_skb]
pub fn socket_ingress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    if let Some(config) = live() {
        if let Ok(packet) = global::parse(skb, 0) {
            arrive(skb, config, &packet);
        }
    }
    PASS
}

#[inline(always)]
fn arrive(skb: *mut __sk_buff, config: &'static Config, packet: &Packet) {
    if packet.proto != PROTO_TCP && packet.proto != PROTO_UDP {
        return;
    }
    let Some(sk) = socket(skb) else { return };
    // SAFETY: the context is valid, and helper 46 takes it.
    let (cookie, loopback) = unsafe { (bpf_get_socket_cookie(skb.cast()), (*skb).ifindex == LOOPBACK_IFINDEX) };
    let state = sockets::state(sk);
    if (packet.source_port == 53 || config.has(Config::RESOLVER_PORTS))
        && believes(config, &packet.source, packet.source_port, state.as_deref(), loopback)
    {
        dns::answer(skb, config, packet, 0, cookie);
    }
    let origin = decision::arrives_at_socket(&Kernel, packet, cookie, loopback, state.as_deref());
    if origin != ORIGIN_IN {
        return;
    }
    let flow = Flow { seen: now(), generation: config.generation, grant: 0, origin };
    if packet.proto == PROTO_TCP {
        let _ = maps::FLOWS.insert(&decision::accepted_key(packet), &flow, 0);
    } else {
        sockets::remember_peer(cookie, &packet.source, packet.source_port, &flow);
    }
}
