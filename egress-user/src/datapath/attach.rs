//! Attach points: the cgroup's hooks and the uplinks' egress and ingress.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use super::{
    Error, Object, Pins, Table, clsact,
    host::{cgroup_root, cgroup_root_of, is_machine_root},
    object::kernel_functions,
    sys::{self, AttachType},
};
use crate::beside::Beside;

/// The cgroup's programs, in the order in which they are attached: those that remember first, so that what comes in
/// between two attachments is known when those that drop are there.
pub const CGROUP_HOOKS: [(&str, AttachType); 7] = [
    ("socket_create", AttachType::CgroupSockCreate),
    ("socket_ingress", AttachType::CgroupIngress),
    ("socket_egress", AttachType::CgroupEgress),
    ("connect4", AttachType::CgroupConnect4),
    ("connect6", AttachType::CgroupConnect6),
    ("sendmsg4", AttachType::CgroupSendmsg4),
    ("sendmsg6", AttachType::CgroupSendmsg6),
];

/// The program that answers refused queries where nothing else is judged.
pub const DENIAL_HOOK: &str = "denial_egress";

/// The LSM programs, and the hook of each.
pub const LSM_HOOKS: [(&str, &str); 2] =
    [("lsm_socket_create", "socket_create"), ("lsm_socket_setsockopt", "socket_setsockopt")];

/// The governed cgroup.
#[derive(Debug)]
pub struct Cgroup {
    /// Its directory.
    pub path: PathBuf,
    /// Its id: the directory's inode number.
    pub id: u64,
    /// Its depth below the machine's root, which has 0; `None` where a cgroup namespace hides that.
    pub level: Option<u32>,
    dir: File,
}

impl Cgroup {
    /// Opens a cgroup; without a path the root of cgroup v2.
    ///
    /// # Errors
    /// [`Error::NoCgroup`], [`Error::NotACgroup`], or that the directory is not there.
    pub fn open(path: Option<&Path>) -> Result<Self, Error> {
        // Without any cgroup v2 that is what is told, not that a path is not there.
        let root = cgroup_root()?;
        let path = match path {
            Some(path) => fs::canonicalize(path).map_err(|error| Error::path("open the cgroup", path, error))?,
            None => root,
        };
        let root = cgroup_root_of(&path)?;
        let Ok(below) = path.strip_prefix(&root) else { return Err(Error::NotACgroup { path, root }) };
        let level = is_machine_root(&root).then(|| below.components().count() as u32);
        let dir = File::open(&path).map_err(|error| Error::path("open the cgroup", &path, error))?;
        let id = dir.metadata().map_err(|error| Error::path("look at", &path, error))?.ino();
        if !path.join("cgroup.procs").exists() {
            return Err(Error::NotACgroup { path, root });
        }
        Ok(Self { path, id, level, dir })
    }

    /// Whether processes are in it or below it; of the root, which always has some, and in doubt, yes.
    pub fn is_populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).map_or(true, |events| !events.contains("populated 0"))
    }
}

/// An interface that packets leave the node by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Whether its packets have an Ethernet header.
    pub ethernet: bool,
    /// Whether what leaves by it is judged; else refused queries are answered there, and nothing more.
    pub judges: bool,
    /// Whether what arrives by it came from outside. A bridge whose outer ports are uplinks themselves hands up its workloads' packets too.
    pub hears: bool,
}

impl Uplink {
    /// The interface of this name, in this process's network namespace.
    ///
    /// # Errors
    /// [`Error::NoInterface`], and [`Error::Interface`] where that is not known.
    pub fn named(name: &str) -> Result<Self, Error> {
        let index = nix::net::if_::if_nametoindex(name).map_err(|errno| match errno {
            Errno::ENODEV | Errno::ENXIO | Errno::EINVAL | Errno::ENAMETOOLONG => Error::NoInterface(name.to_owned()),
            // As where there is no descriptor for the question.
            errno => Error::Interface { name: name.to_owned(), source: errno.into() },
        })?;
        // ARPHRD_ETHER (1) and ARPHRD_LOOPBACK (772) have Ethernet headers; TUN (65534), WireGuard and the like none.
        let kind = match fs::read_to_string(format!("/sys/class/net/{name}/type")) {
            Err(source) if sys::is_want(&source) => return Err(Error::Interface { name: name.to_owned(), source }),
            kind => kind.unwrap_or_default(),
        };
        let ethernet = matches!(kind.trim(), "" | "1" | "772");
        Ok(Self { name: name.to_owned(), index, ethernet, judges: true, hears: true })
    }

    /// Loopback, which local stubs are asked by: it has the same name and index in every network namespace.
    pub fn loopback() -> Self {
        Self { name: "lo".to_owned(), index: 1, ethernet: true, judges: false, hears: false }
    }

    /// Where a program's link is pinned.
    pub(crate) fn pin(&self, hook: &str) -> String {
        format!("if{}-{hook}", self.index)
    }

    /// The programs that belong there, in the order in which they are attached: what remembers before what drops.
    pub(crate) fn hooks(&self) -> &'static [(&'static str, AttachType)] {
        match (self.judges, self.ethernet) {
            (true, true) if !self.hears => &[("uplink_egress", AttachType::TcxEgress)],
            (true, true) => &[("uplink_ingress", AttachType::TcxIngress), ("uplink_egress", AttachType::TcxEgress)],
            (true, false) => {
                &[("uplink_ingress_l3", AttachType::TcxIngress), ("uplink_egress_l3", AttachType::TcxEgress)]
            }
            (false, _) => &[(DENIAL_HOOK, AttachType::TcxEgress)],
        }
    }
}

/// One attachment that is in force.
#[derive(Debug)]
pub struct Attached {
    /// The program's name.
    pub hook: &'static str,
    /// The cgroup's path or the interface's name.
    pub target: String,
    /// The interface's index; 0 for a cgroup.
    pub interface: u32,
    /// The link that holds it; `None` for a clsact filter, which the interface holds, and for what `pin` holds.
    pub link: Option<OwnedFd>,
    /// The pin that alone holds the link: an LSM link cannot be detached while anybody has it open, so that
    /// `egress detach` could not end it beside a daemon that keeps it.
    pub pin: Option<PathBuf>,
    /// The clsact filter, where the kernel has no tcx.
    pub filter: Option<clsact::Filter>,
}

impl Attached {
    /// What the kernel says of the link; `None` without one, or when its pin is gone.
    pub fn info(&self) -> Option<sys::LinkInfo> {
        if let Some(link) = &self.link {
            return sys::link_info(link.as_fd()).ok();
        }
        sys::link_info(sys::open_pin(self.pin.as_deref()?).ok()?.as_fd()).ok()
    }

    /// Whether it is attached still, as far as the kernel tells.
    pub fn present(&self) -> bool {
        self.filter.as_ref().is_some_and(clsact::Filter::present) || self.info().is_some_and(|info| info.target != 0)
    }
}

/// Attaches the cgroup's programs. With `pins` a link that is pinned is taken up and its program replaced, with no
/// moment unattached, and a new one is pinned.
pub fn cgroup(object: &mut Object, cgroup: &Cgroup, pins: Option<&Pins>) -> Result<Vec<Attached>, Error> {
    let mut attached = Vec::new();
    for (hook, attach_type) in CGROUP_HOOKS {
        let what = || format!("{hook} of {}", cgroup.path.display());
        let program = object.program(hook)?;
        let pin = pins.map(|pins| pins.link(&format!("cgroup-{}-{hook}", cgroup.id)));
        let link = link(program, cgroup.dir.as_raw_fd() as u32, attach_type, pin.as_deref())
            .map_err(|source| Error::Attach { what: what(), source })?;
        attached.push(Attached {
            hook,
            target: cgroup.path.display().to_string(),
            interface: 0,
            link: Some(link),
            pin: None,
            filter: None,
        });
    }
    Ok(attached)
}

/// Attaches the programs of an uplink, or the one that answers: by tcx, or by clsact where the kernel (before 6.6) has no tcx.
/// Links that were made `ahead` are taken.
///
/// Only when they are in force does the cgroup's hook leave refused queries to them (decisions 0018 and 0031).
pub fn uplink(
    object: &mut Object,
    uplink: &Uplink,
    pins: Option<&Pins>,
    ahead: &mut Vec<Ahead>,
) -> Result<Vec<Attached>, Error> {
    in_force(object, uplink, |object| uplink_hooks(object, uplink, pins, ahead))
}

/// A link of an interface that is in force, and pinned nowhere yet: it goes with this.
#[derive(Debug)]
pub struct Ahead {
    pub(super) interface: u32,
    pub(super) hook: &'static str,
    pub(super) link: OwnedFd,
}

/// Begins to attach the programs of these interfaces, each when it is loaded, where nothing is pinned for them: the kernel waits some 10 ms
/// for each (`tcx_entry_sync` in include/net/tcx.h, a grace period of RCU), under the lock of all interfaces, so that a thread is enough.
/// What is pinned is left as it is until nothing can be refused any more, and is changed without a wait. What fails is left to [`uplink`].
pub fn attach_ahead(object: &Object, interfaces: &[Uplink], pins: Option<&Pins>) -> Beside<Vec<Ahead>> {
    let pinned = |interface: &Uplink, hook: &str| {
        pins.is_some_and(|pins| fs::symlink_metadata(pins.link(&interface.pin(hook))).is_ok())
    };
    let hooks = interfaces.iter().flat_map(|interface| interface.hooks().iter().map(move |hook| (interface, *hook)));
    let wanted: Vec<_> = hooks
        .filter(|(interface, (hook, _))| !pinned(interface, hook))
        .map(|(interface, (hook, at))| (interface.index, hook, at))
        .collect();
    let object = object.clone();
    let attach = move |(interface, hook, at)| {
        let link = sys::link_create(object.program(hook).ok()?, interface, at).ok()?;
        Some(Ahead { interface, hook, link })
    };
    // In this order or not at all: what only remembers stands before what drops.
    Beside::begin(move || wanted.into_iter().map_while(attach).collect())
}

/// Tells the cgroup's hook whether an interface's programs are in force, after `attach`.
fn in_force(
    object: &mut Object,
    uplink: &Uplink,
    attach: impl FnOnce(&mut Object) -> Result<Vec<Attached>, Error>,
) -> Result<Vec<Attached>, Error> {
    let result = attach(object);
    if result.is_ok() {
        uplinks(object)?.set(&uplink.index, &[uplink.index, 0], sys::ANY)?;
    } else {
        forget_uplink(object, uplink.index)?;
    }
    result
}

/// From here on the cgroup's hook leaves no more refused queries to this interface's program.
pub fn forget_uplink(object: &Object, index: u32) -> Result<(), Error> {
    uplinks(object)?.remove(&index).map(drop)
}

/// The value is the kernel's `bpf_devmap_val`: the interface, and no XDP program.
fn uplinks(object: &Object) -> Result<Table<u32, [u32; 2]>, Error> {
    object.table("UPLINKS")
}

/// Forgets the uplinks of an earlier daemon that are not among these, or whose program is not known to be in force: to be
/// called before anything is attached.
pub fn keep_uplinks(object: &Object, wanted: &[&Uplink], pins: Option<&Pins>) -> Result<(), Error> {
    let in_force = |uplink: &Uplink, hook: &str| {
        let link = pins.and_then(|pins| sys::open_pin(&pins.link(&uplink.pin(hook))).ok());
        link.is_some_and(|link| sys::link_info(link.as_fd()).is_ok_and(|info| info.target == uplink.index))
    };
    let kept = |index: u32| {
        let mut wanted = wanted.iter().filter(|uplink| uplink.index == index);
        wanted.any(|uplink| uplink.hooks().iter().all(|(hook, _)| in_force(uplink, hook)))
    };
    uplinks(object)?.remove_where(|index| !kept(*index)).map(drop)
}

fn uplink_hooks(
    object: &mut Object,
    uplink: &Uplink,
    pins: Option<&Pins>,
    ahead: &mut Vec<Ahead>,
) -> Result<Vec<Attached>, Error> {
    let mut attached = Vec::new();
    for &(hook, attach_type) in uplink.hooks() {
        let pin = pins.map(|pins| pins.link(&uplink.pin(hook)));
        let mut filter = None;
        let made = ahead.iter().position(|made| made.interface == uplink.index && made.hook == hook);
        let link = match made.map(|made| ahead.swap_remove(made).link) {
            Some(made) => keep(made, pin.as_deref()),
            None => link(object.program(hook)?, uplink.index, attach_type, pin.as_deref()),
        };
        let link = match link {
            Ok(link) => Some(link),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                filter = Some(clsact::attach(object, hook, &uplink.name, uplink.index)?);
                None
            }
            Err(source) => return Err(Error::Attach { what: format!("{hook} of {}", uplink.name), source }),
        };
        attached.push(Attached { hook, target: uplink.name.clone(), interface: uplink.index, link, pin: None, filter });
    }
    Ok(attached)
}

/// Looks for the kernel's functions that call the LSM programs, and loads these, which takes some milliseconds each.
///
/// # Errors
/// That the kernel does not tell its types, or has no BPF LSM, or refuses the programs.
pub fn load_lsm(object: &Object) -> Result<[u32; 2], Error> {
    let functions =
        kernel_functions(LSM_HOOKS.map(|(_, hook)| format!("bpf_lsm_{hook}"))).map_err(Error::KernelTypes)?;
    LSM_HOOKS.iter().zip(functions).try_for_each(|((name, _), function)| object.lsm(name, function).map(drop))?;
    Ok(functions)
}

/// Attaches the LSM programs, which are called for every process and look for the governed cgroup themselves. With
/// `pins` they are pinned, and take the place of those that are pinned there after they are in force. `functions` are those of the
/// kernel that call them, as [`load_lsm`] found them.
///
/// This succeeds also on a kernel that has BPF LSM built in and not switched on, where nothing calls them.
///
/// # Errors
/// That the kernel has no BPF LSM, or refuses the programs.
pub fn lsm(object: &Object, functions: [u32; 2], pins: Option<&Pins>) -> Result<Vec<Attached>, Error> {
    let mut attached = Vec::new();
    for ((name, hook), function) in LSM_HOOKS.into_iter().zip(functions) {
        let failed = |source| Error::Attach { what: format!("the LSM hook {hook}"), source };
        let link = sys::lsm_link(object.lsm(name, function)?).map_err(failed)?;
        let pin = pins.map(|pins| replace_pin(&link, pins, hook)).transpose().map_err(failed)?;
        let link = pin.is_none().then_some(link);
        attached.push(Attached {
            hook: name,
            target: "every process".to_owned(),
            interface: 0,
            link,
            pin,
            filter: None,
        });
    }
    Ok(attached)
}

/// An LSM link cannot be given another program, so the new one is pinned beside the old and renamed over it.
fn replace_pin(link: &OwnedFd, pins: &Pins, hook: &str) -> std::io::Result<PathBuf> {
    let (pin, fresh) = (pins.link(&format!("lsm-{hook}")), pins.link(&format!("lsm-{hook}-new")));
    // Left by a daemon that was killed between the two calls.
    let _ = fs::remove_file(&fresh);
    sys::pin(link.as_fd(), &fresh)?;
    fs::rename(fresh, &pin)?;
    Ok(pin)
}

pub(super) fn link(
    program: std::os::fd::BorrowedFd<'_>,
    target: u32,
    attach_type: AttachType,
    pin: Option<&Path>,
) -> std::io::Result<OwnedFd> {
    let pinned = pin.and_then(|pin| sys::open_pin(pin).ok());
    // A pinned link whose target is gone cannot be updated: it is of an earlier life, and makes room.
    if let Some(link) = &pinned
        && sys::link_info(link.as_fd()).is_ok_and(|info| info.target != 0)
        && sys::link_update(link.as_fd(), program).is_ok()
    {
        return Ok(pinned.expect("it was updated"));
    }
    // Before the old one goes: where there can be none, that one stays.
    let made = sys::link_create(program, target, attach_type)?;
    if pinned.is_some() {
        fs::remove_file(pin.expect("it was opened"))?;
    } else if let Some(pin) = pin.filter(|pin| pin.is_dir()) {
        fs::remove_dir_all(pin)?;
    }
    keep(made, pin)
}

/// Pins a new link, if it is to outlive this process.
fn keep(link: OwnedFd, pin: Option<&Path>) -> std::io::Result<OwnedFd> {
    if let Some(pin) = pin {
        sys::pin(link.as_fd(), pin)?;
    }
    Ok(link)
}
