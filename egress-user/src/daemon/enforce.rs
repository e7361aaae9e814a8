//! From nothing to enforcement: load, install, attach, in an order that leaves no gap.

use std::thread::{self, JoinHandle};

use crate::{
    datapath::{self, Attached, Cgroup, Datapath, Error, Installed, Object, Pins, Settings, Sizes, Uplink},
    policy::Compiled,
};

/// What is to be governed.
#[derive(Debug)]
pub struct Scope {
    /// The cgroup.
    pub cgroup: Cgroup,
    /// The uplinks; empty for the cgroup alone.
    pub uplinks: Vec<Uplink>,
    /// Where to pin what must outlive this process; `None` to pin nothing.
    pub pins: Option<Pins>,
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
    /// What this machine cannot guarantee, a sentence each.
    pub warnings: Vec<String>,
}

impl Enforcement {
    /// Loads, installs `policy` and attaches. The policy is in the maps before the first program is attached, and those
    /// that only remember are attached before those that drop.
    ///
    /// # Errors
    /// On an error nothing new stays attached that is not pinned; what an earlier daemon pinned goes on as it was.
    pub fn start(policy: &Compiled, settings: Settings, scope: &Scope) -> Result<Self, Error> {
        // Where BPF LSM is off its programs would load, attach, and never be called.
        let bpf_lsm = datapath::bpf_lsm();
        // 15 ms, for LSM alone: beside everything that comes before.
        let kernel = (bpf_lsm != Some(false)).then(|| thread::spawn(aya::Btf::from_sys_fs));
        let mut object = load(policy, scope.pins.as_ref())?;
        let events = object.take_events()?;
        let mut datapath = Datapath::new(object)?;
        let installed = datapath.install(policy, &settings, &[])?;
        let connections = datapath::accepted_connections();
        datapath.remember_accepted(&connections)?;
        let mut attached = datapath::attach_cgroup(datapath.object(), &scope.cgroup, scope.pins.as_ref())?;
        for uplink in &scope.uplinks {
            attached.extend(datapath::attach_uplink(datapath.object(), uplink, scope.pins.as_ref())?);
        }
        let mut warnings = super::machine_warnings();
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
        datapath.remember_accepted(&datapath::accepted_connections())?;
        Ok(Self { datapath, events, installed, attached, settings, pins: scope.pins.clone(), warnings })
    }
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
/// the pinned links are given programs that use these.
fn load(policy: &Compiled, pins: Option<&Pins>) -> Result<Object, Error> {
    let sizes = Sizes::for_policy(policy);
    let Some(pins) = pins else { return Object::load(&sizes, None) };
    pins.prepare()?;
    if pins.has_maps() {
        match Object::load(&sizes, Some(pins)).and_then(|object| Ok((object.has_room(&sizes)?, object))) {
            Ok((true, object)) => return Ok(object),
            Ok((false, _)) => tracing::info!("the policy has outgrown the pinned maps; making new ones"),
            Err(error) => tracing::warn!(%error, "cannot take up the pinned maps; making new ones"),
        }
        pins.forget_maps()?;
    }
    Object::load(&sizes, Some(pins))
}
