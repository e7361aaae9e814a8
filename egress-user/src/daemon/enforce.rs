//! From nothing to enforcement: load, install, attach, in an order that leaves no gap.

use std::thread::{self, JoinHandle};

use crate::{
    datapath::{
        self, Attached, Cgroup, Datapath, Error, Installed, Object, Pins, Room, Settings, Settled, Sizes, Uplink,
    },
    policy::Compiled,
};

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
    /// that only remember are attached before those that drop.
    ///
    /// # Errors
    /// On an error nothing new stays attached that is not pinned; what an earlier daemon pinned goes on as it was.
    ///
    /// A policy that an earlier daemon put on trial is ended, where it is not the one to start with and `on_trial` says so.
    ///
    /// [`Error::NothingPending`] where `on_trial` is said, and `policy` neither waits for its confirmation nor got it.
    pub fn start(policy: &Compiled, settings: Settings, scope: &Scope, on_trial: bool) -> Result<Self, Error> {
        let lock = match &scope.pins {
            Some(pins) => {
                pins.prepare()?;
                Some(pins.lock()?)
            }
            None => None,
        };
        // Where BPF LSM is off its programs would load, attach, and never be called.
        let bpf_lsm = datapath::bpf_lsm();
        // 15 ms, for LSM alone: beside everything that comes before.
        let kernel = (bpf_lsm != Some(false)).then(|| thread::spawn(aya::Btf::from_sys_fs));
        let mut object = load(policy, scope, on_trial)?;
        // The one that answers is short, and attaching it takes longest.
        let mut programs = vec![datapath::DENIAL_HOOK, "socket_egress", "socket_ingress"];
        if !scope.uplinks.is_empty() {
            programs.extend(["uplink_ingress", "uplink_egress", datapath::WORKLOAD_HOOK]);
        }
        programs.extend(datapath::CGROUP_HOOKS.iter().map(|(name, _)| *name));
        programs.push("control");
        // Links that nothing is pinned for may stand before the rest is there: what they answer is marked by the rest.
        let mut ahead = Vec::new();
        if scope.pins.is_none() && !scope.answered.is_empty() {
            ahead = datapath::load_and_answer(&mut object, &programs, &scope.answered);
        } else {
            object.load_programs(&programs);
        }
        let mut ahead = ahead.into_iter();
        let events = object.take_events()?;
        let mut datapath = Datapath::new(object)?;
        let waits = matches!(datapath.settle()?, Settled::Pending(_));
        if waits && !on_trial {
            tracing::warn!("a policy on trial is ended: its text was not kept");
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
            None => datapath.install(policy, &settings, &[])?,
        };
        if scope.has_past {
            datapath.remember_accepted(&datapath::accepted_connections())?;
        }
        // Before any of them is let go.
        let with_programs: Vec<_> = scope.uplinks.iter().chain(&scope.answered).collect();
        datapath::keep_uplinks(datapath.object(), &with_programs, scope.pins.as_ref())?;
        datapath.keep_veths(scope.pins.as_ref())?;
        let mut attached = datapath::attach_cgroup(datapath.object(), &scope.cgroup, scope.pins.as_ref())?;
        for uplink in &scope.uplinks {
            attached.extend(datapath::attach_uplink(datapath.object(), uplink, scope.pins.as_ref())?);
        }
        for interface in &scope.answered {
            let ahead = ahead.next().flatten();
            match datapath::attach_answering(datapath.object(), interface, scope.pins.as_ref(), ahead) {
                Ok(points) => attached.extend(points),
                // The cgroup's hook refuses all the same.
                Err(error) => tracing::warn!(%error, "refused names get an error there, not an answer"),
            }
        }
        let mut warnings = super::machine_warnings();
        if scope.cgroup.level.is_none() {
            warnings.push(format!("cgroup {}: {}", scope.cgroup.path.display(), super::NAMESPACED));
        }
        if let Some(kernel) = kernel {
            match lsm(datapath.object(), kernel, scope.pins.as_ref()) {
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
        if let Some(pins) = &scope.pins {
            retire_others(pins, scope)?;
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
        }
        Ok(Self {
            datapath,
            events,
            installed,
            attached,
            settings,
            pins: scope.pins.clone(),
            lock,
            waits: waits && on_trial,
            warnings,
        })
    }
}

/// Detaches what an earlier daemon pinned to another cgroup or interface: by now this one's are attached.
fn retire_others(pins: &Pins, scope: &Scope) -> Result<(), Error> {
    let cgroup = format!("cgroup-{}-", scope.cgroup.id);
    let uplinks: Vec<_> =
        scope.uplinks.iter().chain(&scope.answered).map(|uplink| format!("if{}-", uplink.index)).collect();
    for (name, _) in pins.links()? {
        let ours = name.starts_with(&cgroup)
            || name.starts_with("lsm-")
            // Which workloads there are is asked afterwards.
            || name.starts_with(crate::datapath::WORKLOAD_PIN)
            || uplinks.iter().any(|uplink| name.starts_with(uplink.as_str()));
        if !ours {
            tracing::info!(name, "a link of an earlier daemon is not wanted any more");
            pins.detach(&name)?;
        }
    }
    Ok(())
}

fn lsm(
    object: &mut Object,
    kernel: JoinHandle<Result<aya::Btf, aya::BtfError>>,
    pins: Option<&Pins>,
) -> Result<Vec<Attached>, Error> {
    let kernel = kernel.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    datapath::attach_lsm(object, &kernel.map_err(|source| Error::KernelTypes(Box::new(source)))?, pins)
}

/// Loads the object. What is pinned is taken up where it has room for the policy; else new maps are made beside it, and
/// the pinned links are given programs that use these. `as_it_is`: what is asked for is in the pinned maps, or nowhere.
fn load(policy: &Compiled, scope: &Scope, as_it_is: bool) -> Result<Object, Error> {
    let sizes = if scope.has_past { Sizes::for_policy(policy, scope.room) } else { Sizes::for_command(policy) };
    let Some(pins) = &scope.pins else { return Object::load_telling(&sizes, None, scope.tells) };
    let fresh = || Object::load_telling(&sizes, Some(pins), scope.tells);
    let pinned = || fresh().and_then(Datapath::check);
    if as_it_is {
        let object = pins.has_maps().then(|| pinned().ok()).flatten();
        return object.ok_or(Error::NothingPending);
    }
    if pins.has_maps() {
        match pinned().and_then(|object| Ok((object.has_room(&sizes)?, object))) {
            Ok((true, object)) => return Ok(object),
            Ok((false, _)) => {
                tracing::info!("the policy, or what is asked for, has outgrown the pinned maps; making new ones");
            }
            Err(error) => tracing::warn!(%error, "cannot take up the pinned maps; making new ones"),
        }
    }
    pins.forget_maps()?;
    fresh()
}
