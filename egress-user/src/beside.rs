//! Work on a thread of its own that never outlives whoever began it.

use std::{
    panic::resume_unwind,
    thread::{self, JoinHandle},
};

/// Work that goes on beside its beginner. Dropped without [`Beside::finish`], it is waited for, and what it made is dropped too: a start
/// that fails leaves no thread and nothing made behind.
#[derive(Debug)]
pub struct Beside<T>(Option<JoinHandle<T>>);

impl<T: Send + 'static> Beside<T> {
    pub fn begin(work: impl FnOnce() -> T + Send + 'static) -> Self {
        Self(Some(thread::spawn(work)))
    }

    /// Waits for it, and gives what it made.
    pub fn finish(mut self) -> T {
        let thread = self.0.take().expect("it is taken here alone, which consumes it");
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl<T> Drop for Beside<T> {
    fn drop(&mut self) {
        let _ = self.0.take().map(JoinHandle::join);
    }
}
