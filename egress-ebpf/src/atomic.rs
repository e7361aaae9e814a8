//! Atomic operations on words of map memory, by the instructions that the BPF target has (kernel 5.12) and rustc does not
//! offer for it. Each is a full barrier.

/// Writes `new` if the word is `old`; whether it did.
///
/// # Safety
/// `word` is valid, aligned, and only ever used atomically while others can reach it.
#[inline(always)]
pub unsafe fn replace(word: *mut u64, old: u64, new: u64) -> bool {
    #[cfg(target_arch = "bpf")]
    {
        let found: u64;
        // SAFETY: the caller's word. `r0` is the instruction's fixed operand for what is expected and what was found.
        unsafe {
            core::arch::asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) word, in(reg) new, inlateout("r0") old => found, options(nostack));
        }
        found == old
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's word.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }
        .compare_exchange(old, new, core::sync::atomic::Ordering::SeqCst, core::sync::atomic::Ordering::SeqCst)
        .is_ok()
}

/// Adds to the word; what it was before.
///
/// # Safety
/// As for [`replace`].
#[inline(always)]
pub unsafe fn fetch_add(word: *mut u64, add: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = add;
        // SAFETY: the caller's word.
        unsafe {
            core::arch::asm!("{1} = atomic_fetch_add((u64 *)({0} + 0), {1})", in(reg) word, inout(reg) value, options(nostack));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's word.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }.fetch_add(add, core::sync::atomic::Ordering::SeqCst)
}

/// Reads the word by one operation.
///
/// # Safety
/// As for [`replace`].
#[inline(always)]
pub unsafe fn load(word: *const u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's word; an aligned word is read whole.
    return unsafe { word.read_volatile() };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's word.
    unsafe { core::sync::atomic::AtomicU64::from_ptr(word.cast_mut()) }.load(core::sync::atomic::Ordering::SeqCst)
}
