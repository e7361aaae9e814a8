//! The one way in which the policy changes while the daemon runs: `apply`, `rollback`, changed files, SIGHUP and other
//! resolvers all parse, check, compile, install beside the old policy, verify and flip, or change nothing.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use egress_ebpf::abi::{TICK_SHIFT, Ticks};
use nix::time::{ClockId, clock_gettime};

use super::{
    Base, Core, NotReady, Ready, allow_private, asked,
    recent::Gone,
    resolve_settings,
    store::{Applied, Store, Stored},
};
use crate::{
    api::{Cut, Texts},
    datapath::{Error, Settled},
    policy::{Compiled, Diff, DomainName},
    resolve::{
        Refresher, Resolver,
        system::{self, SystemResolvers},
    },
};

/// Why the kernel went back by itself.
const NOT_CONFIRMED: &str = "it was not confirmed in time";
/// A pause before what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// The subject of what is told about that.
const STATE: &str = "state";

/// How long it is until a tick.
fn until(tick: Ticks) -> Duration {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    Duration::from_nanos(u64::from(tick) << TICK_SHIFT).saturating_sub(now)
}

/// Changes the running policy.
pub struct Changer {
    pub(super) core: Arc<Core>,
    pub(super) base: Base,
    resolver: Resolver,
    refresher: Arc<Refresher>,
    pub(super) store: Store,
    /// Held throughout a change: changes come one after the other.
    state: Mutex<State>,
    /// There is something else to mind, or nothing more.
    turned: Condvar,
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
    /// What a restart must know and could not be written.
    unkept: Option<Stored>,
    /// A thread waits for the end of what there is to mind.
    minded: bool,
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
        let state = Mutex::new(State {
            system,
            now,
            applied,
            over,
            before,
            trial,
            missed: None,
            unkept: None,
            minded: false,
            compiled: true,
        });
        let changer =
            Arc::new(Self { core: Arc::clone(core), base, resolver, refresher, store, state, turned: Condvar::new() });
        core.set_applied(applied);
        if trial {
            match core.with_datapath(|datapath| datapath.settle()) {
                Ok(Settled::Pending(deadline)) => {
                    core.set_deadline(deadline);
                    changer.mind(&mut changer.state());
                }
                // Its time ran out after the start looked.
                _ => changer.went_back(&mut changer.state(), NOT_CONFIRMED),
            }
        }
        changer
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Up to date with the kernel, where a policy's time ran out.
    pub(super) fn settled(self: &Arc<Self>) -> MutexGuard<'_, State> {
        let mut state = self.state();
        self.finish_trial(&mut state);
        state
    }

    /// The running state.
    pub fn core(&self) -> &Core {
        &self.core
    }

    /// Reads the files again: they are the latest word, also over what was applied. `false` where that was refused.
    pub fn reload(self: &Arc<Self>) -> bool {
        // Before the state is locked: a file system may not answer.
        let files = self.base.texts();
        let system = system::read(&system::Paths::default());
        let mut state = self.settled();
        if let Ok(system) = system {
            Self::know(&mut state, system);
        }
        if state.trial {
            self.core.refused(&Error::Unconfirmed.to_string());
            return false;
        }
        self.take_files(&mut state, files)
    }

    /// [`Changer::reload`] for files that changed by themselves. While a policy is on trial they wait for its end: `confirm`
    /// is a later word than theirs, the policy before the trial an earlier one.
    pub fn files_changed(self: &Arc<Self>) {
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

    fn take_files(self: &Arc<Self>, state: &mut State, files: Result<Texts, NotReady>) -> bool {
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
    pub fn set_system(self: &Arc<Self>, system: SystemResolvers) {
        let mut state = self.settled();
        Self::know(&mut state, system);
        // A policy on trial keeps its resolvers until it is decided.
        if !state.trial {
            self.refresh(&mut state);
        }
    }

    fn know(state: &mut State, system: SystemResolvers) {
        if state.system.as_ref() != Some(&system) {
            state.system = Some(system);
            state.compiled = false;
        }
    }

    /// Where the system has other resolvers than what is in force was compiled with.
    pub(super) fn refresh(&self, state: &mut State) {
        if state.compiled {
            return;
        }
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
        self: &Arc<Self>,
        state: &mut State,
        ready: Ready,
        applied: bool,
        wait: Option<Duration>,
    ) -> Result<Vec<String>, Error> {
        let Ready { texts, policy, settings } = ready;
        // Kept first: a daemon that is killed right after the flip must find the text of what the kernel judges by then.
        let mut stored = Stored { trial: Some(texts.clone()), ..self.stored(state) };
        let mut unkept = self.keep(state, stored.clone());
        if let Err(error) = self.core.install_for(policy, texts.names(), settings, wait) {
            stored.trial = None;
            // Where this fails too the next start sees that the kernel has it not.
            self.keep(state, stored);
            return Err(error);
        }
        state.compiled = true;
        let unchanged = texts == state.now && wait.is_none();
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
        state.trial = wait.is_some();
        if wait.is_none() {
            stored = self.stored(state);
            unkept = self.keep(state, stored);
        }
        self.in_force();
        self.mind(state);
        Ok(unkept.into_iter().collect())
    }

    /// Writes down what a restart takes up. What could not be written is told, also by `status` and in the log, and tried again.
    pub(super) fn keep(self: &Arc<Self>, state: &mut State, stored: Stored) -> Option<String> {
        let error = self.store.write(&stored).err();
        let told = error.map(|error| format!("a restart will not know of this change: {error}; it is tried again"));
        self.core.set_note(STATE, told.clone());
        state.unkept = told.is_some().then_some(stored);
        self.mind(state);
        told
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
        self.core.note_resolvers();
        tracing::info!(generation = self.core.active().installed.generation, "a policy was put in force");
    }

    /// Has the names asked for that the policy in force has, where it says.
    fn ask(&self) {
        let active = self.core.active();
        let resolvers = asked(&active.settings);
        let are_others = self.resolver.resolvers() != resolvers;
        self.resolver.set_resolvers(&resolvers);
        self.refresher.reconfigure(resolve_settings(&active.policy), allow_private(&active.policy));
        self.refresher.set_names(active.policy.exact_names.iter().map(DomainName::as_str));
        if are_others {
            self.refresher.retry_now();
        }
    }

    /// Follows the kernel where a policy's time ran out.
    pub(super) fn finish_trial(self: &Arc<Self>, state: &mut State) {
        if state.trial && !matches!(self.core.with_datapath(|datapath| datapath.settle()), Ok(Settled::Pending(_))) {
            self.went_back(state, NOT_CONFIRMED);
        }
    }

    /// The kernel judges by the policy before again: so does the daemon.
    pub(super) fn went_back(self: &Arc<Self>, state: &mut State, why: &str) {
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
        let stored = self.stored(state);
        self.keep(state, stored);
        self.in_force();
        if let Some(files) = state.missed.take() {
            self.take_files(state, files);
        }
    }

    /// Sees to it that somebody waits for the end of a policy's trial, and for a disk that takes what could not be written; and
    /// that nobody does where there is no such thing (any more).
    pub(super) fn mind(self: &Arc<Self>, state: &mut State) {
        if state.minded {
            self.turned.notify_all();
        } else if state.trial || state.unkept.is_some() {
            let changer = Arc::clone(self);
            let wait = move || changer.wait(changer.state());
            // The kernel judges; this thread only tidies up, so that a failure to start it costs nothing but time.
            state.minded = thread::Builder::new().name("changes".to_owned()).spawn(wait).is_ok();
        }
    }

    fn wait(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        loop {
            self.finish_trial(&mut state);
            if let Some(stored) = state.unkept.clone()
                && self.keep(&mut state, stored).is_none()
            {
                tracing::info!("a restart will know of the last change after all");
            }
            let deadline = self.core.deadline().filter(|_| state.trial).map(until);
            let again = state.unkept.is_some().then_some(AGAIN);
            let Some(time) = deadline.into_iter().chain(again).min() else { break };
            (state, _) = self.turned.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner);
        }
        state.minded = false;
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
