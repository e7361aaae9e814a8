//! Refusals that the kernel folded and nobody told yet: told once they are a tick old, though none like them follows.

use std::{collections::HashMap, sync::Arc};

use egress_ebpf::abi::{DropEvent, DropFold, DropKey, TICK_SHIFT, Ticks};

use crate::{
    datapath::Table,
    events::{Clock, Event, Kind},
};

/// Folds that are watched. Past it a refusal's count is told with the next one like it: memory is bounded.
const WATCHED: usize = 8192;

/// The folds of which a refusal was told lately, by what tells them apart.
#[derive(Debug, Default)]
pub struct Folds {
    watched: HashMap<DropKey, Arc<Event>>,
}

impl Folds {
    /// Whether none can hold a count that was not told.
    pub fn is_empty(&self) -> bool {
        self.watched.is_empty()
    }

    /// Notes a refusal that the kernel told, and the event that was made of it.
    pub fn told(&mut self, raw: &DropEvent, event: &Arc<Event>) {
        let key = key(raw);
        if self.watched.len() < WATCHED || self.watched.contains_key(&key) {
            self.watched.insert(key, Arc::clone(event));
        }
    }

    /// Takes what was folded in `table` and can be told now: with `all` whatever there is, else what no refusal was added
    /// to for a tick. The `count` of each is how many were not told before.
    pub fn take(&mut self, table: &Table<DropKey, DropFold>, all: bool, clock: &Clock) -> Vec<Event> {
        let mut due = Vec::new();
        self.watched.retain(|key, event| {
            let Ok(Some(fold)) = table.get(key) else { return false };
            if !all && tick(clock.monotonic) <= fold.told {
                return true;
            }
            // The program may be about to add to what is taken here: that one refusal is then in the counters alone.
            if let Ok(Some(fold)) = table.take(key)
                && fold.untold != 0
            {
                due.push(of(event, &fold, clock));
            }
            false
        });
        due
    }
}

/// The event like `event` that stands for what was folded: at the end of the tick in which it was.
fn of(event: &Event, fold: &DropFold, clock: &Clock) -> Event {
    let end = ((u64::from(fold.told) + 1) << TICK_SHIFT).min(clock.monotonic);
    let mut event = Event { time: clock.wall(end), ..event.clone() };
    if let Kind::Dropped(refusal) | Kind::WouldDrop(refusal) = &mut event.kind {
        refusal.count = fold.untold;
    }
    event
}

fn tick(nanoseconds: u64) -> Ticks {
    (nanoseconds >> TICK_SHIFT) as Ticks
}

/// The kernel's key of a refusal (`programs/report.rs`).
fn key(event: &DropEvent) -> DropKey {
    let name = event.name.get(..usize::from(event.name_len)).unwrap_or(&event.name);
    DropKey {
        cgroup: event.cgroup,
        destination: event.destination,
        destination_port: if event.ethertype != 0 { event.ethertype } else { event.destination_port },
        proto: event.proto,
        reason: event.reason,
        name: if name.is_empty() { 0 } else { name_hash(name) },
        pid: event.process.pid,
        pad: 0,
    }
}

/// The hash of a reversed name, as `egress_ebpf::dns::reverse` computes it.
fn name_hash(name: &[u8]) -> u32 {
    let hash = name.chunks(8).fold(0_u64, |hash, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    });
    (hash ^ hash >> 32) as u32
}
