//! Two hooks for the kernel tests of names.

use aya_ebpf::{bindings::__sk_buff, macros::cgroup_skb, programs::SkBuffContext};
use egress_ebpf::packet::{Packet, parse};

use super::{dns, skb::Direct, tables::live};

#[cgroup_skb]
pub fn socket_egress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(config) = live() else { return 0 };
    let Some(packet) = parsed(skb) else { return 0 };
    if packet.destination_port != 53 {
        return 1;
    }
    match dns::query(skb, config, &packet, 0, 0, true) {
        Ok(()) => 1,
        Err(refused) => {
            if let Some(name) = refused.name {
                core::hint::black_box(name.len);
            }
            0
        }
    }
}

#[cgroup_skb]
pub fn socket_ingress(ctx: SkBuffContext) -> i32 {
    let skb = ctx.skb.skb;
    let Some(config) = live() else { return 0 };
    let Some(packet) = parsed(skb) else { return 0 };
    if packet.source_port == 53 {
        dns::answer(skb, config, &packet, 0, 0);
    }
    1
}

#[inline(never)]
fn parsed(skb: *mut __sk_buff) -> Option<Packet> {
    parse(&Direct(skb), 0).ok()
}

#[cgroup_skb]
pub fn empty(_ctx: SkBuffContext) -> i32 {
    1
}
