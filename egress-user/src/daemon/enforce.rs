//! From nothing to enforcement: load, install, attach, in an order that leaves no gap.

use std::{collections::BTreeSet, fs::File, time::Duration};

use crate::{
    beside::Beside,
    datapath::{
        self, Ahead, Attached, Before, Cgroup, Datapath, Error, Installed, Object, Pins, Room, Settings, Settled,
        Sizes, Uplink,
    },
    policy::Compiled,
};

/// How long another policy is in force at the most while its programs are being attached: one that is killed meanwhile leaves the policy
/// before to come back by itself. An emulated machine takes minutes.
const ATTACHING: Duration = Duration::from_secs(600);

/// What is to be governed.
#[derive(Debug)]
pub struct Scope {
    /// The cgroup.
    pub cgroup: Cgroup,
    /// The uplinks; empty for the cgroup alone.
    pub uplinks: Vec<Uplink>,
    /// Where refused queries are answered and nothing is judged (decision 0031).
    pub answered: Vec<Uplink>,
    /// Where to pin what must outlive this process; `None` to pin nothing.
    pub pins: Option<Pins>,
    /// Whether anything may have been governed, or have run ungoverned, in the cgroup before: `false` only for a cgroup made for
    /// one command that has not begun.
    pub has_past: bool,
    /// What the tables are to hold, beside the policy.
    pub room: Room,
    /// Whether the programs write their debug lines.
    pub tells: bool,
}

/// A policy that is in force.
pub struct Enforcement {
    /// The maps.
    pub datapath: Datapath,
    /// The events' ring buffer.
    pub events: aya::maps::RingBuf<aya::maps::MapData>,
    /// What was installed.
    pub installed: Installed,
    /// What is attached.
    pub attached: Vec<Attached>,
    /// The settings of the generation.
    pub settings: Settings,
    /// Where things are pinned.
    pub pins: Option<Pins>,
    /// Keeps other daemons from the pins.
    pub lock: Option<nix::fcntl::Flock<std::fs::File>>,
    /// It waits for its confirmation.
    pub waits: bool,
    /// What this machine cannot guarantee, a sentence each.
    pub warnings: Vec<String>,
}

impl Enforcement {
    /// Loads, installs `policy` and attaches. The policy is in the maps before the first program is attached, and those
    /// that only remember are attached before those that drop. A policy that an earlier daemon put on trial ends, unless
    /// `on_trial` says that `policy` is that one.
    ///
    /// # Errors
    /// On an error nothing new stays attached, or pinned; what an earlier daemon pinned goes on, with the policy that it had.
    ///
    /// [`Error::NothingPending`] where `on_trial` is said, and `policy` neither waits for its confirmation nor got it.
    pub fn start(policy: &Compiled, settings: Settings, scope: &Scope, on_trial: bool) -> Result<Self, Error> {
        let (mut enforcement, attempt) = Self::begin(policy, settings, scope, on_trial)?;
        attempt.succeed(&mut enforcement.datapath, &enforcement.attached)?;
        Ok(enforcement)
    }

    /// [`Enforcement::start`], which counts only when the caller says that the rest of its start succeeded too: see [`Attempt`].
    pub fn begin(
        policy: &Compiled,
        settings: Settings,
        scope: &Scope,
        on_trial: bool,
    ) -> Result<(Self, Attempt), Error> {
        let lock = match &scope.pins {
            Some(pins) => {
                pins.prepare()?;
                let lock = pins.lock()?;
                pins.forget_fresh()?;
                Some(lock)
            }
            None => None,
        };
        let mut attempt = Attempt::begin(scope)?;
        // Where BPF LSM is off its programs would load, attach, and never be called.
        let bpf_lsm = datapath::bpf_lsm();
        let (object, fresh) = load(policy, scope, on_trial)?;
        attempt.fresh = fresh;
        let loading = object.load_beside(programs(scope));
        // Some milliseconds, for LSM alone: beside everything that comes before.
        let lsm = (bpf_lsm != Some(false)).then(|| {
            let object = object.clone();
            Beside::begin(move || datapath::load_lsm(&object))
        });
        // What they answer is marked by the rest: they may stand before it is there.
        let answering = datapath::attach_ahead(&object, &scope.answered, scope.pins.as_ref());
        let events = object.events()?;
        let mut datapath = Datapath::new(object.clone())?;
        let waits = matches!(datapath.settle()?, Settled::Pending(_));
        if waits && !on_trial {
            tracing::warn!("a policy on trial is ended: its text was not kept, or cannot be read");
            datapath.roll_back()?;
        }
        let installed = match datapath.adopt(policy, &settings)? {
            None if on_trial && (waits || !datapath.judges_by(policy)?) => return Err(Error::NothingPending),
            // The same policy as before: what was learned meanwhile stays.
            Some(installed) => {
                if !waits {
                    // A daemon that was killed between two policies left one half, into which the kernel would go on to learn.
                    datapath.forget_other(installed.generation)?;
                }
                installed
            }
            // On trial until all is attached: by the pinned maps those programs judge too that are attached already.
            None => {
                let installed = datapath.install_for(policy, &settings, &Vec::new, Some(ATTACHING))?;
                attempt.on_trial = (datapath.live()?.deadline != 0).then(|| object.clone());
                installed
            }
        };
        if scope.has_past {
            datapath.remember_accepted(&datapath::accepted_connections())?;
        }
        // Before any of them is let go.
        let with_programs: Vec<_> = scope.uplinks.iter().chain(&scope.answered).collect();
        datapath::keep_uplinks(datapath.object(), &with_programs, scope.pins.as_ref())?;
        datapath.keep_veths(scope.pins.as_ref())?;
        let judging = datapath::attach_ahead(&object, &scope.uplinks, scope.pins.as_ref());
        loading.finish();
        // All that judge, before the first one takes the place of an earlier daemon's.
        judges(scope).try_for_each(|name| object.program(name).map(drop))?;
        let mut attached = attach(&mut datapath, scope, judging, answering)?;
        let mut warnings = super::machine_warnings();
        if scope.cgroup.level.is_none() {
            warnings.push(format!("cgroup {}: {}", scope.cgroup.path.display(), super::NAMESPACED));
        }
        if let Some(lsm) = lsm {
            let pins = scope.pins.as_ref();
            match lsm.finish().and_then(|functions| datapath::attach_lsm(&object, functions, pins)) {
                Ok(hooks) => attached.extend(hooks),
                Err(error) if bpf_lsm == Some(true) => {
                    tracing::warn!(%error, "cannot use BPF LSM");
                    warnings.push(format!("cannot use BPF LSM: {error}; {}", super::BYPASS));
                }
                // Not known to be on: there is a warning already.
                Err(error) => tracing::debug!(%error, "cannot use BPF LSM"),
            }
        }
        // Again for those that were accepted while the programs were being attached.
        if scope.has_past {
            datapath.remember_accepted(&datapath::accepted_connections())?;
        }
        let enforcement = Self {
            datapath,
            events,
            installed,
            attached,
            settings,
            pins: scope.pins.clone(),
            lock,
            waits: waits && on_trial,
            warnings,
        };
        Ok((enforcement, attempt))
    }
}

/// Attaches all but the LSM programs. `judging` and `answering` are links made ahead.
fn attach(
    datapath: &mut Datapath,
    scope: &Scope,
    judging: Beside<Vec<Ahead>>,
    answering: Beside<Vec<Ahead>>,
) -> Result<Vec<Attached>, Error> {
    let (object, pins) = (datapath.object(), scope.pins.as_ref());
    let mut attached = datapath::attach_cgroup(object, &scope.cgroup, pins)?;
    let mut ahead = judging.finish();
    for uplink in &scope.uplinks {
        attached.extend(datapath::attach_uplink(object, uplink, pins, &mut ahead)?);
    }
    let mut ahead = answering.finish();
    for interface in &scope.answered {
        match datapath::attach_uplink(object, interface, pins, &mut ahead) {
            Ok(points) => attached.extend(points),
            // The cgroup's hook refuses all the same.
            Err(error) => tracing::warn!(%error, "refused names get an error there, not an answer"),
        }
    }
    Ok(attached)
}

/// A start that may fail. Dropped before it has succeeded, it leaves the node as it was, not half governed.
#[derive(Debug)]
pub struct Attempt {
    pins: Option<Pins>,
    before: Option<Before>,
    /// The names of the interfaces that are attached to.
    interfaces: Vec<String>,
    /// What the pins of this start's links to the cgroup begin with, and those of its interfaces.
    cgroup: String,
    uplinks: BTreeSet<String>,
    /// What holds the policy that was put in the place of an earlier daemon's, and waits for this start's success.
    on_trial: Option<Object>,
    /// The pinned maps are new, and do not count yet.
    fresh: bool,
    succeeded: bool,
    /// Descriptors for the way back, which a start that fails for want of them could not open.
    spare: Vec<File>,
}

/// What [`Datapath::new`] opens, and some more.
const SPARE: usize = 32;

impl Attempt {
    fn begin(scope: &Scope) -> Result<Self, Error> {
        let with_programs = || scope.uplinks.iter().chain(&scope.answered);
        let spare = |_| File::open("/dev/null").map_err(|error| Error::path("open", "/dev/null", error));
        Ok(Self {
            spare: (0..if scope.pins.is_some() { SPARE } else { 0 }).map(spare).collect::<Result<_, _>>()?,
            before: scope.pins.as_ref().map(Pins::before).transpose()?,
            pins: scope.pins.clone(),
            interfaces: with_programs().map(|interface| interface.name.clone()).collect(),
            cgroup: format!("cgroup-{}-", scope.cgroup.id),
            uplinks: with_programs()
                .flat_map(|uplink| uplink.hooks().iter().map(|(hook, _)| uplink.pin(hook)))
                .collect(),
            on_trial: None,
            fresh: false,
            succeeded: false,
        })
    }

    /// Whether something of an earlier daemon is in force.
    pub fn takes_over(&self) -> bool {
        self.before.as_ref().is_some_and(|before| !before.is_nothing())
    }

    /// From here on the policy stays, and what an earlier daemon had that this one has not goes.
    ///
    /// # Errors
    /// As [`Enforcement::start`], up to where the earlier daemon's goes.
    pub fn succeed(mut self, datapath: &mut Datapath, attached: &[Attached]) -> Result<(), Error> {
        if self.on_trial.is_some() {
            datapath.confirm()?;
        }
        let Some(pins) = self.pins.clone() else {
            self.succeeded = true;
            return Ok(());
        };
        if self.fresh {
            pins.count_fresh()?;
        }
        self.on_trial = None;
        self.succeeded = true;
        self.spare.clear();
        self.retire_others(&pins)?;
        retire_filters(attached);
        for version in pins.retire_versions()? {
            if Pins::is_newer(&version) {
                tracing::warn!(
                    version,
                    "this is a downgrade: a newer version's programs gave way to this one's, which takes nothing over of the names, flows and counters that they had"
                );
            } else {
                tracing::warn!(
                    version,
                    "another version's programs gave way to this one's, with the names, flows and counters that they had"
                );
            }
        }
        Ok(())
    }

    /// Detaches what an earlier daemon pinned to another cgroup or interface: by now this one's are attached.
    fn retire_others(&self, pins: &Pins) -> Result<(), Error> {
        for name in pins.link_names()? {
            let ours = name.starts_with(&self.cgroup)
                || name.starts_with("lsm-")
                // Which workloads there are is asked by itself.
                || name.starts_with(crate::datapath::WORKLOAD_PIN)
                || self.uplinks.contains(&name);
            if !ours {
                tracing::info!(name, "a link of an earlier daemon is not wanted any more");
                pins.detach(&name)?;
            }
        }
        Ok(())
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let (Some(pins), Some(before), false) = (&self.pins, &self.before, self.succeeded) else { return };
        self.spare.clear();
        let back = self.on_trial.take().map(|object| Datapath::new(object).and_then(|mut maps| maps.roll_back()));
        match back {
            // Its time is over: the kernel went back by itself.
            None | Some(Ok(_) | Err(Error::NothingPending)) => {}
            Some(Err(error)) => {
                let seconds = ATTACHING.as_secs();
                tracing::error!(%error, seconds, "the policy of the start that failed stays in force for so long");
            }
        }
        if let Err(error) = pins.go_back(before) {
            tracing::error!(%error, "a part of the start that failed may stay in force; `egress detach` ends it");
        }
        // Filters of clsact are pinned nowhere: they are an earlier daemon's where anything is.
        if before.is_nothing() {
            for interface in &self.interfaces {
                datapath::remove_clsact(interface);
            }
        }
    }
}

/// Removes the clsact filters of an earlier daemon that are not this one's, where it has such: interfaces hold those, and nothing is pinned
/// for them.
fn retire_filters(attached: &[Attached]) {
    if attached.iter().all(|point| point.filter.is_none()) {
        return;
    }
    for interface in nix::net::if_::if_nameindex().iter().flatten() {
        let name = interface.name().to_string_lossy();
        let hooks: Vec<_> =
            attached.iter().filter(|point| point.interface == interface.index()).map(|point| point.hook).collect();
        // Which veths are workloads' is asked by itself; an uplink is none.
        let goes = |hook: &str| !hooks.contains(&hook) && (hook != datapath::WORKLOAD_HOOK || !hooks.is_empty());
        for filter in datapath::remove_clsact_where(&name, goes) {
            tracing::info!(filter, "of an earlier daemon, and not wanted any more");
        }
    }
}

/// The programs that enforcement is on with; those of interfaces first, since their links take longest.
fn judges(scope: &Scope) -> impl Iterator<Item = &'static str> {
    let uplinks = scope.uplinks.iter().flat_map(Uplink::hooks);
    uplinks.chain(&datapath::CGROUP_HOOKS).map(|(name, _)| *name)
}

/// What is loaded before the start is over, in this order: what is waited for (a link of an interface, and a policy's addresses, which
/// `control` writes), then the longest first.
fn programs(scope: &Scope) -> Vec<&'static str> {
    let mut programs = vec![datapath::DENIAL_HOOK, "control"];
    programs.extend(scope.uplinks.iter().flat_map(Uplink::hooks).map(|(name, _)| *name));
    programs.extend(["socket_egress", "socket_ingress"]);
    // Where there is nothing but uplinks there are no workloads' veths; what comes later finds it loaded (`Core::prepare_uplinks`).
    if !scope.uplinks.is_empty() && has_others(&scope.uplinks) {
        programs.push(datapath::WORKLOAD_HOOK);
    }
    programs.extend(judges(scope));
    let mut seen = BTreeSet::new();
    programs.retain(|name| seen.insert(*name));
    programs
}

/// Whether this network namespace has interfaces beside these and loopback; in doubt, yes.
fn has_others(uplinks: &[Uplink]) -> bool {
    let known = |index: u32| index == 1 || uplinks.iter().any(|uplink| uplink.index == index);
    nix::net::if_::if_nameindex().map_or(true, |all| all.iter().any(|interface| !known(interface.index())))
}

/// Loads the object. What is pinned is taken up where it has room for the policy; else new maps are made beside it, and
/// the pinned links are given programs that use these; then `true`, and they take the pinned ones' place when all is attached. `as_it_is`:
/// what is asked for is in the pinned maps, or nowhere.
fn load(policy: &Compiled, scope: &Scope, as_it_is: bool) -> Result<(Object, bool), Error> {
    let sizes = if scope.has_past { Sizes::for_policy(policy, scope.room) } else { Sizes::for_command(policy) };
    let Some(pins) = &scope.pins else { return Ok((Object::load_telling(&sizes, None, scope.tells)?, false)) };
    let pinned = || Object::load_telling(&sizes, Some(pins), scope.tells).and_then(Datapath::check);
    if as_it_is {
        return match pins.has_maps().then(pinned) {
            Some(Ok(object)) => Ok((object, false)),
            // No word about the policy on trial, which a later start may go on with.
            Some(Err(error)) if error.is_want() => Err(error),
            // What cannot be taken up now cannot be later, and must not keep the files' policy from being in force.
            _ => Err(Error::NothingPending),
        };
    }
    if pins.has_maps() {
        match pinned().and_then(|object| Ok((object.has_room(&sizes)?, object))) {
            Ok((true, object)) => return Ok((object, false)),
            Ok((false, _)) => {
                tracing::info!("the policy, or what is asked for, has outgrown the pinned maps; making new ones");
            }
            // The next start may have what is short now: what was learned is not given up for it.
            Err(error) if error.is_want() => return Err(error),
            Err(error) => tracing::warn!(%error, "cannot take up the pinned maps; making new ones"),
        }
    }
    pins.make_fresh()?;
    Ok((Object::load_telling(&sizes, Some(&pins.fresh()), scope.tells)?, true))
}
