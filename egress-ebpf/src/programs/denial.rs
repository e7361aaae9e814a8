//! Egress of interfaces whose packets are not judged: loopback, where a local stub is asked, and under `exec` the uplinks. Only
//! queries that the cgroup's hook refused and left are taken here, and answered (decisions 0018 and 0031).

use aya_ebpf::{macros::classifier, programs::TcContext};
use egress_ebpf::{
    abi::PROTO_UDP,
    packet::{EtherType, Fragment, Packet, link},
};

use super::{
    cgroup_skb::LOOPBACK_IFINDEX,
    dns::{self, denial::Back},
    global,
    skb::Direct,
    uplink::{LEFT_TO_UPLINK, NEXT, SHOT},
};

/// Egress of an interface with an Ethernet header; loopback has one. What has the mark never goes on as it came.
#[classifier]
pub fn denial_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid.
    let (mark, ifindex) = unsafe { ((*skb).mark, (*skb).ifindex) };
    if mark != LEFT_TO_UPLINK {
        return NEXT;
    }
    let EtherType::Ip(offset) = link(Direct(skb)) else { return SHOT };
    let offset = offset as u32;
    let mut packet = Packet::UNKNOWN;
    match global::parse(skb, offset, &mut packet) {
        Ok(()) if packet.proto == PROTO_UDP && matches!(packet.fragment, Fragment::Whole) => {
            let back = if ifindex == LOOPBACK_IFINDEX { Back::On } else { Back::In };
            dns::denial::answer(skb, &packet, offset, back).unwrap_or(SHOT)
        }
        _ => SHOT,
    }
}
