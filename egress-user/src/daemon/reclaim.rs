//! Expired addresses are taken out of the kernel's tables: some time after something was learned, never while nothing is.

use std::{sync::Arc, time::Duration};

use egress_ebpf::abi::{LearnCount, NEVER, TICK_SHIFT, Ticks};

use super::{Core, state::lock};
use crate::datapath::{Error, Reclaimed, Walk, boot_ticks};

/// The longest and the shortest pause between two walks over the tables.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Reclaims as long as the daemon runs.
pub async fn reclaim(core: Arc<Core>) {
    // An earlier daemon's addresses may be there.
    let mut idle = false;
    loop {
        if idle {
            core.learned_anew.notified().await;
        }
        let pause = core.pause();
        tokio::time::sleep(pause).await;
        let walker = Arc::clone(&core);
        let found = match tokio::task::spawn_blocking(move || walker.reclaim()).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot reclaim expired addresses");
                Reclaimed { next: 0, ..Reclaimed::NOTHING }
            }
            // The daemon is ending.
            Err(_) => return,
        };
        if found.deleted != 0 {
            tracing::debug!(deleted = found.deleted, kept = found.kept, "expired addresses were reclaimed");
        }
        idle = found.next == NEVER;
        if !idle {
            let rest = life(found.next.saturating_sub(boot_ticks())).saturating_sub(pause);
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = core.learned_anew.notified() => {}
            }
        }
    }
}

fn life(ticks: Ticks) -> Duration {
    Duration::from_nanos(u64::from(ticks) << TICK_SHIFT)
}

impl Core {
    /// An eighth of the shortest life that an address can have: so much longer it stays in the tables.
    fn pause(&self) -> Duration {
        let active = self.active();
        ((active.policy.dns.min_ttl + active.policy.dns.grace) / 8).clamp(PAUSE.0, PAUSE.1)
    }

    /// One walk over the tables. Others get the data path between its batches.
    fn reclaim(&self) -> Result<Reclaimed, Error> {
        let (mut walk, mut all) = (Some(Walk::default()), Reclaimed::NOTHING);
        while let Some(at) = walk {
            let mut datapath = lock(&self.datapath);
            let (next, found) = datapath.reclaim(at, boot_ticks())?;
            walk = next;
            all = all.and(found);
        }
        let counts = lock(&self.datapath).learn_counters()?;
        let full = counts.iter().find(|(what, _)| *what == LearnCount::MapFull).map_or(0, |(_, count)| *count);
        let before = self.map_full.swap(full, std::sync::atomic::Ordering::Relaxed);
        if full > before {
            tracing::warn!(
                addresses = full - before,
                "not learned: an address table was full; `egress status` shows how full they are"
            );
        }
        Ok(all)
    }
}
