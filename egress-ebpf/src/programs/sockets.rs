//! Socket storage: what is remembered of each socket.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_SK_STORAGE_GET_F_CREATE, bpf_sock},
    helpers::generated::bpf_sk_storage_get,
};
use egress_ebpf::{
    abi::{Address, Flow, ORIGIN_NONE, PROTO_UDP, PeerKey, SocketState, Ticks},
    decision::Verdict,
    packet::Packet,
};

use super::maps;

/// What is remembered of a socket, or `None`.
#[inline(always)]
pub fn state(sk: *mut bpf_sock) -> Option<&'static mut SocketState> {
    get(sk, 0)
}

/// What is remembered of a socket, made empty where there is nothing yet; `None` where the kernel has no memory.
#[inline(always)]
pub fn state_or_new(sk: *mut bpf_sock) -> Option<&'static mut SocketState> {
    get(sk, u64::from(BPF_SK_STORAGE_GET_F_CREATE))
}

/// What is remembered of a packet's socket, or `None`.
#[inline(always)]
pub fn state_of(skb: *mut __sk_buff) -> Option<&'static SocketState> {
    // SAFETY: the context is valid. The helper takes any socket, and gives null for one that is not a full one.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        get(sk, 0).map(|state| &*state)
    }
}

#[inline(always)]
fn get(sk: *mut bpf_sock, flags: u64) -> Option<&'static mut SocketState> {
    // SAFETY: helper 107 gives null or the socket's own storage, which lives until the program ends.
    unsafe {
        let map = ptr::from_ref(&maps::SOCKETS).cast_mut().cast();
        bpf_sk_storage_get(map, sk.cast(), ptr::null_mut(), flags).cast::<SocketState>().as_mut()
    }
}

/// Writes down a socket's verdict, if it differs from what is there. `state` is what [`state`] gave.
#[inline(always)]
pub fn remember(
    sk: *mut bpf_sock,
    cookie: u64,
    packet: &Packet,
    verdict: &Verdict,
    generation: u32,
    now: Ticks,
    state: Option<&'static mut SocketState>,
) {
    let datagram = packet.proto == PROTO_UDP;
    let flow = Flow {
        // A connection does not age, and a time that never changes spares its packets the write.
        seen: if datagram { now } else { 0 },
        generation,
        grant: verdict.grant,
        origin: verdict.remember,
    };
    let Some(state) = (match state {
        Some(state) => Some(state),
        None => state_or_new(sk),
    }) else {
        return;
    };
    let same = state.remote_port == packet.destination_port
        && state.proto == packet.proto
        && state.remote == packet.destination;
    if same && state.flow == flow {
        return;
    }
    // The origin goes first and comes back last: whoever reads meanwhile finds no verdict, and judges anew.
    // SAFETY: `state` is a valid reference; the writes are volatile to keep their order.
    unsafe { ptr::write_volatile(&raw mut state.flow.origin, ORIGIN_NONE) };
    state.remote = packet.destination;
    state.remote_port = packet.destination_port;
    state.proto = packet.proto;
    state.flow.seen = flow.seen;
    state.flow.generation = flow.generation;
    state.flow.grant = flow.grant;
    // SAFETY: as above.
    unsafe { ptr::write_volatile(&raw mut state.flow.origin, flow.origin) };
    if datagram {
        remember_peer(cookie, &packet.destination, packet.destination_port, &flow);
    }
}

/// Writes down a datagram flow of a socket that may have several.
// Not inlined, for the stack's sake.
#[inline(never)]
pub fn remember_peer(cookie: u64, remote: &Address, remote_port: u16, flow: &Flow) {
    let key = PeerKey { cookie, remote: *remote, remote_port, proto: PROTO_UDP, pad: [0; 5] };
    // A full table evicts its oldest entry; without this one the next datagram is judged by the policy.
    let _ = maps::PEERS.insert(&key, flow, 0);
}
