//! stub until merge
use super::report::Name;
use aya_ebpf::bindings::__sk_buff;
use egress_ebpf::{abi::Config, packet::Packet, reason::Reason};
pub struct Refused {
    pub reason: Reason,
    pub name: Option<&'static Name>,
}
pub fn query(_skb: *mut __sk_buff, _c: &Config, _p: &Packet, _o: u32, _cookie: u64, _t: bool) -> Result<(), Refused> {
    Ok(())
}
pub fn answer(_skb: *mut __sk_buff, _c: &Config, _p: &Packet, _o: u32, _cookie: u64) {}
