//! A policy on trial: it is live until a deadline that the kernel itself judges, unless it is confirmed.
//!
//! The word in `LIVE` holds the generation and its deadline. From the deadline on the programs take the other entry of
//! `CONFIG`, with no daemon needed. What is done here is to tidy up after them.

use std::time::Duration;

use egress_ebpf::abi::{GrantEntry, Live, TICK_SHIFT, Ticks};
use nix::time::{ClockId, clock_gettime};

use super::{Datapath, Error, boot_ticks, sys};

/// What became of a policy on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// There was none.
    Nothing,
    /// It is live until this tick.
    Pending(Ticks),
    /// Its time ran out: this generation is live again.
    RolledBack(u32),
}

/// The first tick that is at least `wait` from now, by CLOCK_MONOTONIC: at most one tick (1.07 s) later.
pub fn deadline_after(wait: Duration) -> Ticks {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u32::try_from((now + wait).as_nanos().div_ceil(1 << TICK_SHIFT)).unwrap_or(Ticks::MAX)
}

impl Datapath {
    /// The word that the programs read.
    pub fn live(&self) -> Result<Live, Error> {
        Ok(Live::unpack(self.live.get(&0)?.unwrap_or(0)))
    }

    /// The generation that the programs judge by now, 0 before the first.
    pub fn generation(&self) -> Result<u32, Error> {
        let live = self.live()?;
        if !live.expired(boot_ticks()) {
            return Ok(live.generation);
        }
        Ok(self.configs.get(&(!live.generation & 1))?.unwrap_or_default().generation)
    }

    /// A number that no generation had, whose entry in map `CONFIG` is not the live one's.
    pub(super) fn next_generation(&self, live: u32) -> Result<u32, Error> {
        let last = self.last_generation()?;
        // 0 means none. Billions of policies later the numbers begin again.
        let mut next = match last.max(live) {
            last if last >= u32::MAX - 2 => 1,
            last => last + 1,
        };
        if live != 0 && next & 1 == live & 1 {
            next += 1;
        }
        self.live.set(&Live::LAST, &u64::from(next), sys::ANY)?;
        Ok(next)
    }

    /// The last generation that was ever given out.
    pub(super) fn last_generation(&self) -> Result<u32, Error> {
        Ok(self.live.get(&Live::LAST)?.unwrap_or(0) as u32)
    }

    /// Tidies up after a policy whose time ran out.
    pub fn settle(&mut self) -> Result<Settled, Error> {
        let live = self.live()?;
        if live.deadline == 0 {
            return Ok(Settled::Nothing);
        }
        if !live.expired(boot_ticks()) {
            return Ok(Settled::Pending(live.deadline));
        }
        self.back().map(Settled::RolledBack)
    }

    /// Keeps the policy on trial. Gives its generation.
    ///
    /// # Errors
    /// [`Error::NothingPending`], also where its time ran out.
    pub fn confirm(&mut self) -> Result<u32, Error> {
        let Settled::Pending(_) = self.settle()? else { return Err(Error::NothingPending) };
        let generation = self.live()?.generation;
        self.live.set(&0, &Live { generation, deadline: 0 }.pack(), sys::ANY)?;
        let tidied = self.forget_other(generation).and_then(|()| self.settle_classes(generation));
        // It is in force for good, whatever is left of the one before; then the next one is written whole, which clears that away.
        self.whole = tidied.is_ok();
        if let Err(error) = tidied {
            tracing::warn!(%error, "the policy is confirmed; a part of the one before could not be taken out of the tables");
        }
        Ok(generation)
    }

    /// Ends the policy on trial before its time. Gives the generation that is live again.
    ///
    /// # Errors
    /// [`Error::NothingPending`], also where its time ran out.
    pub fn roll_back(&mut self) -> Result<u32, Error> {
        match self.settle()? {
            Settled::Pending(_) => self.back(),
            _ => Err(Error::NothingPending),
        }
    }

    fn back(&mut self) -> Result<u32, Error> {
        let gone = self.live()?.generation;
        let previous = self.configs.get(&(!gone & 1))?.unwrap_or_default().generation;
        self.live.set(&0, &Live { generation: previous, deadline: 0 }.pack(), sys::ANY)?;
        let mut changed = Vec::new();
        for index in 1..self.grants.capacity() {
            let entry = self.grants.get(&index)?.unwrap_or_default();
            if entry.from == gone {
                changed.push((index, GrantEntry::default()));
            } else if entry.until == previous && entry.from != 0 {
                changed.push((index, GrantEntry { until: u32::MAX, ..entry }));
            }
        }
        self.grants.set_all(&changed)?;
        let index = std::mem::take(&mut self.previous_index);
        self.forget_other(previous)?;
        self.restore_classes(gone)?;
        // Nothing was changed in it meanwhile; only where its classes are is not known after a restart.
        self.whole = !index.is_empty();
        self.class_index = index;
        Ok(previous)
    }
}
