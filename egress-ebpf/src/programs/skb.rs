//! A socket buffer's bytes and metadata.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_sk_fullsock, bpf_skb_load_bytes},
};
use egress_ebpf::packet::{Headers, Packet, Parsed, cut_tcp};

use super::global;

/// The furthest offset that direct packet access takes (the kernel's MAX_PACKET_OFF is 0xffff).
const OFFSET_MASK: usize = 0x3fff;

/// Reads headers by direct packet access: the linear part of the buffer alone.
#[derive(Clone, Copy)]
pub struct Direct(pub *mut __sk_buff);

impl Headers for Direct {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // SAFETY: the context is valid for the program's life; the verifier proves the read against `data_end`.
        unsafe {
            let data = (*self.0).data as usize;
            let end = (*self.0).data_end as usize;
            let at = barrier(data + (barrier(offset) & OFFSET_MASK));
            if at + N > end {
                return None;
            }
            Some(ptr::read_unaligned(at as *const [u8; N]))
        }
    }

    #[inline(always)]
    fn read_64(&self, offset: usize) -> Option<u64> {
        let at = self.at::<8>(offset)?;
        let value: u64;
        // SAFETY: `at` has 8 bytes. By one instruction: of an unaligned read the compiler makes eight.
        unsafe {
            core::arch::asm!("{0} = *(u64 *)({1} + 0)", out(reg) value, in(reg) at, options(readonly, nostack, preserves_flags));
        }
        Some(value)
    }

    #[inline(always)]
    fn read_32(&self, offset: usize) -> Option<u32> {
        let at = self.at::<4>(offset)?;
        let value: u64;
        // SAFETY: `at` has 4 bytes.
        unsafe {
            core::arch::asm!("{0} = *(u32 *)({1} + 0)", out(reg) value, in(reg) at, options(readonly, nostack, preserves_flags));
        }
        Some(value as u32)
    }

    #[inline(always)]
    fn options(self, offset: usize, length: usize) -> Parsed {
        global::options(self.0, offset as u32, length as u32)
    }

    #[inline(always)]
    fn extensions(self, offset: usize, packet: &mut Packet) -> Result<u16, Parsed> {
        global::extensions(self.0, offset as u32, packet)
    }
}

impl Direct {
    /// Where `N` bytes at `offset` start, if they are there.
    #[inline(always)]
    fn at<const N: usize>(self, offset: usize) -> Option<usize> {
        // SAFETY: the context is valid for the program's life.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let at = barrier(data + (barrier(offset) & OFFSET_MASK));
        (at + N <= end).then_some(at)
    }
}

/// Reads headers by copy, wherever in the buffer they are: for the rare packet whose headers are not in the linear part.
#[derive(Clone, Copy)]
pub struct Copied {
    pub skb: *mut __sk_buff,
    /// Whether it is a packet that an ICMP error quotes, whose TCP header may be cut.
    pub quoted: bool,
}

impl Headers for Copied {
    #[inline(always)]
    fn tcp(&self, at: usize) -> Option<(u32, u32)> {
        match (self.read_32(at + 16), self.quoted) {
            (Some(_), _) => Some((self.read_32(at)?, self.read_32(at + 12)?)),
            (None, true) => cut_tcp(*self, at),
            (None, false) => None,
        }
    }

    #[inline(always)]
    fn options(self, offset: usize, length: usize) -> Parsed {
        global::options(self.skb, offset as u32, length as u32)
    }

    #[inline(always)]
    fn extensions(self, offset: usize, packet: &mut Packet) -> Result<u16, Parsed> {
        global::extensions(self.skb, offset as u32, packet)
    }

    #[inline(always)]
    fn parse_quoted(self, offset: usize, packet: &mut Packet) -> Parsed {
        global::parse_quoted(self.skb, offset as u32, packet)
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: helper 26 writes all N bytes, or none and an error.
        unsafe {
            let error = bpf_skb_load_bytes(self.skb.cast(), offset as u32, bytes.as_mut_ptr().cast(), N as u32);
            (error == 0).then(|| bytes.assume_init())
        }
    }
}

/// Keeps LLVM from proving a mask away that the verifier still needs, or from splitting a packet pointer in two. It is
/// a real instruction: a barrier without one gives the BTF line info that the kernel refuses.
#[inline(always)]
fn barrier(mut value: usize) -> usize {
    // SAFETY: a register is moved to itself.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}

/// The full socket of a buffer, if it has one.
#[inline(always)]
pub fn socket(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: the context's socket pointer is null or valid, and helper 95 is called on a valid one only.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let full = bpf_sk_fullsock(sk);
        (!full.is_null()).then_some(full)
    }
}
