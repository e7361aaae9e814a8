//! cgroup/connect and cgroup/sendmsg: what is not allowed fails at once with EPERM, where the process is known.
//!
//! These hooks only spare a sender the wait: whatever they let pass, cgroup_skb judges. So where they cannot know, they
//! let pass.

use core::mem;

use aya_ebpf::{
    bindings::{bpf_sock_addr, bpf_sock_tuple},
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_sk_lookup_tcp, bpf_sk_lookup_udp,
        bpf_sk_release,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use egress_ebpf::{
    abi::{
        Address, BUILTIN_DHCPV4, BUILTIN_DHCPV6, BUILTIN_LOOPBACK, Config, HOOK_CONNECT, HOOK_SENDMSG, ORIGIN_NONE,
        PROTO_TCP, PROTO_UDP, PeerKey,
    },
    decision::{Destination, Tables, Verdict},
    packet::Packet,
    reason::Reason,
};

use super::{
    clock::now,
    report, sockets,
    tables::{Kernel, live},
};

const ALLOW: i32 = 1;
const DENY: i32 = 0;

/// BPF_F_CURRENT_NETNS, as the 64-bit argument that the helper takes.
const CURRENT_NETNS: u64 = -1_i32 as i64 as u64;

/// connect(2) on an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    enter(ctx.sock_addr, HOOK_CONNECT, 4)
}

/// connect(2) on an IPv6 socket, IPv4-mapped addresses among its destinations.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    enter(ctx.sock_addr, HOOK_CONNECT, 6)
}

/// sendmsg(2) with an address on an IPv4 UDP socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    enter(ctx.sock_addr, HOOK_SENDMSG, 4)
}

/// sendmsg(2) with an address on an IPv6 UDP socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    enter(ctx.sock_addr, HOOK_SENDMSG, 6)
}

#[inline(always)]
fn enter(ctx: *mut bpf_sock_addr, hook: u8, family: u8) -> i32 {
    let Some(config) = live() else { return DENY };
    // SAFETY: the context is valid for the program's life.
    let (address, port, protocol) = unsafe {
        let address = if family == 4 {
            Address::v4((*ctx).user_ip4.to_ne_bytes())
        } else {
            // Context fields are read 32 bits at a time.
            let [a, b, c, d] = [
                u64::from((*ctx).user_ip6[0]),
                u64::from((*ctx).user_ip6[1]),
                u64::from((*ctx).user_ip6[2]),
                u64::from((*ctx).user_ip6[3]),
            ];
            Address { high: b << 32 | a, low: d << 32 | c }
        };
        (address, u16::from_be((*ctx).user_port as u16), (*ctx).protocol)
    };
    let proto = match (hook, protocol) {
        (HOOK_CONNECT, 6) => PROTO_TCP,
        (HOOK_SENDMSG, 17) => PROTO_UDP,
        // A connect of a datagram socket sends nothing (programs ask for their own address that way).
        _ => return ALLOW,
    };
    let destination = Destination::new(address, if address.is_v4() { 4 } else { 6 }, proto, port);
    if stays_here(&address) && config.builtins & BUILTIN_LOOPBACK != 0 {
        return ALLOW;
    }
    // A DHCP client's: by which port it sends is not known here.
    let builtin = match port {
        67 => BUILTIN_DHCPV4,
        547 => BUILTIN_DHCPV6,
        _ => 0,
    };
    if hook == HOOK_SENDMSG && config.builtins & builtin != 0 {
        return ALLOW;
    }
    let verdict = Kernel.policy(config, &destination, now());
    if hook == HOOK_SENDMSG && matches!(verdict.reason, Reason::Dns) {
        note_asked(ctx, &destination);
    }
    if verdict.reason.passes() || may_pass(ctx, hook, &destination) {
        return ALLOW;
    }
    refuse(ctx, config, hook, &destination, verdict.reason)
}

/// Writes down which resolver an unconnected socket asks: nftables may translate the address before any other hook sees it,
/// and the socket takes an answer from the one that it asked alone.
// Not inlined, for the stack's sake.
#[inline(never)]
fn note_asked(ctx: *mut bpf_sock_addr, destination: &Destination) {
    // SAFETY: the context is valid.
    let sk = unsafe { (*ctx).__bindgen_anon_1.sk };
    if !sk.is_null()
        && let Some(state) = sockets::state(sk)
        && (state.asked != destination.address || state.asked_port != destination.port)
    {
        (state.asked, state.asked_port) = (destination.address, destination.port);
    }
}

/// Loopback and the unspecified address, which means loopback to connect(2).
#[inline(always)]
fn stays_here(address: &Address) -> bool {
    if address.is_v4() {
        let bytes = address.v4_bytes();
        return bytes[0] == 127 || u32::from_ne_bytes(bytes) == 0;
    }
    address.high == 0 && (address.low == 0 || address.low == 1_u64.to_be())
}

/// Whether the destination may be this node itself (the socket's own address, or someone here listens on it, or asked this very
/// socket by a connected one),
/// or whoever sent a datagram first.
// Not inlined: with its tuple in the hook's frame, kernel 6.1 counts more than 512 bytes of stack down to `report`.
#[inline(never)]
fn may_pass(ctx: *mut bpf_sock_addr, hook: u8, destination: &Destination) -> bool {
    if hook == HOOK_SENDMSG {
        let key = PeerKey {
            // SAFETY: the context is valid, and helper 46 takes it.
            cookie: unsafe { bpf_get_socket_cookie(ctx.cast()) },
            remote: destination.address,
            remote_port: destination.port,
            proto: destination.proto,
            pad: [0; 5],
        };
        if Kernel.peer(&key).is_some_and(|flow| flow.origin != ORIGIN_NONE) {
            return true;
        }
    }
    if near_address(ctx, destination.version) == destination.address {
        return true;
    }
    // SAFETY: all-zero is a valid tuple.
    let mut tuple: bpf_sock_tuple = unsafe { mem::zeroed() };
    let port = destination.port.to_be();
    // To an address of its own a host sends from that same address: so a client is found that is connected to this socket.
    let near = near_port(ctx).to_be();
    let size = if destination.version == 4 {
        let own = u32::from_ne_bytes(destination.address.v4_bytes());
        (tuple.__bindgen_anon_1.ipv4.saddr, tuple.__bindgen_anon_1.ipv4.daddr) = (own, own);
        (tuple.__bindgen_anon_1.ipv4.sport, tuple.__bindgen_anon_1.ipv4.dport) = (near, port);
        12
    } else {
        let Address { high, low } = destination.address;
        let own = [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32];
        (tuple.__bindgen_anon_1.ipv6.saddr, tuple.__bindgen_anon_1.ipv6.daddr) = (own, own);
        (tuple.__bindgen_anon_1.ipv6.sport, tuple.__bindgen_anon_1.ipv6.dport) = (near, port);
        36
    };
    // SAFETY: helpers 84 and 85 read `size` bytes of the tuple; what they find is released.
    unsafe {
        let found = if hook == HOOK_CONNECT {
            bpf_sk_lookup_tcp(ctx.cast(), &raw mut tuple, size, CURRENT_NETNS, 0)
        } else {
            bpf_sk_lookup_udp(ctx.cast(), &raw mut tuple, size, CURRENT_NETNS, 0)
        };
        if found.is_null() {
            return false;
        }
        bpf_sk_release(found.cast());
    }
    true
}

/// The address that the socket is bound to, all zeros for none. What it sends there comes back to this host.
#[inline(always)]
fn near_address(ctx: *mut bpf_sock_addr, version: u8) -> Address {
    // SAFETY: the context is valid, and its socket is a full one where it is not null.
    unsafe {
        let sk = (*ctx).__bindgen_anon_1.sk;
        if sk.is_null() {
            return Address { high: 0, low: 0 };
        }
        if version == 4 {
            return Address::v4((*sk).src_ip4.to_ne_bytes());
        }
        // Fields are read 32 bits at a time.
        let [a, b, c, d] = [
            u64::from((*sk).src_ip6[0]),
            u64::from((*sk).src_ip6[1]),
            u64::from((*sk).src_ip6[2]),
            u64::from((*sk).src_ip6[3]),
        ];
        Address { high: b << 32 | a, low: d << 32 | c }
    }
}

/// The port that the socket is bound to; 0 for none yet.
#[inline(always)]
fn near_port(ctx: *mut bpf_sock_addr) -> u16 {
    // SAFETY: the context is valid, and its socket is a full one where it is not null.
    unsafe {
        let sk = (*ctx).__bindgen_anon_1.sk;
        if sk.is_null() { 0 } else { (*sk).src_port as u16 }
    }
}

#[inline(never)]
fn refuse(ctx: *mut bpf_sock_addr, config: &Config, hook: u8, destination: &Destination, reason: Reason) -> i32 {
    let mut packet = Packet::UNKNOWN;
    packet.destination = destination.address;
    packet.destination_port = destination.port;
    packet.proto = destination.proto;
    packet.version = destination.version;
    let sender = report::Sender {
        hook,
        bytes: 0,
        ifindex: 0,
        // SAFETY: helper 80 takes nothing.
        cgroup: unsafe { bpf_get_current_cgroup_id() },
        // SAFETY: the context is valid, and helper 122 takes it.
        netns: unsafe { bpf_get_netns_cookie(ctx.cast()) },
        process: report::current_process(),
    };
    report::refused(config, &packet, report::Refused::plain(reason).pack(), &sender);
    if config.has(Config::ENFORCE) {
        report::count(&Verdict::plain(reason), 0);
        return DENY;
    }
    // What the system call sends is judged, and counted, where it leaves.
    ALLOW
}
