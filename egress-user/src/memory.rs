//! What the allocator keeps of memory that was used once.
//!
//! To read and compile a policy takes several times what is kept of it, and glibc gives back to the system only what lies behind
//! everything in use. So that work is done apart, what was freed is given back afterwards, and large blocks always come from the
//! system and go back there.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, task::spawn_blocking};

/// Blocks of this size and more are the system's own. Said so that glibc does not raise it to what was freed last.
const LARGE: libc::c_int = 512 << 10;
/// What is freed in one go is given back in one go.
const PAUSE: Duration = Duration::from_secs(2);

/// Sets the allocator up; at the start, before there are threads.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no thread of this process allocates meanwhile, and the parameter is one that glibc has (mallopt(3)).
    let _ = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
}

/// Gives what is free back to the system. Takes milliseconds, in which others wait that allocate.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) may be called by any thread at any time.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Does work on a thread of its own, whose memory lies apart: what it frees lies not between what stays. What it gives is to be
/// cloned by the caller, if it is large and stays.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Who freed much says so, and it is given back soon.
#[derive(Clone, Debug, Default)]
pub struct Freed(Arc<Notify>);

impl Freed {
    /// Much was freed, or is about to be.
    pub fn tell(&self) {
        self.0.notify_one();
    }

    /// Gives back what was told of; never ends.
    pub async fn give_back(self) {
        loop {
            self.0.notified().await;
            tokio::time::sleep(PAUSE).await;
            if spawn_blocking(give_back).await.is_err() {
                return;
            }
        }
    }
}
