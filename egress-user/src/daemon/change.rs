//! The one way in which the policy changes while the daemon runs: `apply`, `rollback`, changed files, SIGHUP and other
//! resolvers all parse, check, compile, install beside the old policy, verify and flip, or change nothing.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use egress_ebpf::abi::Ticks;

use super::{
    Base, Core, NotReady, Ready, allow_private, asked,
    recent::Gone,
    resolve_settings,
    store::{Applied, Store, Stored},
};
use crate::{
    api::{Cut, Texts},
    datapath::{Error, Settled, boot_ticks},
    policy::{Compiled, Diff, DomainName},
    resolve::{Refresher, Resolver, system::SystemResolvers},
};

/// Changes the running policy.
pub struct Changer {
    pub(super) core: Arc<Core>,
    pub(super) base: Base,
    resolver: Resolver,
    refresher: Arc<Refresher>,
    pub(super) store: Store,
    /// Held throughout a change: changes come one after the other.
    state: Mutex<State>,
}

pub(super) struct State {
    pub system: Option<SystemResolvers>,
    /// In force.
    now: Texts,
    /// `now` came by `apply`, not from the files of the command line.
    applied: bool,
    /// What the files said when they were read last; none where that is `now`.
    pub over: Option<Texts>,
    /// What `rollback` goes back to, and whether it came by `apply`.
    pub before: Option<(Texts, bool)>,
    /// `now` is on trial.
    pub trial: bool,
    /// What the files say since they changed while `now` was on trial.
    pub missed: Option<Result<Texts, NotReady>>,
    /// What is in force is what `now` means with the resolvers of `system`.
    compiled: bool,
}

impl Changer {
    /// `stored` is what this daemon took up; `now` is in force.
    pub fn new(
        core: &Arc<Core>,
        base: Base,
        asking: (Resolver, Arc<Refresher>),
        store: Store,
        (now, system): (Texts, Option<SystemResolvers>),
        (stored, trial): (Stored, bool),
    ) -> Arc<Self> {
        let (resolver, refresher) = asking;
        let applied = trial || stored.applied.as_ref().is_some_and(|applied| applied.texts == now);
        let over = match (stored.applied, &stored.before) {
            (Some(applied), _) => Some(applied.over),
            // The policy before the one on trial is the files'.
            (None, Some(before)) if trial => Some(before.clone()),
            _ => None,
        };
        let before = stored.before.map(|texts| (texts, stored.before_applied));
        let state = Mutex::new(State { system, now, applied, over, before, trial, missed: None, compiled: true });
        let changer = Arc::new(Self { core: Arc::clone(core), base, resolver, refresher, store, state });
        core.set_applied(applied);
        if trial && let Ok(Settled::Pending(deadline)) = core.with_datapath(|datapath| datapath.settle()) {
            core.set_deadline(deadline);
            changer.watch(deadline);
        }
        changer
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to date with the kernel, where a policy's time ran out.
    pub(super) fn settled(&self) -> MutexGuard<'_, State> {
        let mut state = self.state();
        self.finish_trial(&mut state);
        state
    }

    /// The running state.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Reads the files again: they are the latest word, also over what was applied. `false` where that was refused.
    pub fn reload(&self) -> bool {
        // Before the state is locked: a file system may not answer.
        let files = self.base.texts();
        let mut state = self.settled();
        if state.trial {
            self.core.refused(&Error::Unconfirmed.to_string());
            return false;
        }
        self.take_files(&mut state, files)
    }

    /// [`Changer::reload`] for files that changed by themselves. While a policy is on trial they wait for its end: `confirm`
    /// is a later word than theirs, the policy before the trial an earlier one.
    pub fn files_changed(&self) {
        let files = self.base.texts();
        let mut state = self.settled();
        if state.trial {
            tracing::warn!("the policy files changed while a policy is on trial: they are read if it goes");
            state.missed = Some(files);
        } else if !Self::says_the_same(&state, &files) {
            self.take_files(&mut state, files);
        }
    }

    /// Whether the files say what is in force: what they mean would be the same too.
    fn says_the_same(state: &State, files: &Result<Texts, NotReady>) -> bool {
        state.compiled && !state.applied && !state.trial && files.as_ref().is_ok_and(|files| *files == state.now)
    }

    fn take_files(&self, state: &mut State, files: Result<Texts, NotReady>) -> bool {
        if Self::says_the_same(state, &files) && matches!(self.core.is_in_force(), Ok(true)) {
            self.ask();
            let generation = self.core.active().installed.generation;
            tracing::info!(generation, "the policy files say what is in force: nothing was changed");
            return true;
        }
        let ready = files.and_then(|files| {
            let ready = self.base.compile(&files, state.system.as_ref());
            state.over = Some(files);
            ready
        });
        match ready {
            Ok(ready) => {
                let put = self.put(state, ready, false, None).is_ok();
                if put {
                    state.over = None;
                }
                put
            }
            Err(error) => {
                tracing::error!("the policy files were changed, and refused; the old policy stays in force: {error}");
                self.core.refused(&error.to_string());
                false
            }
        }
    }

    /// The system has other resolvers: the same policy, with these.
    pub fn set_system(&self, system: SystemResolvers) {
        let mut state = self.state();
        state.system = Some(system);
        self.finish_trial(&mut state);
        // A policy on trial keeps its resolvers until it is decided.
        if !state.trial {
            self.refresh(&mut state);
        }
    }

    fn refresh(&self, state: &mut State) {
        state.compiled = false;
        match self.base.compile(&state.now, state.system.as_ref()) {
            Ok(Ready { policy, settings, .. }) => {
                if self.core.install(policy, state.now.names(), settings).is_ok() {
                    state.compiled = true;
                    self.in_force();
                }
            }
            Err(error) => self.core.refused(&error.to_string()),
        }
    }

    /// Installs a policy and keeps its text. What could not be kept is told as a warning.
    pub(super) fn put(
        &self,
        state: &mut State,
        ready: Ready,
        applied: bool,
        deadline: Option<Ticks>,
    ) -> Result<Vec<String>, Error> {
        let Ready { texts, policy, settings } = ready;
        // Kept first: a daemon that is killed right after the flip must find the text of what the kernel judges by then.
        let mut stored = Stored { trial: Some(texts.clone()), ..self.stored(state) };
        let mut kept = self.store.write(&stored);
        if let Err(error) = self.core.install_until(policy, texts.names(), settings, deadline.unwrap_or(0)) {
            stored.trial = None;
            // Where this fails too the next start sees that the kernel has it not.
            let _ = self.store.write(&stored);
            return Err(error);
        }
        state.compiled = true;
        let unchanged = texts == state.now && deadline.is_none();
        let old = std::mem::replace(&mut state.now, texts);
        let was_applied = std::mem::replace(&mut state.applied, applied);
        if !was_applied && state.over.is_none() {
            state.over = Some(old.clone());
        }
        // `rollback` undoes the last change; what says the same is none.
        if !unchanged {
            state.before = Some((old, was_applied));
        }
        self.core.set_applied(applied);
        state.trial = deadline.is_some();
        if deadline.is_none() {
            stored = self.stored(state);
            kept = self.store.write(&stored);
        }
        self.in_force();
        Ok(kept.err().map(|error| format!("a restart will not know of this change: {error}")).into_iter().collect())
    }

    /// What a restart takes up, while nothing is on trial.
    pub(super) fn stored(&self, state: &State) -> Stored {
        Stored {
            applied: state
                .applied
                .then(|| Applied { texts: state.now.clone(), over: state.over.clone().unwrap_or_default() }),
            before: state.before.as_ref().map(|(texts, _)| texts.clone()),
            before_applied: state.before.as_ref().is_some_and(|(_, applied)| *applied),
            trial: None,
        }
    }

    fn in_force(&self) {
        self.ask();
        tracing::info!(generation = self.core.active().installed.generation, "a policy was put in force");
    }

    /// Has the names asked for that the policy in force has, where it says.
    fn ask(&self) {
        let active = self.core.active();
        self.resolver.set_resolvers(&asked(&active.settings));
        self.refresher.reconfigure(resolve_settings(&active.policy), allow_private(&active.policy));
        self.refresher.set_names(active.policy.exact_names.iter().map(DomainName::as_str));
        self.refresher.retry_now();
    }

    /// Follows the kernel where a policy's time ran out.
    pub(super) fn finish_trial(&self, state: &mut State) {
        if state.trial && !matches!(self.core.with_datapath(|datapath| datapath.settle()), Ok(Settled::Pending(_))) {
            self.went_back(state, "it was not confirmed in time");
        }
    }

    /// The kernel judges by the policy before again: so does the daemon.
    pub(super) fn went_back(&self, state: &mut State, why: &str) {
        let Some((texts, applied)) = state.before.take() else { return };
        state.now = texts;
        state.applied = applied;
        state.trial = false;
        state.compiled = false;
        match self.base.compile(&state.now, state.system.as_ref()) {
            Ok(Ready { policy, settings, .. }) => {
                if let Err(error) = self.core.take_back(policy, state.now.names(), settings, why) {
                    tracing::error!(%error, "cannot follow the policy that the kernel went back to");
                } else {
                    state.compiled = true;
                }
            }
            Err(error) => self.core.refused(&error.to_string()),
        }
        self.core.set_applied(state.applied);
        if let Err(error) = self.store.write(&self.stored(state)) {
            tracing::warn!(%error, "a restart will not know of the rollback");
        }
        self.in_force();
        if let Some(files) = state.missed.take() {
            self.take_files(state, files);
        }
    }

    /// Wakes up when the deadline has passed.
    pub(super) fn watch(self: &Arc<Self>, deadline: Ticks) {
        let changer = Arc::downgrade(self);
        // The kernel judges; this thread only tidies up, so that a failure to start it costs nothing but time.
        let _ = thread::Builder::new().name("confirm".to_owned()).spawn(move || {
            while boot_ticks() < deadline {
                thread::sleep(Duration::from_millis(100));
            }
            if let Some(changer) = changer.upgrade() {
                changer.finish_trial(&mut changer.state());
            }
        });
    }

    /// What was reached lately and will not be any more; `None` where the change takes nothing away.
    pub(super) fn cut(&self, diff: &Diff, policy: &Compiled) -> Option<Cut> {
        let stricter = diff.settings.iter().any(|setting| setting.key == "mode" && setting.after == "enforce");
        if diff.lost.is_empty() && diff.denied.is_empty() && !stricter {
            return None;
        }
        Some(self.core.cut_by(policy))
    }

    /// What traffic ends with the rules that go.
    pub(super) fn cuts(&self, diff: &Diff, policy: &Compiled) -> Vec<String> {
        let mut warnings = Vec::new();
        if diff.settings.iter().any(|setting| setting.key == "mode" && setting.after == "audit") {
            warnings.push("audit lets everything pass: nothing will be dropped any more".to_owned());
        }
        let hits = self.core.hits_of_gone(policy);
        let lost = |rule: &String| diff.lost.iter().any(|opening| opening.rules.contains(rule));
        warnings.extend(hits.into_iter().filter(|gone| lost(&gone.rule)).map(|Gone { rule, item, packets, lately }| {
            match lately {
                0 => format!("`{item}` of rule `{rule}` goes, by which {packets} packets passed, none of them lately"),
                _ => format!(
                    "`{item}` of rule `{rule}` goes, by which {lately} packets passed in the last 5 minutes, {packets} in all"
                ),
            }
        }));
        warnings
    }
}
