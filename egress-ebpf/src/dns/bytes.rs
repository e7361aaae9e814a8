//! Bytes at offsets that are known at run time, eight at a time.
//!
//! The BPF target splits an unaligned load into single bytes, and LLVM removes bounds checks that the verifier still
//! needs: so there the access is one instruction of inline assembly behind a check that LLVM cannot see through. What
//! is out of bounds reads as 0 and is not written: every caller checks the message's length itself, before.

/// A value that LLVM knows nothing of, so that the check which follows it stays for the verifier. A real instruction:
/// an empty barrier makes BTF line info that the kernel refuses.
#[inline(always)]
pub fn opaque(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: a register is moved to itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// What a lookup found, so that LLVM does not make one call of it and of a lookup in another map: where the verifier knows a
/// call's map it has the map's own function called, else one that finds it by a pointer, past the kernel's guards (retpolines).
#[inline(always)]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "nothing is read or written by the pointer there")]
pub fn apart<T>(found: Option<&T>) -> Option<&T> {
    #[cfg(target_arch = "bpf")]
    {
        let mut found = found.map_or(core::ptr::null(), core::ptr::from_ref);
        // SAFETY: a register is moved to itself; the pointer is null, or was a reference.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) found, options(pure, nomem, nostack, preserves_flags));
            found.as_ref()
        }
    }
    #[cfg(not(target_arch = "bpf"))]
    found
}

/// The byte at `at`.
#[inline(always)]
pub fn byte<const N: usize>(bytes: &[u8; N], at: u64) -> u8 {
    let at = opaque(at);
    if at >= N as u64 {
        return 0;
    }
    // SAFETY: checked right above.
    unsafe { *bytes.get_unchecked(at as usize) }
}

/// Writes the byte at `at`.
#[inline(always)]
pub fn set_byte<const N: usize>(bytes: &mut [u8; N], at: u64, value: u8) {
    let at = opaque(at);
    if at < N as u64 {
        // SAFETY: checked right above.
        unsafe { *bytes.get_unchecked_mut(at as usize) = value };
    }
}

/// The 8 bytes from `at` on, little-endian.
#[inline(always)]
pub fn word<const N: usize>(bytes: &[u8; N], at: u64) -> u64 {
    let at = opaque(at);
    if at > (N - 8) as u64 {
        return 0;
    }
    // SAFETY: `at + 8 <= N`.
    unsafe {
        let from = bytes.as_ptr().add(at as usize);
        #[cfg(target_arch = "bpf")]
        {
            let value: u64;
            core::arch::asm!("{0} = *(u64 *)({1} + 0)", out(reg) value, in(reg) from, options(readonly, nostack, preserves_flags));
            value
        }
        #[cfg(not(target_arch = "bpf"))]
        u64::from_le_bytes(core::ptr::read_unaligned(from.cast()))
    }
}

/// Writes the 8 bytes from `at` on, little-endian.
#[inline(always)]
pub fn set_word<const N: usize>(bytes: &mut [u8; N], at: u64, value: u64) {
    let at = opaque(at);
    if at > (N - 8) as u64 {
        return;
    }
    // SAFETY: `at + 8 <= N`.
    unsafe {
        let to = bytes.as_mut_ptr().add(at as usize);
        #[cfg(target_arch = "bpf")]
        core::arch::asm!("*(u64 *)({0} + 0) = {1}", in(reg) to, in(reg) value, options(nostack, preserves_flags));
        #[cfg(not(target_arch = "bpf"))]
        core::ptr::write_unaligned(to.cast(), value.to_le_bytes());
    }
}

/// The 8 bytes from `at` on, little-endian, which is one of the places that `mask` has: so the verifier knows without a comparison, which it
/// would walk both ways.
///
/// # Safety
/// `mask + 8` is at most `N`.
#[inline(always)]
pub unsafe fn word_within<const N: usize>(bytes: &[u8; N], at: u64, mask: usize) -> u64 {
    let at = opaque(at) as usize & mask;
    // SAFETY: `at + 8 <= N`.
    unsafe { unaligned(bytes.as_ptr().add(at)) }
}

/// Writes the 8 bytes from `at` on, little-endian, as [`word_within`] reads them.
///
/// # Safety
/// As there.
#[inline(always)]
pub unsafe fn set_word_within<const N: usize>(bytes: &mut [u8; N], at: u64, value: u64, mask: usize) {
    let at = opaque(at) as usize & mask;
    // SAFETY: `at + 8 <= N`.
    unsafe {
        let to = bytes.as_mut_ptr().add(at);
        #[cfg(target_arch = "bpf")]
        core::arch::asm!("*(u64 *)({0} + 0) = {1}", in(reg) to, in(reg) value, options(nostack, preserves_flags));
        #[cfg(not(target_arch = "bpf"))]
        core::ptr::write_unaligned(to.cast(), value.to_le_bytes());
    }
}

/// Reads a word anew. What the verifier learns of a number by a comparison parts all that follows in two as long as the number is in use; of
/// another reading it knows nothing.
#[inline(always)]
pub fn again(word: &u64) -> u64 {
    // SAFETY: a valid reference.
    unsafe { core::ptr::from_ref(word).read_volatile() }
}

/// Whether words are the same, wherever they start.
///
/// # Safety
/// Both are valid for `words` words.
#[inline(always)]
pub unsafe fn same_words(a: *const u8, b: *const u8, words: usize) -> bool {
    let (mut differ, mut at) = (0, 0);
    while at < words * 8 {
        // SAFETY: the caller's memory.
        differ |= unsafe { unaligned(a.add(at)) ^ unaligned(b.add(at)) };
        at += 8;
    }
    differ == 0
}

/// A word, wherever it starts.
///
/// # Safety
/// It is valid for 8 bytes.
#[inline(always)]
unsafe fn unaligned(from: *const u8) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let value: u64;
        // SAFETY: the caller's memory.
        unsafe {
            core::arch::asm!("{0} = *(u64 *)({1} + 0)", out(reg) value, in(reg) from, options(readonly, nostack, preserves_flags));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's memory.
    unsafe {
        core::ptr::read_unaligned(from.cast())
    }
}

/// Copies whole words, wherever they start: a `memcpy` would go by single bytes here, or fill the stack.
///
/// # Safety
/// Both are valid for `words` words, and do not overlap.
#[inline(always)]
pub unsafe fn copy_words(from: *const u8, to: *mut u8, words: usize) {
    let mut at = 0;
    while at < words * 8 {
        // SAFETY: the caller's memory.
        unsafe {
            let (from, to) = (from.add(at), to.add(at));
            #[cfg(target_arch = "bpf")]
            {
                let value: u64;
                core::arch::asm!("{0} = *(u64 *)({1} + 0)", out(reg) value, in(reg) from, options(readonly, nostack, preserves_flags));
                core::arch::asm!("*(u64 *)({0} + 0) = {1}", in(reg) to, in(reg) value, options(nostack, preserves_flags));
            }
            #[cfg(not(target_arch = "bpf"))]
            core::ptr::copy_nonoverlapping(from, to, 8);
        }
        at += 8;
    }
}

/// The big-endian number of 16 bits at `at`; 0 where it does not end within the bytes.
#[inline(always)]
pub fn be16<const N: usize>(bytes: &[u8; N], at: u64) -> u64 {
    let at = opaque(at);
    if at > (N - 2) as u64 {
        return 0;
    }
    // SAFETY: `at + 2 <= N`.
    unsafe {
        let from = bytes.as_ptr().add(at as usize);
        #[cfg(target_arch = "bpf")]
        {
            let value: u64;
            core::arch::asm!("{0} = *(u16 *)({1} + 0)", out(reg) value, in(reg) from, options(readonly, nostack, preserves_flags));
            u64::from((value as u16).swap_bytes())
        }
        #[cfg(not(target_arch = "bpf"))]
        u64::from(u16::from_be_bytes(core::ptr::read_unaligned(from.cast())))
    }
}

/// The big-endian number of 16 bits at a place that is always the same, as a header's fields are: no check is left of it.
#[inline(always)]
pub const fn be16_at<const AT: usize, const N: usize>(bytes: &[u8; N]) -> u64 {
    const { assert!(AT + 2 <= N) };
    (bytes[AT] as u64) << 8 | bytes[AT + 1] as u64
}

/// The low `count` bytes of a word, at least one, and all of it from 8 on. Not by a comparison, which the verifier would walk both ways in
/// each loop over words.
#[inline(always)]
pub const fn low_bytes(count: u64) -> u64 {
    // All ones from 8 on.
    let whole = (7_u64.wrapping_sub(count) as i64 >> 63) as u64;
    whole | (u64::MAX >> ((8_u64.wrapping_sub(count) & 7) * 8))
}

/// The same byte eight times.
#[inline(always)]
pub const fn splat(byte: u8) -> u64 {
    byte as u64 * 0x0101_0101_0101_0101
}
