//! What the control socket answers. Serialised by the daemon, read back by the client: every field goes both ways.

use std::{net::IpAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    events::{Filter, Timestamp},
    policy::ItemError,
};

/// `GET /v1/status`: the daemon's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// `enforce` or `audit`.
    pub mode: String,
    /// Whether what no rule allows is dropped now: `false` in audit mode, and while an attach point is missing.
    pub enforcing: bool,
    /// When the daemon started.
    pub started: Timestamp,
    /// The live generation; 0 before the first policy.
    pub generation: u32,
    /// The policy in force.
    pub policy: PolicyStatus,
    /// Where the programs are attached.
    pub attach_points: Vec<AttachPoint>,
    /// The rules, in the order of the policy.
    pub rules: Vec<RuleStatus>,
    /// The names that rules speak of or that were learned, with their addresses.
    pub names: Vec<NameStatus>,
    /// Packets by reason; reasons that never came up may be left out.
    pub counters: Vec<Counter>,
    /// Events that the kernel's ring buffer had no room for, since the programs were attached.
    pub events_lost: u64,
    /// Where events are written besides the control socket.
    #[serde(default)]
    pub sinks: Vec<SinkStatus>,
    /// What became of queries, answers and addresses; what never happened is left out.
    #[serde(default)]
    pub learning: Vec<LearnCounter>,
    /// How full the kernel's maps are.
    pub maps: Vec<MapFill>,
    /// What cannot be guaranteed on this machine, a sentence each.
    pub warnings: Vec<String>,
    /// Whether all is well.
    pub health: Health,
}

/// How many of [`Status::names`] there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameCounts {
    /// Names that have addresses now.
    pub known: usize,
    /// Names whose last question failed.
    pub failing: usize,
    /// Addresses of names.
    pub addresses: usize,
}

impl NameCounts {
    /// Counts.
    pub fn of(names: &[NameStatus]) -> Self {
        Self {
            known: names.iter().filter(|name| !name.addresses.is_empty()).count(),
            failing: names.iter().filter(|name| name.last_error.is_some()).count(),
            addresses: names.iter().map(|name| name.addresses.len()).sum(),
        }
    }
}

/// A sink of events (`run --events`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkStatus {
    /// As on the command line, without how it is written.
    pub sink: String,
    /// Events that it took.
    pub written: u64,
    /// Events that it missed: it was too slow, or away for too long.
    pub lost: u64,
}

/// Where the policy came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Files and names of embedded policies, as given.
    pub files: Vec<String>,
    /// A hash of the merged policy, in hex.
    pub hash: String,
    /// How many rules it has.
    pub rules: usize,
    /// It came by `egress apply`, not from the files that the daemon was started with.
    #[serde(default)]
    pub applied: bool,
    /// It waits for `egress confirm` so long; then the policy before comes back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_seconds_left: Option<u64>,
}

/// A program's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachPoint {
    /// `cgroup_skb/egress`, `tcx/ingress`, ....
    pub hook: String,
    /// The cgroup's path or the interface's name.
    pub target: String,
    /// The kernel's id of the link; absent where it is attached without one (clsact).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_id: Option<u32>,
    /// Whether it is attached now.
    pub present: bool,
}

/// A rule and what it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleStatus {
    /// Its name.
    pub name: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// `allow` or `deny`.
    pub action: String,
    /// Packets that it matched.
    pub packets: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Where it is written: `FILE:LINE`.
    pub source: String,
}

/// A name and its addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameStatus {
    /// The name.
    pub name: String,
    /// Its addresses now.
    pub addresses: Vec<AddressStatus>,
    /// The rules that allow it.
    pub rules: Vec<String>,
    /// Why the last question about it failed; absent where it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// An address that a name opens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressStatus {
    /// The address.
    pub address: IpAddr,
    /// Seconds until it stops counting; 0 where `permanent`.
    pub seconds_left: u64,
    /// The policy itself names it.
    pub permanent: bool,
}

/// Packets with one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// The stable name of an [`egress_ebpf::reason::Reason`].
    pub reason: String,
    /// Whether packets with this reason pass.
    pub passes: bool,
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What the kernel did about names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnCounter {
    /// The stable name of an [`egress_ebpf::abi::LearnCount`].
    pub what: String,
    /// Whether something was not learned: an answer, an address, or a query's answer to come.
    pub loses: bool,
    /// How often.
    pub count: u64,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapFill {
    /// Its name.
    pub name: String,
    /// Entries in use.
    pub entries: u64,
    /// Entries that it can hold.
    pub capacity: u64,
    /// Bytes of kernel memory that it takes now; 0 from a daemon that does not tell.
    #[serde(default)]
    pub bytes: u64,
    /// It gives up old entries for new ones: full is no trouble.
    #[serde(default)]
    pub evicts: bool,
}

/// `GET /v1/health`: 200 where healthy, else 503.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Every attach point is in place, a policy is in force, and names can be resolved.
    pub healthy: bool,
    /// What is wrong, a sentence each; empty where healthy.
    pub problems: Vec<String>,
}

/// The body of every answer that is not 2xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Which events `GET /v1/events` sends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventFilter {
    /// Stay, and send what comes.
    #[serde(default)]
    pub follow: bool,
    /// Only dropped and would-drop (and what was lost).
    #[serde(default)]
    pub dropped: bool,
    /// How many past events come first; by default all that are kept, or none with `follow`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent: Option<usize>,
    /// Only of this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Only of this cgroup and those below it, by its path below the cgroup v2 root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// Only to this destination: a name, a wildcard, an address or a prefix, perhaps with `:PORT[/PROTO]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Only with this reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl EventFilter {
    /// The filter that these words ask for.
    ///
    /// # Errors
    /// Which of them is none.
    pub fn parse(&self) -> Result<Filter, ItemError> {
        Ok(Filter {
            dropped: self.dropped,
            pid: self.pid,
            cgroup: self.cgroup.clone(),
            to: self.to.as_deref().map(str::parse).transpose()?,
            reason: self.reason.as_deref().map(Filter::reason).transpose()?,
        })
    }

    /// Whether it leaves anything out.
    pub fn is_narrow(&self) -> bool {
        *self != Self { follow: self.follow, recent: self.recent, ..Self::default() }
    }
}

/// The daemon's side of the socket: where it is and who may read.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// The socket's path; its parent is made where it is missing.
    pub path: PathBuf,
    /// A group whose members may read the state, by id. Without it root alone may.
    pub group: Option<u32>,
}
