//! The event that everything outside the kernel sees. The schema is in `docs/events.md`: change both, and bump
//! [`SCHEMA_VERSION`] when a field is renamed, removed or changes its meaning (adding one does not).

use std::net::IpAddr;

use egress_ebpf::abi;
use serde::{Deserialize, Serialize};

use super::{Container, Timestamp};

/// The version of the JSON form, in every event's `version`.
pub const SCHEMA_VERSION: u32 = 1;

/// Something that happened. Text that others chose (process names, DNS names, paths) is escaped already: it holds no
/// control characters and may go to a terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// [`SCHEMA_VERSION`].
    pub version: u32,
    /// When, by the wall clock.
    pub time: Timestamp,
    /// What.
    #[serde(flatten)]
    pub kind: Kind,
}

impl Event {
    /// An event of this schema version.
    pub fn new(time: Timestamp, kind: Kind) -> Self {
        Self { version: SCHEMA_VERSION, time, kind }
    }

    /// The refusal, where it is one: dropped or would-drop.
    pub fn refusal(&self) -> Option<&Refusal> {
        match &self.kind {
            Kind::Dropped(refusal) | Kind::WouldDrop(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// What happened; `kind` in JSON, the fields beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Kind {
    /// A packet or system call was refused.
    Dropped(Box<Refusal>),
    /// It passed because the policy only audits.
    WouldDrop(Box<Refusal>),
    /// A trusted resolver answered for an allowed name.
    Learned(LearnedName),
    /// The running policy changed, or a change was refused.
    Policy(PolicyChange),
    /// A resolver failed, or works again.
    Resolver(ResolverTrouble),
    /// Events were lost before they reached the reader.
    Lost(Lost),
}

/// What became of the packet or system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was dropped; a system call failed with EPERM.
    Drop,
    /// It passed (audit).
    Pass,
}

/// Where it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// cgroup_skb/egress.
    CgroupEgress,
    /// cgroup/connect4 and connect6.
    Connect,
    /// cgroup/sendmsg4 and sendmsg6.
    Sendmsg,
    /// An uplink's egress.
    UplinkEgress,
    /// cgroup_skb/ingress.
    CgroupIngress,
    /// An uplink's ingress.
    UplinkIngress,
    /// The host side of a workload's veth.
    WorkloadIngress,
    /// The LSM's socket hooks.
    Lsm,
    /// A hook that this version does not know.
    Unknown,
}

impl Hook {
    /// The hook with this number, one of the `HOOK_*` values of [`egress_ebpf::abi`].
    pub const fn from_number(number: u8) -> Self {
        match number {
            abi::HOOK_CGROUP_EGRESS => Self::CgroupEgress,
            abi::HOOK_CONNECT => Self::Connect,
            abi::HOOK_SENDMSG => Self::Sendmsg,
            abi::HOOK_UPLINK_EGRESS => Self::UplinkEgress,
            abi::HOOK_CGROUP_INGRESS => Self::CgroupIngress,
            abi::HOOK_UPLINK_INGRESS => Self::UplinkIngress,
            abi::HOOK_WORKLOAD_INGRESS => Self::WorkloadIngress,
            abi::HOOK_LSM => Self::Lsm,
            _ => Self::Unknown,
        }
    }

    /// Its stable name, as events have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::CgroupEgress => "cgroup-egress",
            Self::Connect => "connect",
            Self::Sendmsg => "sendmsg",
            Self::UplinkEgress => "uplink-egress",
            Self::CgroupIngress => "cgroup-ingress",
            Self::UplinkIngress => "uplink-ingress",
            Self::WorkloadIngress => "workload-ingress",
            Self::Lsm => "lsm",
            Self::Unknown => "unknown",
        }
    }
}

/// A packet or system call that no rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// What became of it.
    pub verdict: Verdict,
    /// The stable name of an [`egress_ebpf::reason::Reason`], such as `no-rule`.
    pub reason: String,
    /// Where it was decided.
    pub hook: Hook,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `igmp`, `gre`, ..., else the protocol number; `ethertype-0x88f7` where it is not IP.
    pub protocol: String,
    /// The source address; absent where the socket has none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The source port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// The destination address; absent where it is not IP, or where a socket was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpAddr>,
    /// The destination port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// Type and code, for ICMP and ICMPv6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<Icmp>,
    /// The names that the destination is or was known by, the one learned last first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The name that a refused DNS query asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The deny rule that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Who sent it; absent for forwarded packets and others without a socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessInfo>,
    /// The cgroup's path below the cgroup v2 root, such as `/system.slice/cron.service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The cgroup's id (its directory's inode number).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup_id: Option<u64>,
    /// The container, as far as the cgroup's path tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The uid of the Kubernetes pod, as far as the cgroup's path tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// The pod's namespace, where the kubelet's `/var/log/pods` tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_namespace: Option<String>,
    /// The pod's name, where the kubelet's `/var/log/pods` tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// The cookie of the socket's network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<u64>,
    /// The name of the interface, at hooks that sit on one of the host's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The interface's index, in the packet's network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface_index: Option<u32>,
    /// Bytes of this packet, from the network header on; 0 for a system call.
    pub bytes: u32,
    /// The policy generation that judged.
    pub generation: u32,
    /// How many like it there were since the last event like it, this one included.
    pub count: u32,
}

impl Refusal {
    /// The workload in a few words: its pod by namespace and name, else its container by runtime and short id.
    pub fn place(&self) -> Option<String> {
        if let (Some(namespace), Some(name)) = (&self.pod_namespace, &self.pod_name) {
            return Some(format!("pod {namespace}/{name}"));
        }
        self.container.as_ref().map(|container| {
            let id = container.id.get(..12).unwrap_or(&container.id);
            format!("{} {id}", container.runtime.as_deref().unwrap_or("container"))
        })
    }
}

/// ICMP's type and code (RFC 792, RFC 4443).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Icmp {
    /// The type.
    #[serde(rename = "type")]
    pub kind: u8,
    /// The code.
    pub code: u8,
}

/// A process. What is absent was gone from `/proc` when it was looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessInfo {
    /// The process id, in the initial PID namespace.
    pub pid: u32,
    /// The command name, as the kernel recorded it with the event.
    pub comm: String,
    /// The executable's path, in the process' own mount namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// The user id, in the initial user namespace.
    pub uid: u32,
    /// The parent's process id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ppid: Option<u32>,
}

/// A name was learned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedName {
    /// The name that was asked.
    pub name: String,
    /// The resolver's address.
    pub resolver: IpAddr,
    /// The resolver's port.
    pub resolver_port: u16,
    /// The response code (RFC 1035, 4.1.1); 0 is success.
    pub rcode: u8,
    /// The addresses.
    pub addresses: Vec<LearnedAddress>,
    /// Answer records that were left out: private, malformed, off the CNAME chain, or too many.
    pub refused: u32,
    /// The rules whose patterns match the name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// The policy generation.
    pub generation: u32,
    /// How many answers that said the same there were since the last event of one, this one included.
    #[serde(default = "one")]
    pub count: u32,
}

/// What events of earlier versions stand for.
const fn one() -> u32 {
    1
}

/// An address of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedAddress {
    /// The address.
    pub address: IpAddr,
    /// The answer's TTL as received, in seconds.
    pub ttl: u32,
    /// Seconds until it stops counting, from the event's time; absent where it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u32>,
}

/// A change of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyChange {
    /// The generation that is live now.
    pub generation: u32,
    /// Whether the change is in force; `false` where it was refused and the old policy stays.
    pub applied: bool,
    /// `enforce` or `audit`.
    pub mode: String,
    /// How many rules are live now.
    pub rules: usize,
    /// What happened, for a person: `loaded 2 files`, or why it was refused.
    pub message: String,
}

/// Trouble with a resolver, or its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolverTrouble {
    /// The resolver, as `ADDRESS:PORT`; absent where all failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolver: Option<String>,
    /// The name that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether it works again.
    pub recovered: bool,
    /// What happened, for a person: `no answer within 5s`.
    pub message: String,
}

/// Events that the reader will not see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// How many.
    pub count: u64,
    /// Where.
    #[serde(rename = "where")]
    pub place: LostWhere,
}

/// Where events were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LostWhere {
    /// The kernel's ring buffer was full: the daemon was too slow. Counters and verdicts are not affected.
    Kernel,
    /// This subscriber read too slowly.
    Subscriber,
}
