//! The interfaces of the default routes, followed as they change.

use std::{collections::BTreeSet, fs, io, path::Path};

use futures_util::StreamExt as _;
use nix::errno::Errno;
use procfs::net::RouteEntry;
use rtnetlink::{MulticastGroup, new_multicast_connection};

use super::{Core, state::lock};
use crate::datapath::{
    Attached, DENIAL_HOOK, Error, Pins, Uplink, WORKLOAD_HOOK, attach_uplink, forget_uplink, remove_clsact_of,
    sys::is_want,
};

/// Which interfaces are to be governed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None: the cgroup alone.
    None,
    /// Those of these names, as soon as they are there.
    Named(Vec<String>),
    /// Those of the default routes, and what these are made of.
    DefaultRoutes,
}

impl Wanted {
    /// From `--interface`.
    pub fn from_arguments(names: &[String]) -> Self {
        match names {
            [none] if none == "none" => Self::None,
            [] => Self::DefaultRoutes,
            names => Self::Named(names.to_vec()),
        }
    }

    /// The interfaces that are there, and the names of those that are not.
    ///
    /// # Errors
    /// That it is not known of one whether it is there.
    pub fn find(&self) -> Result<(Vec<Uplink>, Vec<String>), Error> {
        let names = match self {
            Self::None => Vec::new(),
            Self::Named(names) => names.clone(),
            Self::DefaultRoutes => with_lower(Path::new("/sys/class/net"), default_uplinks()?),
        };
        let (mut there, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            match Uplink::named(&name) {
                Ok(uplink) => there.push(uplink),
                Err(Error::NoInterface(_)) => missing.push(name),
                Err(error) => return Err(error),
            }
        }
        let names: Vec<String> = there.iter().map(|uplink: &Uplink| uplink.name.clone()).collect();
        for uplink in &mut there {
            let dir = Path::new("/sys/class/net").join(&uplink.name);
            uplink.hears = !(dir.join("bridge").exists() && lower(&dir).iter().any(|port| names.contains(port)));
        }
        if *self == Self::DefaultRoutes {
            // It went between the two looks.
            missing.clear();
        }
        Ok((there, missing))
    }
}

/// Where the queries of a command without governed uplinks are answered when they are refused: loopback, and the
/// interfaces of the default routes that have a link header.
pub fn answered_for_command() -> Vec<Uplink> {
    // What cannot be looked for is answered by an error, as what has no link header.
    let (uplinks, _) = Wanted::DefaultRoutes.find().unwrap_or_default();
    let uplinks = uplinks.into_iter().filter(|uplink| uplink.ethernet && uplink.name != "lo");
    std::iter::once(Uplink::loopback()).chain(uplinks.map(|uplink| Uplink { judges: false, ..uplink })).collect()
}

/// Adds the interfaces that these send by: a VLAN's, bond's or macvlan's own lower one (a packet socket there, or a
/// container's macvlan beside, never comes by the upper one), and of a bridge those ports that are hardware or stand on
/// others in turn. A bridge's other ports lead to workloads, whose packets are judged where they come in.
fn with_lower(net: &Path, mut names: Vec<String>) -> Vec<String> {
    let mut next = 0;
    while let Some(name) = names.get(next).cloned() {
        let dir = net.join(&name);
        let bridge = dir.join("bridge").exists();
        for lower in lower(&dir) {
            let port = net.join(&lower);
            let leads_out = !bridge || port.join("device").exists() || !self::lower(&port).is_empty();
            if leads_out && !names.contains(&lower) {
                names.push(lower);
            }
        }
        next += 1;
    }
    names
}

/// The interfaces that the one of this directory in `/sys/class/net` stands on.
fn lower(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter_map(|name| name.strip_prefix("lower_").map(ToOwned::to_owned)).collect()
}

/// What is there, is to be governed and could not be attached to: one problem of each kind.
#[derive(Debug, Default)]
pub struct Ungoverned {
    pub(super) uplinks: Option<String>,
    pub(super) workloads: Option<String>,
}

impl Core {
    /// What is there and could not be attached to, for `status`, and for whoever tries it again.
    pub fn ungoverned(&self) -> Vec<String> {
        let Ungoverned { uplinks, workloads } = &*lock(&self.ungoverned);
        uplinks.iter().chain(workloads).cloned().collect()
    }

    /// Governs the wanted uplinks that are not governed yet, and lets go of those whose interface is gone. Gives the names of
    /// the new ones. An interface that lost its default route stays governed until the next start; one that was renamed
    /// stays governed too, its programs go with it.
    ///
    /// # Errors
    /// The first uplink that could not be attached to; the rest is tried all the same. It is a problem of the daemon's health until it
    /// could.
    pub fn govern_uplinks(&self, wanted: &Wanted) -> Result<Vec<String>, Error> {
        let result = self.try_uplinks(wanted);
        lock(&self.ungoverned).uplinks =
            result.as_ref().err().map(|error| format!("an uplink is not governed as it should be: {error}"));
        self.note_resolvers();
        result
    }

    fn try_uplinks(&self, wanted: &Wanted) -> Result<Vec<String>, Error> {
        let (mut uplinks, missing) = wanted.find()?;
        uplinks.push(Uplink::loopback());
        *lock(&self.missing) = missing;
        let mut attached = lock(&self.attached);
        attached.retain(|point| !is_uplink(point) || !is_gone(point.interface));
        for gone in attached.iter().filter(|point| is_uplink(point) && !point.present()) {
            forget_uplink(lock(&self.datapath).object(), gone.interface)?;
        }
        for point in attached.iter_mut().filter(|point| is_uplink(point)) {
            if let Some(name) = name_of(point.interface) {
                point.target = name;
            }
        }
        if let Some(pins) = &self.pins {
            for (name, link) in pins.links()? {
                if is_dead_uplink(&name, &link) {
                    pins.detach(&name)?;
                }
            }
        }
        let (mut added, mut first) = (Vec::new(), Ok(()));
        for uplink in uplinks {
            // All of its programs, and no other: somebody may have taken one of them away, and a bridge have got an outer port, or lost it.
            let is_its = |point: &Attached| is_uplink(point) && point.interface == uplink.index;
            let wanted = |point: &Attached| uplink.hooks().iter().any(|(hook, _)| *hook == point.hook);
            let points: Vec<_> = attached.iter().filter(|point| is_its(point)).collect();
            if points.len() == uplink.hooks().len() && points.iter().all(|point| point.present() && wanted(point)) {
                continue;
            }
            let result = attach_uplink(lock(&self.datapath).object(), &uplink, self.pins.as_ref(), &mut Vec::new());
            match result {
                Ok(points) => {
                    for point in attached.extract_if(.., |point| is_its(point)).filter(|point| !wanted(point)) {
                        first = first.and(let_go(&point, &uplink, self.pins.as_ref()));
                    }
                    attached.extend(points);
                    added.push(uplink.name);
                }
                // It went between the look and the attaching.
                Err(_) if is_gone(uplink.index) => {}
                Err(error) => first = first.and(Err(error)),
            }
        }
        first.map(|()| added)
    }

    /// Loads the programs of every kind of uplink and of workloads' veths, so that one that appears waits for no verifier.
    ///
    /// # Errors
    /// That the kernel refuses one.
    pub fn prepare_uplinks(&self) -> Result<(), Error> {
        // Without the lock, which what changes waits for.
        let object = lock(&self.datapath).object().clone();
        let programs = [WORKLOAD_HOOK, "uplink_egress", "uplink_egress_l3", "uplink_ingress", "uplink_ingress_l3"];
        object.load_programs(&programs);
        programs.into_iter().try_for_each(|name| object.program(name).map(drop))
    }
}

/// Takes a program away from an uplink that stays one.
fn let_go(point: &Attached, uplink: &Uplink, pins: Option<&Pins>) -> Result<(), Error> {
    if point.filter.is_some() {
        remove_clsact_of(&uplink.name, point.hook);
    }
    pins.map_or(Ok(()), |pins| pins.detach(&uplink.pin(point.hook)))
}

fn is_uplink(point: &Attached) -> bool {
    point.hook.starts_with("uplink_") || point.hook == DENIAL_HOOK
}

/// nix 0.31 takes libc's null for success and gives an empty name.
fn name_of(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    Some(name.to_string_lossy().into_owned()).filter(|name| !name.is_empty())
}

/// Whether the kernel says that there is none; where it cannot be asked (no descriptor), no.
pub(super) fn is_gone(index: u32) -> bool {
    let errno = match nix::net::if_::if_indextoname(index) {
        Ok(name) if name.is_empty() => Errno::last(),
        Ok(_) => return false,
        Err(errno) => errno,
    };
    matches!(errno, Errno::ENXIO | Errno::ENODEV)
}

/// A pin `if<index>-...` whose interface is gone: the kernel says 0 for it.
fn is_dead_uplink(pin: &str, link: &std::os::fd::OwnedFd) -> bool {
    use std::os::fd::AsFd as _;
    let ours = pin.strip_prefix("if").is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()));
    ours && crate::datapath::sys::link_info(link.as_fd()).is_ok_and(|info| info.target == 0)
}

/// The names of the interfaces that a default route of either family leaves by, in this network namespace.
///
/// # Errors
/// That the routes cannot be read, where there are any of the family.
pub fn default_uplinks() -> Result<Vec<String>, Error> {
    let failed = |source| Error::path("read", "/proc/self/net", source);
    let mut names = BTreeSet::new();
    match read_routes() {
        Ok(procfs::net::RouteEntries(routes)) => {
            names.extend(routes.into_iter().filter(is_default).map(|route| route.iface));
        }
        Err(procfs::ProcError::Io(error, _)) if is_want(&error) => return Err(failed(error)),
        Err(_) => {}
    }
    // Fields of ipv6_route (net/ipv6/route.c): destination, its prefix length, ..., metric, refcount, use, flags, device.
    let text = match std::fs::read_to_string("/proc/self/net/ipv6_route") {
        Err(error) if is_want(&error) => return Err(failed(error)),
        text => text.unwrap_or_default(),
    };
    for line in text.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        if let [destination, "00", .., _flags, device] = fields.as_slice()
            && destination.bytes().all(|byte| byte == b'0')
            && *device != "lo"
        {
            names.insert((*device).to_owned());
        }
    }
    Ok(names.into_iter().collect())
}

fn read_routes() -> procfs::ProcResult<procfs::net::RouteEntries> {
    use procfs::FromRead as _;
    let file = std::fs::File::open("/proc/self/net/route").map_err(|error| procfs::ProcError::Io(error, None))?;
    procfs::net::RouteEntries::from_read(file)
}

fn is_default(route: &RouteEntry) -> bool {
    route.destination.is_unspecified() && route.mask.is_unspecified()
}

/// Says when links or routes of this network namespace changed.
#[derive(Debug)]
pub struct Follower {
    changes: tokio::sync::watch::Receiver<u64>,
    task: tokio::task::AbortHandle,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    /// Subscribes to the kernel's link and route messages. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When the netlink socket cannot be opened.
    pub fn start() -> io::Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
        let (connection, _handle, mut messages) = new_multicast_connection(&groups)?;
        let (sender, changes) = tokio::sync::watch::channel(0);
        let task = tokio::spawn(async move {
            let connection = tokio::spawn(connection);
            while messages.next().await.is_some() {
                sender.send_modify(|count| *count += 1);
            }
            connection.abort();
        })
        .abort_handle();
        Ok(Self { changes, task })
    }

    /// Waits for the next change; several at once count as one.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The netlink task ended: nothing will change any more.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_interfaces_are_governed_but_a_bridges_workloads() {
        let net = tempfile::tempdir().unwrap();
        let make = |path: &str| fs::create_dir_all(net.path().join(path)).unwrap();
        for path in
            ["vlan5/lower_bond0", "bond0/bonding", "bond0/lower_eth0", "bond0/lower_eth1", "eth0/device", "eth1"]
        {
            make(path);
        }
        for path in ["br0/bridge", "br0/lower_veth1", "br0/lower_eth2", "veth1", "eth2/device"] {
            make(path);
        }
        let found = |name: &str| {
            let mut names = with_lower(net.path(), vec![name.to_owned()]);
            names.sort();
            names
        };
        assert_eq!(found("vlan5"), ["bond0", "eth0", "eth1", "vlan5"]);
        assert_eq!(found("br0"), ["br0", "eth2"]);
        assert_eq!(found("eth1"), ["eth1"]);
    }
}
