//! Egress of interfaces whose packets are not judged: loopback, where a local stub is asked, and under `exec` the uplinks. Only
//! queries that the cgroup's hook refused and left are taken here, and answered (decisions 0018, 0031 and 0048).

use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};
use egress_ebpf::{
    abi::{Address, PROTO_UDP},
    packet::{EtherType, Fragment, Packet, link},
};

use super::{
    cgroup_skb::LOOPBACK_IFINDEX,
    dns::{self, denial::Back},
    global,
    skb::{Direct, socket},
    sockets,
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
            // Where the kernel translated the query, connection tracking must see the answer as one, and translate it back: so
            // it comes in anew. Of IPv4 the kernel takes that by loopback where `accept_local` says so.
            let on = ifindex == LOOPBACK_IFINDEX && !is_translated(skb, &packet);
            let back = if on { Back::On } else { Back::In };
            dns::denial::answer(skb, &packet, offset, back).unwrap_or(SHOT)
        }
        _ => SHOT,
    }
}

/// Whether the query goes to another address or port than its socket sent it to, or comes from another port.
#[inline(never)]
fn is_translated(skb: *mut __sk_buff, packet: &Packet) -> bool {
    let Some(sk) = socket(skb) else { return false };
    let sent_to = (packet.destination, packet.destination_port);
    // SAFETY: a full socket's fields may be read.
    if unsafe { (*sk).src_port } != u32::from(packet.source_port) {
        return true;
    }
    let state = sockets::state(sk).map(|state| (state.asked, state.asked_port));
    if state == Some(sent_to) {
        return false;
    }
    // SAFETY: as above, 32 bits at a time; each by itself, and none by a pointer that was reckoned.
    let (v4, v6, port) = unsafe {
        let word = |at: *const u32| u64::from(at.read_volatile());
        let v6 = &raw const (*sk).dst_ip6;
        let [a, b, c, d] = [
            word(&raw const (*v6)[0]),
            word(&raw const (*v6)[1]),
            word(&raw const (*v6)[2]),
            word(&raw const (*v6)[3]),
        ];
        let port = (&raw const (*sk).dst_port).read_volatile();
        (word(&raw const (*sk).dst_ip4), Address { high: b << 32 | a, low: d << 32 | c }, u16::from_be(port))
    };
    if port == 0 {
        // Not connected: 0 where nothing is known of it either.
        return state.is_some_and(|(_, port)| port != 0);
    }
    let connected = if packet.version == 4 { Address::v4((v4 as u32).to_ne_bytes()) } else { v6 };
    (connected, port) != sent_to
}
