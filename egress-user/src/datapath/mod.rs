//! The kernel's side of a policy, from here: load the programs, write a policy's tables, attach, and read back.
//!
//! A policy goes in as a *generation*: everything of the new one is written beside the old one under its own number, read
//! back, and then one word (`LIVE`) makes it the one that counts. What outlives the daemon is pinned below one directory
//! of bpffs ([`pins::Pins`]).

mod adopt;
mod aliases;
mod attach;
mod change;
mod chunks;
mod classes;
mod clock;
mod clsact;
mod confirm;
mod control;
mod error;
mod fill;
mod grants;
mod host;
mod install;
mod judge;
mod lower;
mod object;
mod patch;
mod paths;
mod pins;
mod read;
mod recent;
mod reclaim;
mod rehearse;
pub mod sys;
mod table;
mod workload;

pub use attach::{
    Ahead, Attached, CGROUP_HOOKS, Cgroup, DENIAL_HOOK, LSM_HOOKS, Uplink, attach_ahead, cgroup as attach_cgroup,
    forget_uplink, keep_uplinks, load_lsm, lsm as attach_lsm, uplink as attach_uplink,
};
pub use classes::{Allotted, Known as KnownClasses};
pub use clsact::{remove as remove_clsact, remove_one as remove_clsact_of, remove_where as remove_clsact_where};
pub use confirm::Settled;
pub use error::Error;
pub use fill::Fill;
pub use host::{accepted_connections, boot_ticks, bpf_lsm, cgroup_root, netns_cookie, opened_connections};
pub use install::{Datapath, Installed, Learned};
pub use judge::Judged;
pub use lower::{Elements, Place, Resolver, Settings, lower};
pub use object::{Loading, Object, Room, Sizes, prepare};
pub use pins::{Before, Pins};
pub use recent::{FlowTables, Passed};
pub use reclaim::{Reclaimed, Walk};
pub use rehearse::{Rehearsed, Scene, packet};
pub use table::{Plain, Table};
pub use workload::{WORKLOAD_HOOK, WORKLOAD_PIN, Workload};

#[cfg(test)]
mod tests;
