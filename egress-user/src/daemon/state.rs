//! The running state: what is in force, what was learned, what failed.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use egress_ebpf::abi::{self, LearnedEvent, NEVER, TICK_SHIFT};

use super::{Book, Enforcement, sweep::Told, trouble::Troubles, uplinks::Ungoverned};
use crate::{
    datapath::{Attached, Datapath, Error, Installed, Learned, Settings, boot_ticks},
    events::{Event, Hub, Kind, Known, PolicyChange, RECENT, Timestamp},
    memory::Freed,
    metrics::Measures,
    policy::{Compiled, Mode, Proto},
    resolve::{Answer, AnswerSink, Failure, Held, Refresher},
};

/// Names of an address that an event tells.
const NAMES: usize = 8;

/// The policy in force, and where it went.
#[derive(Debug)]
pub struct Active {
    /// The policy.
    pub policy: Arc<Compiled>,
    /// Files and embedded names, as they were given.
    pub files: Vec<String>,
    /// Its generation and grants.
    pub installed: Installed,
    /// What the generation needed besides the policy.
    pub settings: Settings,
}

/// The state of a running policy.
pub struct Core {
    pub(super) datapath: Mutex<Datapath>,
    pub(super) attached: Mutex<Vec<Attached>>,
    pub(super) pins: Option<crate::datapath::Pins>,
    /// Keeps other daemons from the pins as long as this one lives.
    _lock: Option<nix::fcntl::Flock<std::fs::File>>,
    active: ArcSwap<Active>,
    book: Mutex<Book>,
    pub(super) hub: Hub,
    pub(super) refresher: OnceLock<Arc<Refresher>>,
    pub(super) started: Timestamp,
    pub(super) warnings: Vec<String>,
    /// Wakes the task that reclaims what expired.
    pub(super) learned_anew: tokio::sync::Notify,
    /// How many addresses had no room, as far as was told.
    pub(super) map_full: std::sync::atomic::AtomicU64,
    /// Uplinks that were asked for by name and are not there.
    pub(super) missing: Mutex<Vec<String>>,
    /// What is there and could not be attached to.
    pub(super) ungoverned: Mutex<Ungoverned>,
    /// The last attempt to change something that failed, for `status`.
    pub(super) trouble: Mutex<Option<String>>,
    /// Resolvers and names that fail, so that each is told once.
    failing: Mutex<Troubles>,
    sweeping: Mutex<Told>,
    pub(super) measures: Measures,
    /// Told when the first refusal comes that others may be folded into.
    refusals: tokio::sync::Notify,
    pub(super) changes: super::changes::Changes,
    pub(super) recent: super::recent::Recent,
    /// Wakes the task that follows workloads' addresses.
    pub(super) veths_changed: tokio::sync::Notify,
    freed: Freed,
    pub(super) heard: super::heard::Heard,
}

impl Core {
    /// The state of what was started; the ring buffer is left to the caller.
    pub fn new(
        enforcement: Enforcement,
        policy: Compiled,
        files: Vec<String>,
    ) -> (Arc<Self>, aya::maps::RingBuf<aya::maps::MapData>) {
        let Enforcement { datapath, events, installed, attached, settings, pins, lock, waits: _, warnings } =
            enforcement;
        let core = Self {
            datapath: Mutex::new(datapath),
            attached: Mutex::new(attached),
            pins,
            _lock: lock,
            active: ArcSwap::from_pointee(Active { policy: Arc::new(policy), files, installed, settings }),
            book: Mutex::default(),
            hub: Hub::new(RECENT),
            refresher: OnceLock::new(),
            started: Timestamp::now(),
            warnings,
            learned_anew: tokio::sync::Notify::new(),
            map_full: std::sync::atomic::AtomicU64::new(0),
            missing: Mutex::default(),
            ungoverned: Mutex::default(),
            trouble: Mutex::default(),
            failing: Mutex::default(),
            sweeping: Mutex::default(),
            measures: Measures::default(),
            refusals: tokio::sync::Notify::new(),
            changes: super::changes::Changes::default(),
            recent: super::recent::Recent::default(),
            veths_changed: tokio::sync::Notify::new(),
            freed: Freed::default(),
            heard: super::heard::Heard::default(),
        };
        (Arc::new(core), events)
    }

    /// The policy in force.
    pub fn active(&self) -> Arc<Active> {
        self.active.load_full()
    }

    /// Gives the refresher to `status`.
    pub fn set_refresher(&self, refresher: Arc<Refresher>) {
        let _ = self.refresher.set(refresher);
    }

    /// Puts another policy in force, or the same with other settings. On an error the old one stays.
    pub fn install(&self, policy: Compiled, files: Vec<String>, settings: Settings) -> Result<(), Error> {
        self.install_for(policy, files, settings, None)
    }

    /// [`Core::install`], for so long from the flip on: then the kernel takes the old policy again. `None` is for good.
    pub fn install_for(
        &self,
        policy: Compiled,
        files: Vec<String>,
        settings: Settings,
        wait: Option<Duration>,
    ) -> Result<(), Error> {
        let policy = Arc::new(policy);
        if wait.is_none() && self.same(&policy, &files, &settings)? {
            return Ok(());
        }
        let learned = || {
            self.heard.wait();
            lock(&self.book).living(boot_ticks())
        };
        let active = self.active();
        // Until it is noted what is in force: names are learned by the policy and its places in the tables together.
        let mut datapath = lock(&self.datapath);
        let result = if wait.is_none() {
            datapath.change((&active.policy, active.installed.generation), &policy, &settings, &learned)
        } else {
            datapath.install_for(&policy, &settings, &learned, wait)
        };
        let outcome = match result.and_then(|installed| Ok((installed, datapath.live()?.deadline))) {
            Ok((installed, deadline)) => {
                self.changes.begin((deadline != 0).then(|| (deadline, self.active())));
                let message = format!("policy {:016x} is in force", policy.hash);
                self.took(Active { policy, files, installed, settings }, message);
                Ok(())
            }
            Err(error) => {
                self.refused(&error.to_string());
                Err(error)
            }
        };
        drop(datapath);
        outcome
    }

    /// Notes what is in force now.
    pub(super) fn took(&self, active: Active, message: String) {
        self.measures.policy_applied();
        let change = PolicyChange {
            generation: active.installed.generation,
            applied: true,
            mode: mode_name(active.policy.mode).to_owned(),
            rules: active.policy.rules.len(),
            message,
        };
        self.active.store(Arc::new(active));
        // Afterwards: whoever sees that it is over sees this policy.
        *lock(&self.trouble) = None;
        self.freed.tell();
        self.hub.publish(Event::new(Timestamp::now(), Kind::Policy(change)));
    }

    /// Notes that a change of the policy was refused; the old one stays.
    pub fn refused(&self, why: &str) {
        *lock(&self.trouble) = Some(format!("the last change of the policy was refused: {why}"));
        let active = self.active();
        let change = PolicyChange {
            generation: active.installed.generation,
            applied: false,
            mode: mode_name(active.policy.mode).to_owned(),
            rules: active.policy.rules.len(),
            message: why.to_owned(),
        };
        self.hub.publish(Event::new(Timestamp::now(), Kind::Policy(change)));
    }

    /// Writes down what the kernel learned.
    pub fn note(&self, learned: &LearnedEvent) {
        let name: Vec<u8> = learned.key.reversed().iter().rev().copied().collect();
        let name = String::from_utf8_lossy(&name);
        let addresses: Vec<_> = learned
            .addresses
            .iter()
            .take(usize::from(learned.count))
            .map(|entry| (IpAddr::from(entry.address), entry.expiry))
            .collect();
        let resolver = SocketAddr::new(learned.resolver.into(), learned.resolver_port).to_string();
        lock(&self.book).learn(&name, &addresses, &resolver, boot_ticks());
        self.learned_anew.notify_one();
    }

    /// Writes down the addresses of names that a resolver gave; without one, those that stay though resolvers fail.
    fn learn<'a>(&self, told: impl Iterator<Item = (&'a str, &'a [(IpAddr, Duration)], Option<SocketAddr>)>) {
        let now = boot_ticks();
        let expiry = |life: Duration| {
            let ticks = u32::try_from(life.as_nanos().div_ceil(1 << TICK_SHIFT)).unwrap_or(u32::MAX / 4);
            now.saturating_add(ticks).min(NEVER - 1)
        };
        let mut learned = Vec::new();
        let mut book = lock(&self.book);
        for (name, addresses, resolver) in told {
            let addresses: Vec<_> = addresses.iter().map(|&(address, life)| (address, expiry(life))).collect();
            match resolver {
                Some(resolver) => book.learn(name, &addresses, &resolver.to_string(), now),
                None => book.prolong(name, &addresses),
            }
            learned.push(Learned { name: name.to_owned(), addresses });
        }
        drop(book);
        let mut datapath = lock(&self.datapath);
        let mut result = datapath.learn(&self.active().policy, &learned).map(drop);
        if let Some(previous) = self.changes.previous() {
            result = result.and(datapath.learn_previous(&previous.policy, &learned));
        }
        drop(datapath);
        if let Err(error) = result {
            let name = learned.first().map_or("", |learned| learned.name.as_str());
            tracing::warn!(%error, names = learned.len(), name, "cannot write the addresses of names");
        }
        self.learned_anew.notify_one();
    }

    /// The last events, oldest first.
    pub(super) fn recent_events(&self) -> Vec<Arc<Event>> {
        self.hub.recent()
    }

    /// What was freed is given back to the system by whoever waits here.
    pub fn freed(&self) -> &Freed {
        &self.freed
    }

    /// What is measured on the way, for the metrics.
    pub fn measures(&self) -> &Measures {
        &self.measures
    }

    pub(super) fn sweeping(&self) -> MutexGuard<'_, Told> {
        lock(&self.sweeping)
    }

    /// Why the last question for a name failed, if it did.
    pub(super) fn last_error(&self, name: &str) -> Option<String> {
        let names = self.refresher.get()?.names();
        names.into_iter().find(|known| known.name == name)?.last_error.map(|(error, _)| error.to_string())
    }

    pub(super) fn refusals(&self) -> &tokio::sync::Notify {
        &self.refusals
    }

    pub(super) fn datapath(&self) -> MutexGuard<'_, Datapath> {
        lock(&self.datapath)
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    pub(super) fn rules_of(active: &Active, classes: &[u32]) -> Vec<String> {
        let mut rules: Vec<String> = classes
            .iter()
            .filter_map(|class| active.policy.classes.get(*class))
            .flat_map(|class| class.grants)
            .filter_map(|grant| active.policy.grants.get(*grant as usize))
            .map(|grant| active.policy.rules[grant.rule as usize].name.clone())
            .collect();
        rules.sort();
        rules.dedup();
        rules
    }
}

impl Known for Core {
    fn names(&self, address: IpAddr) -> Vec<String> {
        lock(&self.book).last_names_of(address, NAMES)
    }

    fn name_rules(&self, name: &str) -> Vec<String> {
        let active = self.active();
        Self::rules_of(&active, &active.policy.match_name(name).classes)
    }

    fn deny_rule(&self, destination: IpAddr, protocol: u8, port: u16) -> Option<String> {
        let active = self.active();
        let proto = match protocol {
            abi::PROTO_TCP => Proto::Tcp,
            abi::PROTO_UDP => Proto::Udp,
            _ => Proto::Icmp,
        };
        let class = active.policy.match_deny(destination);
        let range = active.policy.class_opens(class, proto, port)?;
        let grant = active.policy.grants.get(range.grant as usize)?;
        Some(active.policy.rules[grant.rule as usize].name.clone())
    }
}

impl AnswerSink for Core {
    fn learned(&self, answers: &[Answer]) {
        let mut failing = lock(&self.failing);
        let ended: Vec<_> = answers.iter().flat_map(|answer| failing.answered(answer)).collect();
        drop(failing);
        for ended in ended {
            self.hub.publish(Event::new(Timestamp::now(), Kind::Resolver(ended)));
        }
        self.learn(answers.iter().map(|answer| (&*answer.name, &*answer.addresses, Some(answer.resolver))));
    }

    fn failed(&self, failure: &Failure) {
        tracing::debug!(name = %failure.name, reason = %failure.reason, "a name could not be resolved");
        if let Some(trouble) = lock(&self.failing).failed(failure) {
            self.hub.publish(Event::new(Timestamp::now(), Kind::Resolver(trouble)));
        }
        if !failure.kept.is_empty() {
            self.learn([(&*failure.name, &*failure.kept, None)].into_iter());
        }
    }

    /// The last good answer stays for a while: the kernel's slots are given the longer life.
    fn held(&self, held: &[Held]) {
        self.learn(held.iter().map(|(name, kept)| (&**name, &**kept, None)));
    }
}

/// `enforce` or `audit`.
pub fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Audit => "audit",
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves plain data behind, which every reader can go on with.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
