//! What the kernel counted and no record told: folded refusals, and records that did not fit the ring buffer.
//!
//! This reads maps, which the thread that reads the ring buffer may not.

use std::{
    sync::{Arc, MutexGuard},
    time::Duration,
};

use egress_ebpf::abi::DropEvent;

use super::{Core, folds::Folds};
use crate::{
    api::Source as _,
    events::{Clock, Event, Kind, Lost, LostWhere, Timestamp},
};

/// How often is looked while there may be something: folds are a tick of 1.07 s old when they are told.
const SOON: Duration = Duration::from_millis(1500);

/// What was told of what the kernel counted.
#[derive(Debug, Default)]
pub struct Told {
    folds: Folds,
    /// Lost records that were told.
    lost: u64,
}

impl Core {
    /// Notes a refusal that the kernel told, so that the counts of those like it are told in time.
    pub(super) fn told(&self, raw: &DropEvent, event: &Arc<Event>) {
        let mut told = self.sweeping();
        let was_empty = told.folds.is_empty();
        told.folds.told(raw, event);
        drop(told);
        if was_empty {
            self.refusals().notify_one();
        }
    }

    /// Tells what was folded or lost; with `all` however fresh it is. Gives the events, which are published too.
    pub fn sweep(&self, all: bool) -> Vec<Event> {
        let mut datapath = self.datapath();
        let lost = datapath.events_lost().map_or(0, |(drops, answers)| drops + answers);
        let table = datapath.object().table("DROP_FOLDS");
        drop(datapath);
        let mut told = self.sweeping();
        let mut events = match table {
            Ok(table) => told.folds.take(&table, all, &Clock::now()),
            Err(error) => {
                tracing::warn!(%error, "what was folded is told late");
                Vec::new()
            }
        };
        let missing = lost.saturating_sub(told.lost);
        if missing != 0 {
            let kind = Kind::Lost(Lost { count: missing, place: LostWhere::Kernel });
            events.push(Event::new(Timestamp::now(), kind));
        }
        told.lost = lost;
        drop(told);
        for event in &events {
            self.hub().publish(event.clone());
        }
        events
    }

    /// Sweeps for as long as the daemon runs; sleeps while nothing is refused.
    pub async fn sweep_forever(self: Arc<Self>) {
        // What an earlier daemon's reader lost was told by it, or is past telling.
        let before = self.datapath().events_lost().map_or(0, |(drops, answers)| drops + answers);
        self.sweeping().lost = before;
        loop {
            self.refusals().notified().await;
            while !self.is_settled() {
                tokio::time::sleep(SOON).await;
                let core = Arc::clone(&self);
                if tokio::task::spawn_blocking(move || core.sweep(false)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn is_settled(&self) -> bool {
        let told: MutexGuard<'_, Told> = self.sweeping();
        told.folds.is_empty()
    }
}
