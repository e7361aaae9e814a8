//! How many connections those have who are not root.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Limits, Peer, Role};

/// Counts the connections of the socket's group, all together and by user.
#[derive(Debug)]
pub(super) struct Readers {
    limits: Limits,
    by_user: Mutex<HashMap<u32, usize>>,
}

/// A connection's place, free again when this is dropped. Root needs none.
#[derive(Debug)]
pub(super) struct Admitted(Option<(Arc<Readers>, u32)>);

impl Readers {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, by_user: Mutex::default() }
    }

    /// A place for this peer; `None` when its user, or all readers together, have as many as they may.
    pub(super) fn admit(self: &Arc<Self>, peer: &Peer) -> Option<Admitted> {
        if peer.role == Role::Root {
            return Some(Admitted(None));
        }
        let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = by_user.values().sum();
        let own = by_user.get(&peer.uid).copied().unwrap_or_default();
        if all >= self.limits.readers || own >= self.limits.per_user {
            return None;
        }
        by_user.insert(peer.uid, own + 1);
        Some(Admitted(Some((Arc::clone(self), peer.uid))))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let Some((readers, user)) = self.0.take() else { return };
        let mut by_user = readers.by_user.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = by_user.get_mut(&user) {
            *count -= 1;
            if *count == 0 {
                by_user.remove(&user);
            }
        }
    }
}
