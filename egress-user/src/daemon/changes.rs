//! What the running state knows of changes under way: the policy on trial, and who may change it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use egress_ebpf::abi::{TICK_SHIFT, Ticks};

use super::{Active, Attempt, Core, state::lock};
use crate::{
    api::Change,
    datapath::{Datapath, Error, Settings},
    policy::Compiled,
};

/// Subjects of notes that tell of what the daemon must have: what it enforces now would not outlast it.
const GRAVE: [&str; 1] = ["state"];

/// Part of [`Core`].
#[derive(Default)]
pub(super) struct Changes {
    changer: OnceLock<Box<dyn Change>>,
    applied: AtomicBool,
    deadline: Mutex<Option<Ticks>>,
    /// The policy to go back to, where this daemon installed the one on trial.
    previous: Mutex<Option<Arc<Active>>>,
    /// What does not work and stops nothing, by subject, for `status`.
    notes: Mutex<BTreeMap<&'static str, String>>,
}

impl Changes {
    pub fn changer(&self) -> Option<&dyn Change> {
        self.changer.get().map(|changer| &**changer)
    }

    pub fn applied(&self) -> bool {
        self.applied.load(Ordering::Relaxed)
    }

    pub fn previous(&self) -> Option<Arc<Active>> {
        lock(&self.previous).clone()
    }

    /// For `status`, beside the machine's warnings.
    pub fn notes(&self) -> Vec<String> {
        let notes = lock(&self.notes);
        notes.iter().filter(|(subject, _)| !GRAVE.contains(subject)).map(|(_, note)| note.clone()).collect()
    }

    /// Those with which the daemon is not healthy.
    pub fn problems(&self) -> Vec<String> {
        let notes = lock(&self.notes);
        notes.iter().filter(|(subject, _)| GRAVE.contains(subject)).map(|(_, note)| note.clone()).collect()
    }

    /// Rounded up, so that it is not 0 while it waits.
    pub fn seconds_left(&self, now: Ticks) -> Option<u64> {
        let deadline = (*lock(&self.deadline))?;
        Some((u64::from(deadline.saturating_sub(now)) << TICK_SHIFT).div_ceil(1_000_000_000))
    }

    /// A policy is in force: for good, or until a tick, with the one to go back to.
    pub fn begin(&self, trial: Option<(Ticks, Arc<Active>)>) {
        let (deadline, previous) = trial.unzip();
        *lock(&self.deadline) = deadline;
        *lock(&self.previous) = previous;
    }
}

impl Core {
    /// Lets the control socket change the policy.
    pub fn set_changer(&self, changer: Box<dyn Change>) {
        let _ = self.changes.changer.set(changer);
    }

    /// Whether the policy in force came by `egress apply`, for `status`.
    pub fn set_applied(&self, applied: bool) {
        self.changes.applied.store(applied, Ordering::Relaxed);
    }

    /// Something does not work (any more), or works (again): told once in the log, and shown by `status` as long as it is so.
    pub fn set_note(&self, subject: &'static str, note: Option<String>) {
        let mut notes = lock(&self.changes.notes);
        match note {
            Some(note) => {
                if notes.get(subject) != Some(&note) {
                    tracing::warn!("{note}");
                }
                notes.insert(subject, note);
            }
            None => drop(notes.remove(subject)),
        }
    }

    /// A policy that an earlier daemon put on trial is waited for.
    pub fn set_deadline(&self, deadline: Ticks) {
        *lock(&self.changes.deadline) = Some(deadline);
    }

    /// Until when the policy on trial is in force.
    pub(super) fn deadline(&self) -> Option<Ticks> {
        *lock(&self.changes.deadline)
    }

    /// Asks the maps, or changes them.
    pub fn with_datapath<T>(&self, with: impl FnOnce(&mut Datapath) -> T) -> T {
        with(&mut lock(&self.datapath))
    }

    /// The start of what this is the state of is over: see [`Attempt`].
    pub fn succeeded(&self, attempt: Attempt) -> Result<(), Error> {
        let attached = lock(&self.attached);
        self.with_datapath(|datapath| attempt.succeed(datapath, &attached))
    }

    /// Keeps the policy on trial; gives its generation.
    pub fn confirm(&self) -> Result<u32, Error> {
        let generation = self.with_datapath(Datapath::confirm)?;
        self.changes.begin(None);
        let Active { policy, files, installed, settings } = &*self.active();
        let (policy, installed, settings) = (Arc::clone(policy), installed.clone(), settings.clone());
        self.took(Active { policy, files: files.clone(), installed, settings }, "confirmed".to_owned());
        Ok(generation)
    }

    /// Follows the kernel, which judges by this policy again.
    pub fn take_back(&self, policy: Compiled, files: Vec<String>, settings: Settings, why: &str) -> Result<(), Error> {
        self.changes.begin(None);
        let adopted = self.with_datapath(|datapath| datapath.adopt(&policy, &settings))?;
        let Some(installed) = adopted else {
            // The resolvers changed meanwhile, or its text means something else to this version.
            return self.install(policy, files, settings);
        };
        tracing::warn!(why, "the policy before is in force again");
        let message = format!("policy {:016x} is in force again: {why}", policy.hash);
        self.took(Active { policy: Arc::new(policy), files, installed, settings }, message);
        Ok(())
    }

    /// [`Core::same`] for the policy in force itself: whether the kernel has it still.
    pub(super) fn is_in_force(&self) -> Result<bool, Error> {
        let active = self.active();
        self.same(&active.policy, &active.files, &active.settings)
    }

    /// Whether this very policy is in force: then nothing is written, and only where its rules stand is noted anew.
    pub(super) fn same(&self, policy: &Arc<Compiled>, files: &[String], settings: &Settings) -> Result<bool, Error> {
        let active = self.active();
        if active.policy.hash != policy.hash || active.settings != *settings {
            return Ok(false);
        }
        // The hash has no order, the kernel's tables do.
        let adopted = self.with_datapath(|datapath| match datapath.live()?.deadline {
            0 => datapath.adopt(policy, settings),
            _ => Ok(None),
        })?;
        let Some(installed) = adopted else { return Ok(false) };
        let message = format!("policy {:016x} is in force already", policy.hash);
        self.took(
            Active { policy: Arc::clone(policy), files: files.to_vec(), installed, settings: settings.clone() },
            message,
        );
        Ok(true)
    }
}
