//! Programs loaded side by side, while the start goes on.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::{Object, processors};
use crate::beside::Beside;

/// Threads that load programs. They have ended when this is dropped: what they have begun is waited for, the rest is left.
#[derive(Debug)]
pub struct Loading {
    next: Arc<AtomicUsize>,
    threads: Vec<Beside<()>>,
}

/// No program has this place.
const ENOUGH: usize = usize::MAX / 2;

impl Loading {
    pub(super) fn begin(object: &Object, names: Vec<&'static str>) -> Self {
        let (next, names) = (Arc::new(AtomicUsize::new(0)), Arc::new(names));
        let thread = |_| {
            let (object, next, names) = (object.clone(), Arc::clone(&next), Arc::clone(&names));
            Beside::begin(move || {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Who needs it tries again, and tells why it is refused.
                    let _ = object.program(name);
                }
            })
        };
        Self { threads: (0..processors().min(names.len())).map(thread).collect(), next }
    }

    /// Waits until all of them were tried.
    pub fn finish(mut self) {
        self.threads.drain(..).for_each(Beside::finish);
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.next.store(ENOUGH, Ordering::Relaxed);
    }
}
