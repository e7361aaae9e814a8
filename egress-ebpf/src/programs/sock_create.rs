//! cgroup/sock_create: whose a socket is, written down when it is made, since its packets may leave in any context.

use aya_ebpf::{
    bindings::BPF_SK_STORAGE_GET_F_CREATE,
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_storage_get},
    macros::cgroup_sock,
    programs::SockContext,
};
use egress_ebpf::abi::SocketState;

use super::{maps, report};

/// Remembers the process and the network namespace of a new socket. It never refuses one.
#[cgroup_sock(sock_create)]
pub fn socket_create(ctx: SockContext) -> i32 {
    // SAFETY: helper 107 takes this hook's context for the socket, and gives null or the socket's storage.
    let state = unsafe {
        let map = core::ptr::from_ref(&maps::SOCKETS).cast_mut().cast();
        bpf_sk_storage_get(map, ctx.sock.cast(), core::ptr::null_mut(), u64::from(BPF_SK_STORAGE_GET_F_CREATE))
            .cast::<SocketState>()
            .as_mut()
    };
    if let Some(state) = state {
        state.creator = report::current_process();
        state.known = 1;
        // SAFETY: the context is valid, and helper 122 takes it.
        state.netns = unsafe { bpf_get_netns_cookie(ctx.sock.cast()) };
    }
    1
}
