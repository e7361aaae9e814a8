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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p9_one_user_of_the_group_leaves_places_for_others_and_root_needs_none() {
        let readers = Arc::new(Readers::new(Limits { readers: 3, per_user: 2, ..Limits::default() }));
        let peer = |uid, role| Peer { uid, pid: None, role };
        let mut admitted: Vec<_> = (0..2).map(|_| readers.admit(&peer(1000, Role::Reader)).unwrap()).collect();
        assert!(readers.admit(&peer(1000, Role::Reader)).is_none(), "a third one of the same user");
        let other = readers.admit(&peer(1001, Role::Reader)).unwrap();
        assert!(readers.admit(&peer(1002, Role::Reader)).is_none(), "a fourth one of all");
        assert!(readers.admit(&peer(0, Role::Root)).is_some());
        drop(other);
        admitted.pop();
        assert!(readers.admit(&peer(1000, Role::Reader)).is_some(), "a place that is free again");
    }
}
