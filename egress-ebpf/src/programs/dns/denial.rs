//! What a client is told whose query was refused: that there is no such name (decision 0018).

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0},
    helpers::generated::{bpf_l4_csum_replace, bpf_redirect, bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use egress_ebpf::packet::Packet;

use crate::programs::uplink::NEXT;

/// Bytes of an Ethernet address.
const MAC: u32 = 6;
/// Recursion desired, and checking disabled: an answer repeats them (RFC 1035, 4.1.1; RFC 4035, 3.1.6).
const REPEATED: u16 = 0x0110;
/// An answer, recursion available, NXDOMAIN.
const NO_SUCH_NAME: u16 = 0x8083;

/// How an answer gets back to who asked.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Back {
    /// In again by the interface that the query was leaving by.
    In = 0,
    /// By loopback it need only go on.
    On = 1,
    /// Out again by the interface that the query came in by.
    Out = 2,
}

/// Turns a refused query into its own answer, without records, and sends it back. Returns what the program is to return, or
/// `None` where it could not be done.
///
/// `packet` is a UDP query that was found well-formed. Nothing in it that a workload chose is believed when it comes in
/// again: no query of its name is pending, and an answer with an error code teaches nothing.
#[inline(always)]
pub fn answer(skb: *mut __sk_buff, packet: &Packet, network_offset: u32, back: Back) -> Option<i32> {
    match egress_deny(skb, packet, network_offset, back as u32) {
        0 => None,
        returned => Some(returned),
    }
}

/// Global: the verifier checks it once, not again for every way that leads here. 0 where it could not be done.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_deny(skb: *mut __sk_buff, packet: *const Packet, network_offset: u32, back: u32) -> i32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return 0 };
    turn_round(skb, packet, network_offset, back).unwrap_or(0)
}

#[inline(always)]
fn turn_round(skb: *mut __sk_buff, packet: &Packet, network_offset: u32, back: u32) -> Option<i32> {
    let (addresses, length) = if packet.version == 4 { (12, 4) } else { (8, 16) };
    let transport = network_offset + u32::from(packet.transport);
    let flags_at = network_offset + u32::from(packet.payload) + 2;
    let mut old = [0_u8; 2];
    load(skb, flags_at, &mut old)?;
    let new = (u16::from_be_bytes(old) & REPEATED | NO_SUCH_NAME).to_be_bytes();
    if network_offset != 0 {
        swap::<{ MAC as usize }>(skb, 0)?;
    }
    // Swapped addresses and ports leave every checksum as it is.
    if length == 4 {
        swap::<4>(skb, network_offset + addresses)?;
    } else {
        swap::<16>(skb, network_offset + addresses)?;
    }
    swap::<2>(skb, transport)?;
    // SAFETY: the context is valid; helper 11 takes both values as they are in memory.
    let failed = unsafe {
        let (from, to) = (u64::from(u16::from_ne_bytes(old)), u64::from(u16::from_ne_bytes(new)));
        bpf_l4_csum_replace(skb.cast(), transport + 6, from, to, u64::from(BPF_F_MARK_MANGLED_0) | 2)
    };
    if failed != 0 {
        return None;
    }
    store(skb, flags_at, &new)?;
    // SAFETY: the context is valid.
    unsafe {
        // Its way back is not by the policy routing of a mark.
        (*skb).mark = 0;
        if back == Back::On as u32 {
            // It comes in again by itself, and with its route: without one the kernel takes the source, an address of this
            // host, for a forged one.
            return Some(NEXT);
        }
        let flags = if back == Back::Out as u32 { 0 } else { u64::from(BPF_F_INGRESS) };
        Some(bpf_redirect((*skb).ifindex, flags) as i32)
    }
}

/// Swaps two fields of `N` bytes, one right after the other.
#[inline(always)]
fn swap<const N: usize>(skb: *mut __sk_buff, at: u32) -> Option<()> {
    let (mut first, mut second) = ([0_u8; N], [0_u8; N]);
    load(skb, at, &mut first)?;
    load(skb, at + N as u32, &mut second)?;
    store(skb, at, &second)?;
    store(skb, at + N as u32, &first)
}

#[inline(always)]
fn load<const N: usize>(skb: *mut __sk_buff, at: u32, to: &mut [u8; N]) -> Option<()> {
    // SAFETY: helper 26 writes all N bytes, or none and an error.
    (unsafe { bpf_skb_load_bytes(skb.cast(), at, to.as_mut_ptr().cast(), N as u32) } == 0).then_some(())
}

#[inline(always)]
fn store<const N: usize>(skb: *mut __sk_buff, at: u32, bytes: &[u8; N]) -> Option<()> {
    // SAFETY: helper 9 copies N bytes into the buffer, or none and an error.
    (unsafe { bpf_skb_store_bytes(skb.cast(), at, bytes.as_ptr().cast(), N as u32, 0) } == 0).then_some(())
}
