//! The one way in which the policy changes while the daemon runs: `apply`, `rollback`, SIGHUP and other resolvers all parse,
//! check, compile, install beside the old policy, verify and flip, or change nothing.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use egress_ebpf::abi::Ticks;

use super::{
    Believe, Core, resolvers,
    store::{Applied, Store, Stored},
};
use crate::{
    api::{ApplyRequest, Change, ChangeError, Changed, Texts},
    datapath::{Error, Settings, Settled, boot_ticks, deadline_after, netns_cookie},
    policy::{self, Compiled, Diff, DomainName, PolicyError, Resolvers, Sources},
    resolve::{self, Refresher, Resolver, system::SystemResolvers},
};

/// The longest time that a policy may wait for its confirmation.
const CONFIRM_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What the command line of `egress run` says of every policy.
#[derive(Clone, Debug)]
pub struct Base {
    /// Files, directories, embedded names, `--allow`, `--set`, `--mode` and `--resolver`.
    pub sources: Sources,
    /// Where answers can be believed.
    pub believe: Believe,
    /// The governed cgroup's depth and id.
    pub cgroup: (u32, u64),
}

/// A policy that may be installed.
pub struct Ready {
    /// Its text.
    pub texts: Texts,
    /// It.
    pub policy: Compiled,
    /// What a generation of it needs besides.
    pub settings: Settings,
}

/// Why a policy is not [`Ready`].
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("{}", policy::render_all(&.0.diagnostics, &.0.files, false))]
    Policy(#[from] PolicyError),
    #[error("{0}: give one with `--resolver ADDR` or `dns.resolvers`")]
    NoResolver(&'static str),
}

impl Base {
    /// Reads the files that the command line names.
    pub fn read(&self, system: Option<&SystemResolvers>) -> Result<(Ready, policy::Loaded), NotReady> {
        let sources = Sources { internal: search_domains(system), ..self.sources.clone() };
        let loaded = policy::load(&sources)?;
        let files = loaded.files.iter().map(|file| (file.name.clone(), file.text.clone())).collect();
        let texts = Texts { files, allow: sources.allow, set: sources.set };
        let settings = settings(&loaded.compiled, system, self.believe, self.cgroup)?;
        Ok((Ready { texts, policy: loaded.compiled.clone(), settings }, loaded))
    }

    /// Compiles a policy that came as text.
    pub fn compile(&self, texts: &Texts, system: Option<&SystemResolvers>) -> Result<Ready, NotReady> {
        let sources = Sources {
            policies: Vec::new(),
            texts: texts.files.clone(),
            allow: texts.allow.clone(),
            set: texts.set.clone(),
            internal: search_domains(system),
            ..self.sources.clone()
        };
        let policy = policy::load(&sources)?.compiled;
        let settings = settings(&policy, system, self.believe, self.cgroup)?;
        Ok(Ready { texts: texts.clone(), policy, settings })
    }
}

/// What a generation needs besides its policy. `cgroup` is the level and the id of the governed one.
///
/// # Errors
/// No resolver is named anywhere.
pub fn settings(
    policy: &Compiled,
    system: Option<&SystemResolvers>,
    believe: Believe,
    cgroup: (u32, u64),
) -> Result<Settings, NotReady> {
    let resolvers = resolvers(policy, system, believe);
    if resolvers.is_empty() {
        return Err(NotReady::NoResolver(match policy.dns.resolvers {
            Resolvers::System => "/etc/resolv.conf names no resolver",
            Resolvers::Addresses(_) => "the policy names no resolver",
        }));
    }
    let (cgroup_level, cgroup_id) = cgroup;
    Ok(Settings { resolvers, cgroup_level, cgroup_id, teaching_netns: netns_cookie() })
}

/// The host's search domains, as names that may be asked.
pub fn search_domains(system: Option<&SystemResolvers>) -> Vec<DomainName> {
    system.into_iter().flat_map(|system| &system.search).filter_map(|name| DomainName::parse(name).ok()).collect()
}

/// The resolvers to ask, which is all that are trusted.
pub fn asked(settings: &Settings) -> Vec<std::net::SocketAddr> {
    settings.resolvers.iter().map(|resolver| resolver.address).collect()
}

/// How names are kept under a policy.
pub fn resolve_settings(policy: &Compiled) -> resolve::Settings {
    resolve::Settings {
        min_ttl: policy.dns.min_ttl,
        grace: policy.dns.grace,
        max_stale: policy.dns.max_stale,
        ..resolve::Settings::default()
    }
}

/// Which names may have private addresses under a policy.
pub fn allow_private(policy: &Compiled) -> resolve::AllowPrivate {
    let patterns = policy.dns.allow_private.clone();
    Arc::new(move |name| {
        DomainName::parse(name).is_ok_and(|name| patterns.iter().any(|pattern| pattern.matches(&name)))
    })
}

/// Changes the running policy.
pub struct Changer {
    core: Arc<Core>,
    base: Base,
    resolver: Resolver,
    refresher: Arc<Refresher>,
    store: Store,
    /// Held throughout a change: changes come one after the other.
    state: Mutex<State>,
}

struct State {
    system: Option<SystemResolvers>,
    /// In force.
    now: Texts,
    /// `now` came by `apply`, not from the files of the command line.
    applied: bool,
    /// What `rollback` goes back to, and whether it came by `apply`.
    before: Option<(Texts, bool)>,
    /// `now` is on trial.
    trial: bool,
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
        let before = stored.before.map(|texts| (texts, stored.before_applied));
        let state = Mutex::new(State { system, now, applied, before, trial });
        let changer = Arc::new(Self { core: Arc::clone(core), base, resolver, refresher, store, state });
        core.set_applied(applied);
        if trial && let Ok(Settled::Pending(deadline)) = core.with_datapath(|datapath| datapath.settle()) {
            core.set_deadline(deadline);
            changer.watch(deadline);
        }
        changer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the files again: they are the latest word, also over what was applied. `false` where that was refused.
    pub fn reload(&self) -> bool {
        let mut state = self.state();
        self.finish_trial(&mut state);
        if state.trial {
            self.core.refused(&Error::Unconfirmed.to_string());
            return false;
        }
        match self.base.read(state.system.as_ref()) {
            Ok((ready, _)) => {
                let done = self.put(&mut state, ready, false, None).is_ok();
                self.core.set_applied(state.applied);
                done
            }
            Err(error) => {
                tracing::error!("{error}");
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
        match self.base.compile(&state.now, state.system.as_ref()) {
            Ok(Ready { policy, settings, .. }) => {
                if self.core.install(policy, state.now.names(), settings).is_ok() {
                    self.in_force();
                }
            }
            Err(error) => self.core.refused(&error.to_string()),
        }
    }

    /// Installs a policy and keeps its text. What could not be kept is told as a warning.
    fn put(
        &self,
        state: &mut State,
        ready: Ready,
        applied: bool,
        deadline: Option<Ticks>,
    ) -> Result<Vec<String>, Error> {
        let Ready { texts, policy, settings } = ready;
        // Kept first where it goes on trial: a daemon that is killed right after the flip must find it.
        let mut stored = Stored { trial: Some(texts.clone()), ..self.stored(state) };
        let mut kept = if deadline.is_some() { self.store.write(&stored) } else { Ok(()) };
        self.core.install_until(policy, texts.names(), settings, deadline.unwrap_or(0))?;
        let old = std::mem::replace(&mut state.now, texts);
        state.before = Some((old, std::mem::replace(&mut state.applied, applied)));
        state.trial = deadline.is_some();
        if deadline.is_none() {
            stored = self.stored(state);
            kept = self.store.write(&stored);
        }
        self.in_force();
        Ok(kept.err().map(|error| format!("a restart will not know of this change: {error}")).into_iter().collect())
    }

    /// What a restart takes up, while nothing is on trial.
    fn stored(&self, state: &State) -> Stored {
        let over = self.base.read(state.system.as_ref()).map(|(ready, _)| ready.texts).unwrap_or_default();
        Stored {
            applied: state.applied.then(|| Applied { texts: state.now.clone(), over }),
            before: state.before.as_ref().map(|(texts, _)| texts.clone()),
            before_applied: state.before.as_ref().is_some_and(|(_, applied)| *applied),
            trial: None,
        }
    }

    fn in_force(&self) {
        let active = self.core.active();
        self.resolver.set_resolvers(&asked(&active.settings));
        self.refresher.reconfigure(resolve_settings(&active.policy), allow_private(&active.policy));
        self.refresher.set_names(active.policy.exact_names.iter().map(DomainName::as_str));
        self.refresher.retry_now();
        tracing::info!(generation = active.installed.generation, "a policy was put in force");
    }

    /// Follows the kernel where a policy's time ran out.
    fn finish_trial(&self, state: &mut State) {
        if state.trial && !matches!(self.core.with_datapath(|datapath| datapath.settle()), Ok(Settled::Pending(_))) {
            self.went_back(state, "it was not confirmed in time");
        }
    }

    /// The kernel judges by the policy before again: so does the daemon.
    fn went_back(&self, state: &mut State, why: &str) {
        let Some((texts, applied)) = state.before.take() else { return };
        state.now = texts;
        state.applied = applied;
        state.trial = false;
        match self.base.compile(&state.now, state.system.as_ref()) {
            Ok(Ready { policy, settings, .. }) => {
                if let Err(error) = self.core.take_back(policy, state.now.names(), settings, why) {
                    tracing::error!(%error, "cannot follow the policy that the kernel went back to");
                }
            }
            Err(error) => self.core.refused(&error.to_string()),
        }
        self.core.set_applied(state.applied);
        if let Err(error) = self.store.write(&self.stored(state)) {
            tracing::warn!(%error, "a restart will not know of the rollback");
        }
        self.in_force();
    }

    /// Wakes up when the deadline has passed.
    fn watch(self: &Arc<Self>, deadline: Ticks) {
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

    /// What traffic ends with the rules that go.
    fn cuts(&self, diff: &Diff, policy: &Compiled) -> Vec<String> {
        let mut warnings = Vec::new();
        if diff.settings.iter().any(|setting| setting.key == "mode" && setting.after == "audit") {
            warnings.push("audit lets everything pass: nothing will be dropped any more".to_owned());
        }
        let hits = self.core.hits_of_gone(policy);
        let lost = |rule: &String| diff.lost.iter().any(|opening| opening.rules.contains(rule));
        warnings.extend(hits.into_iter().filter(|(rule, ..)| lost(rule)).map(|(rule, item, packets)| {
            format!("`{item}` of rule `{rule}` goes, by which {packets} packets passed: its connections are cut")
        }));
        warnings
    }
}

fn conflict(message: impl Into<String>, hint: &str) -> ChangeError {
    ChangeError::Conflict { message: message.into(), hint: hint.to_owned() }
}

/// A policy that a client sent is wrong, or does not fit; a policy on trial is in the way.
fn failed(error: Error) -> ChangeError {
    match error {
        Error::Unconfirmed => conflict(
            "a policy is on trial",
            "`egress confirm` keeps it, `egress rollback` ends it; then apply the next one",
        ),
        Error::NothingPending => {
            conflict("no policy waits for a confirmation", "`egress status` shows what is in force")
        }
        error => ChangeError::Wrong(error.to_string()),
    }
}

/// One handle for the control socket: [`Change`] needs the `Arc` for the thread that watches a deadline.
pub struct Handle(pub Arc<Changer>);

impl Change for Handle {
    fn apply(&self, request: &ApplyRequest) -> Result<Changed, ChangeError> {
        let changer = &self.0;
        let mut state = changer.state();
        changer.finish_trial(&mut state);
        let wait = request.confirm_seconds.map(Duration::from_secs);
        if wait.is_some_and(|wait| wait < Duration::from_secs(2) || wait > CONFIRM_MAX) {
            return Err(ChangeError::Wrong("a confirmation takes from 2s to 24h".to_owned()));
        }
        let ready = changer.base.compile(&request.texts, state.system.as_ref()).map_err(|error| {
            if !request.dry_run {
                changer.core.refused(&error.to_string());
            }
            ChangeError::Wrong(error.to_string())
        })?;
        let active = changer.core.active();
        let diff = Diff::new(&active.policy, &ready.policy);
        let mut warnings = changer.cuts(&diff, &ready.policy);
        if request.dry_run {
            let generation = active.installed.generation;
            return Ok(Changed { generation, diff, warnings, ..Changed::default() });
        }
        if state.trial {
            return Err(failed(Error::Unconfirmed));
        }
        let deadline = wait.map(deadline_after);
        warnings.extend(changer.put(&mut state, ready, true, deadline).map_err(failed)?);
        changer.core.set_applied(true);
        if let Some(deadline) = deadline {
            changer.watch(deadline);
        }
        let generation = changer.core.active().installed.generation;
        Ok(Changed { applied: true, generation, diff, warnings, confirm_seconds: request.confirm_seconds })
    }

    fn confirm(&self) -> Result<Changed, ChangeError> {
        let changer = &self.0;
        let mut state = changer.state();
        changer.finish_trial(&mut state);
        let generation = changer.core.confirm().map_err(failed)?;
        state.trial = false;
        let kept = changer.store.write(&changer.stored(&state)).err();
        let warnings = kept.map(|error| format!("a restart will not know of this change: {error}"));
        Ok(Changed { applied: true, generation, warnings: warnings.into_iter().collect(), ..Changed::default() })
    }

    fn roll_back(&self) -> Result<Changed, ChangeError> {
        let changer = &self.0;
        let mut state = changer.state();
        changer.finish_trial(&mut state);
        let before = changer.core.active();
        let mut warnings = Vec::new();
        if state.trial {
            changer.core.with_datapath(|datapath| datapath.roll_back()).map_err(failed)?;
            changer.went_back(&mut state, "rolled back");
        } else {
            let Some((texts, applied)) = state.before.clone() else {
                return Err(conflict("there is no policy to go back to", "`egress apply P` puts another one in force"));
            };
            let ready = changer
                .base
                .compile(&texts, state.system.as_ref())
                .map_err(|error| ChangeError::Wrong(error.to_string()))?;
            warnings = changer.put(&mut state, ready, applied, None).map_err(failed)?;
            changer.core.set_applied(applied);
        }
        let active = changer.core.active();
        let diff = Diff::new(&before.policy, &active.policy);
        Ok(Changed { applied: true, generation: active.installed.generation, diff, warnings, confirm_seconds: None })
    }
}
