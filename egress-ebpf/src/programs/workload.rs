//! Ingress of the host side of workloads' veths: what a workload injects below its sockets.
//!
//! Here the buffer still has the socket that sent it in the workload's namespace (veth keeps it, the host's IP layer
//! drops it), so that packet sockets and AF_XDP, which no cgroup hook sees, can be told from what was judged.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC},
    btf_maps::HashMap,
    helpers::generated::{bpf_fib_lookup, bpf_skb_cgroup_id},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use egress_ebpf::{
    abi::{Address, Config, HOOK_WORKLOAD_INGRESS, LEADS_OUT, PROTO_UDP, Process, ResolverKey, WORKLOADS_MAX},
    decision::{Author, Destination, Entry, Route, Tables as _, Verdict, enters_from_workload},
    packet::{EtherType, Packet, link},
    reason::Reason,
};

use super::{
    clock::now,
    dns::{self, denial::Back},
    global, maps,
    paths::{self, Judged},
    report::{self, Refused},
    skb::{Direct, socket},
    tables::{Kernel, live},
    uplink::{AF_INET, AF_INET6, NEXT, SHOT},
};

/// The interfaces of this node's workloads, by index: the host sides of their veths and the bridges that these are ports
/// of. The value is the interface that routes to the workload name: the bridge, or the veth itself. A veth that is a port of a bridge that
/// leads out has a second element, with [`LEADS_OUT`]: the bridge.
#[btf_map]
pub static WORKLOADS: HashMap<u32, u32, { WORKLOADS_MAX as usize }, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// SOCK_RAW, the same on x86-64 and Arm.
const SOCK_RAW: u32 = 3;

/// Ingress of a veth. Before the first policy it lets everything pass: the uplinks and the cgroup are closed then.
#[classifier]
pub fn workload_ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(config) = live() else { return NEXT };
    // What is not IP is not routed.
    let EtherType::Ip(offset) = link(Direct(skb)) else { return NEXT };
    let offset = offset as u32;
    let mut packet = Packet::UNKNOWN;
    let author = author(skb);
    if let Err(reason) = global::parse(skb, offset, &mut packet) {
        // It is dropped where its socket is judged, or it leaves by an uplink; a tunnel would take it.
        let below = matches!(author, Author::BelowSockets);
        return if below { refuse(skb, config, &report::unknown(), &Refused::plain(reason)) } else { NEXT };
    }
    let mut refused = Refused::plain(Reason::ForgedResolver);
    let mut judged = Judged::Elsewhere;
    match enter(skb, config, &packet, author) {
        Entry::Pass => {
            judged = whose(skb, config, &packet);
            match judged {
                Judged::Elsewhere => return NEXT,
                Judged::Former => {
                    let verdict = Verdict::unpack(global::egress_policy(config, &Destination::of(&packet), now()));
                    refused = Refused::plain(verdict.reason);
                }
                Judged::Left | Judged::Unknown => {
                    let asked = dns::Asked { network_offset: offset, cookie: 0, trust_here: false };
                    let Err(bad) = dns::query(skb, config, &packet, &asked) else { return NEXT };
                    refused = bad;
                }
            }
        }
        Entry::ForgedResolver => {}
        Entry::ForgedSource => refused = Refused::plain(Reason::ForgedSource),
        Entry::Judge => {
            let verdict = Verdict::unpack(global::egress_judge_uplink(skb, config, &raw const packet, offset));
            refused = Refused::plain(verdict.reason);
            if matches!(verdict.reason, Reason::Dns) {
                // Nothing is remembered here: the uplink does that, where the answer comes in.
                let asked = dns::Asked { network_offset: offset, cookie: 0, trust_here: false };
                if let Err(bad) = dns::query(skb, config, &packet, &asked) {
                    refused = bad;
                }
            }
        }
    }
    if refused.reason.passes() {
        // Counted at the uplink.
        return NEXT;
    }
    let unnamed = matches!(refused.reason, Reason::NameNotAllowed) && judged != Judged::Elsewhere;
    let verdict = if unnamed && judged == Judged::Left {
        // Told of where it was left.
        if config.has(Config::ENFORCE) { SHOT } else { NEXT }
    } else {
        refuse(skb, config, &packet, &refused)
    };
    if verdict == SHOT && unnamed {
        return dns::denial::answer(skb, &packet, offset, Back::Out).unwrap_or(SHOT);
    }
    verdict
}

/// Who judged a packet that may enter. A query that the cgroup's hook left to this program, or that no socket is known of, is
/// judged here, also when it stays on the node, and answered when it is refused.
#[inline(never)]
fn whose(skb: *mut __sk_buff, config: &Config, packet: &Packet) -> Judged {
    if packet.proto != PROTO_UDP {
        return Judged::Elsewhere;
    }
    // SAFETY: the context is valid.
    paths::arrives(skb, config, unsafe { (*skb).ifindex }, is_query(config, packet))
}

#[inline(always)]
fn is_query(config: &Config, packet: &Packet) -> bool {
    let port = packet.destination_port;
    let key = ResolverKey { generation: config.generation, address: packet.destination, port, pad: 0 };
    (port == 53 || config.has(Config::RESOLVER_PORTS)) && Kernel.resolver(&key).is_some()
}

#[inline(always)]
fn author(skb: *mut __sk_buff) -> Author {
    // SAFETY: a full socket's fields may be read.
    socket(skb).map_or(Author::Unknown, |sk| unsafe {
        if (*sk).family != AF_INET && (*sk).family != AF_INET6 {
            Author::BelowSockets
        } else if (*sk).type_ == SOCK_RAW {
            Author::RawSocket
        } else {
            Author::Socket
        }
    })
}

#[inline(never)]
fn enter(skb: *mut __sk_buff, config: &Config, packet: &Packet, author: Author) -> Entry {
    // SAFETY: the context is valid.
    let index = unsafe { (*skb).ifindex };
    // SAFETY: the value is a plain word, copied at once.
    let own = unsafe { WORKLOADS.get(&index) }.copied().unwrap_or(index);
    // SAFETY: as above.
    let bridge = unsafe { WORKLOADS.get(&(index | LEADS_OUT)) }.copied().unwrap_or(0);
    let ways = u64::from(bridge) << 32 | u64::from(own);
    enters_from_workload(&Kernel, config, packet, author, |packet, address| {
        Route::of(global::egress_route(skb, ways, u32::from(packet.version), address))
    })
}

/// `struct bpf_fib_lookup`, `include/uapi/linux/bpf.h`: 64 bytes in every kernel, the unions by what is used of them.
#[repr(C)]
struct FibLookup {
    family: u8,
    l4_protocol: u8,
    ports: [u16; 2],
    tot_len: u16,
    ifindex: u32,
    flowinfo: u32,
    source: [u32; 4],
    destination: [u32; 4],
    rest: [u32; 4],
}

/// The route is found, and where to.
const FIB_SUCCESS: i64 = 0;
/// The same, and the next hop's link address is not known yet.
const FIB_NO_NEIGH: i64 = 7;
/// The same, and the packet is larger than the route takes.
const FIB_FRAG_NEEDED: i64 = 8;
/// The interface that the packet entered by does not forward: nothing was looked up.
const FIB_FWD_DISABLED: i64 = 5;
/// The route is found, and wraps the packet into another one.
const FIB_UNSUPP_LWT: i64 = 6;

/// Where a packet that entered by the interface in the lower half of `ways` would be routed for `address`. The upper half is the bridge that leads out, or 0.
#[inline(always)]
pub fn route(skb: *mut __sk_buff, ways: u64, version: u32, address: &Address) -> Route {
    let (own, bridge) = (ways as u32, (ways >> 32) as u32);
    let mut lookup = FibLookup {
        family: if version == 4 { AF_INET as u8 } else { AF_INET6 as u8 },
        l4_protocol: 0,
        ports: [0; 2],
        tot_len: 0,
        ifindex: own,
        flowinfo: 0,
        source: [0; 4],
        destination: [0; 4],
        rest: [0; 4],
    };
    if version == 4 {
        lookup.destination[0] = u32::from_ne_bytes(address.v4_bytes());
    } else {
        lookup.destination =
            [address.high as u32, (address.high >> 32) as u32, address.low as u32, (address.low >> 32) as u32];
    }
    let size = size_of::<FibLookup>() as i32;
    // SAFETY: helper 69 reads and writes `size` bytes of the structure.
    let found = unsafe { bpf_fib_lookup(skb.cast(), (&raw mut lookup).cast(), size, 0) };
    match found {
        FIB_SUCCESS | FIB_NO_NEIGH | FIB_FRAG_NEEDED if lookup.ifindex == own => Route::Back,
        FIB_SUCCESS | FIB_NO_NEIGH | FIB_FRAG_NEEDED => {
            // A gateway's address would have taken its place.
            let first = if version == 4 { u32::from_ne_bytes(address.v4_bytes()) } else { address.high as u32 };
            if lookup.ifindex == bridge && lookup.destination[0] == first {
                return Route::Link;
            }
            // SAFETY: only whether there is an entry is looked at.
            if unsafe { WORKLOADS.get(&lookup.ifindex) }.is_some() {
                Route::Local
            } else if maps::UPLINKS.get_ifindex(lookup.ifindex).is_some() {
                Route::Uplink
            } else {
                Route::Unjudged
            }
        }
        FIB_UNSUPP_LWT => Route::Unjudged,
        FIB_FWD_DISABLED => Route::Untold,
        // For this host itself, for everybody on the link, or for nobody: it is not forwarded.
        _ => Route::Local,
    }
}

#[inline(never)]
fn refuse(skb: *mut __sk_buff, config: &Config, packet: &Packet, refused: &Refused) -> i32 {
    // SAFETY: the context is valid, and helper 79 takes it.
    let (bytes, ifindex, cgroup) = unsafe { ((*skb).len, (*skb).ifindex, bpf_skb_cgroup_id(skb)) };
    report::count_refused(refused.pack(), bytes);
    let process = Process { pid: 0, uid: 0, comm: [0; 16] };
    let sender = report::Sender { hook: HOOK_WORKLOAD_INGRESS, bytes, ifindex, cgroup, netns: 0, process };
    report::refused(config, packet, refused.pack(), &sender);
    if config.has(Config::ENFORCE) { SHOT } else { NEXT }
}
