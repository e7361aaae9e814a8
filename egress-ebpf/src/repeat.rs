//! A loop that the verifier looks at once.
//!
//! On the BPF target it is `bpf_loop` (kernel 5.17): the verifier walks the body one time instead of once per turn, which
//! is 100 times cheaper than a bounded `for` over packet bytes. On the host it is a `for`.

/// The body of a [`repeat`].
pub trait Step {
    /// Does turn `index`, counted from 0; `true` goes on, `false` ends the loop.
    fn step(&mut self, index: u32) -> bool;
}

/// Runs `body` at most `turns` times.
///
/// On the BPF target `body` lives on the stack and is seen by the verifier as memory of unknown content: indices taken
/// from it need a mask or a check where they are used, and pointers to maps must be looked up again inside.
#[inline(always)]
pub fn repeat<S: Step>(turns: u32, body: &mut S) {
    #[cfg(target_arch = "bpf")]
    {
        unsafe extern "C" fn call<S: Step>(index: u32, body: *mut S) -> i64 {
            // SAFETY: `bpf_loop` hands back the pointer it was given, to a value that outlives the call.
            i64::from(!unsafe { &mut *body }.step(index))
        }
        // SAFETY: helper 181; the callback has the signature `long (*)(u32, void *)` that it wants.
        unsafe {
            let bpf_loop: unsafe extern "C" fn(u32, unsafe extern "C" fn(u32, *mut S) -> i64, *mut S, u64) -> i64 =
                core::mem::transmute(181_usize);
            bpf_loop(turns, call::<S>, body, 0);
        }
    }
    #[cfg(not(target_arch = "bpf"))]
    for index in 0..turns {
        if !body.step(index) {
            break;
        }
    }
}
