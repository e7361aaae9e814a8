//! The state that a running policy has: shared by `egress run` and `egress exec`.
//!
//! Data flows one way: policy → [`Core::install`] → kernel; resolver → [`Core`] as an [`AnswerSink`] → kernel; kernel →
//! [`ring`] → [`book`] (which name has which address) and the event hub.

mod book;
mod change;
mod changes;
mod enforce;
mod explain;
mod explain_packet;
mod files;
mod folds;
mod handle;
mod heard;
mod insides;
mod names;
mod program_log;
mod ready;
mod recent;
mod reclaim;
pub mod ring;
mod state;
mod status;
mod store;
mod sweep;
mod trouble;
mod trust;
mod uplinks;
mod workloads;

pub use book::Book;
pub use change::Changer;
pub use enforce::{Enforcement, Scope};
pub use files::PolicyFiles;
pub use handle::Handle;
pub use insides::Addresses;
pub use names::NamesFile;
pub use program_log::{Named, ProgramLog, follow as follow_program_log};
pub use ready::{Base, NotReady, Ready, allow_private, asked, resolve_settings, search_domains, settings};
pub use reclaim::reclaim;
pub use state::{Active, Core};
pub use store::{Applied, Store, Stored, make_dir};
pub use trust::{Believe, resolvers};
pub use uplinks::{Follower, Wanted, answered_for_command};
pub use workloads::{Link, links};

use crate::datapath::bpf_lsm;

const BYPASS: &str = "a workload in the host's network namespace with CAP_NET_RAW can send past every egress hook \
                      (AF_PACKET with PACKET_QDISC_BYPASS, AF_XDP)";

const NAMESPACED: &str = "it is seen from a cgroup namespace, not from the node: processes outside of it are not governed by their sockets; to \
                          govern the node mount its cgroup v2 here (in Kubernetes a hostPath of /sys/fs/cgroup), and name it with `--cgroup`";

/// What the machine cannot guarantee, a sentence each, with the remedy.
pub fn machine_warnings() -> Vec<String> {
    let mut warnings = Vec::new();
    if bpf_lsm() != Some(true) {
        warnings.push(format!("BPF LSM is not known to be on: {BYPASS}; boot with `lsm=...,bpf`"));
    }
    warnings
}
