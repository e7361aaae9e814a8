//! Whether the kernel's events have been read up to now: whoever changes the policy is to know every answer that came before.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::state::lock;

/// How long a change waits for the reader at most: it gives way to others, and may have a flood to read.
const LIMIT: Duration = Duration::from_millis(500);

/// Shared by the thread that reads and those that wait for it.
#[derive(Debug)]
pub struct Heard {
    /// Wakes the reader; without one it looks when something comes.
    bell: Option<EventFd>,
    /// How often it was asked to read.
    asked: AtomicU64,
    /// The last of these that it did.
    read: Mutex<u64>,
    turned: Condvar,
}

impl Default for Heard {
    fn default() -> Self {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).ok();
        Self { bell, asked: AtomicU64::default(), read: Mutex::default(), turned: Condvar::new() }
    }
}

impl Heard {
    /// Waits until what was told by now has been read.
    pub fn wait(&self) {
        let turn = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        let Some(bell) = &self.bell else { return };
        // It only fails where the bell rings already.
        let _ = bell.write(1);
        let late = |read: &mut u64| *read < turn;
        let waited = self.turned.wait_timeout_while(lock(&self.read), LIMIT, late);
        if waited.unwrap_or_else(PoisonError::into_inner).1.timed_out() {
            tracing::warn!("events are read late: names that were resolved a moment ago may have to be resolved again");
        }
    }

    /// What the reader is woken up by.
    pub fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(EventFd::as_fd)
    }

    /// The reader begins to read all there is; gives what [`Heard::done`] takes.
    pub fn begin(&self) -> u64 {
        if let Some(bell) = &self.bell {
            let _ = bell.read();
        }
        self.asked.load(Ordering::Acquire)
    }

    /// The reader has read all there was.
    pub fn done(&self, turn: u64) {
        let mut read = lock(&self.read);
        if *read != turn {
            *read = turn;
            self.turned.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread, time::Instant};

    use super::*;

    #[test]
    fn who_waits_goes_on_once_what_came_before_is_read() {
        let heard = Arc::new(Heard::default());
        // Begun before it was asked: that is not enough.
        let early = heard.begin();
        let waiting = Arc::clone(&heard);
        let waiting = thread::spawn(move || {
            let start = Instant::now();
            waiting.wait();
            start.elapsed()
        });
        while heard.asked.load(Ordering::Acquire) == 0 {
            thread::yield_now();
        }
        heard.done(early);
        thread::sleep(Duration::from_millis(20));
        heard.done(heard.begin());
        let took = waiting.join().unwrap();
        assert!(took >= Duration::from_millis(20) && took < LIMIT, "{took:?}");
    }
}
