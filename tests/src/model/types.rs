//! What the model speaks of: a policy, a packet, what is known, and the verdict.

use std::net::IpAddr;

use ipnet::IpNet;

/// A policy as its text says it.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    pub mode: Mode,
    pub dns: Dns,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Enforce,
    Audit,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// The trusted ones.
    pub resolvers: Vec<IpAddr>,
    pub queries: Queries,
    /// Domains whose names need no rule to be asked for.
    pub internal: Vec<String>,
    /// Patterns of names whose answers may hold private addresses.
    pub allow_private: Vec<String>,
    /// Seconds.
    pub min_ttl: u64,
    /// Seconds.
    pub grace: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    Allowlisted,
    Any,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub name: String,
    pub action: Action,
    pub to: Vec<To>,
    /// Empty in a deny rule: all.
    pub ports: Vec<Ports>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Deny,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum To {
    /// An exact name, `*.example.com`, or a `*` inside the leftmost label.
    Name(String),
    Net(IpNet),
    Any,
}

/// Port ranges are inclusive, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    Tcp(u16, u16),
    Udp(u16, u16),
    AnyTcp,
    AnyUdp,
    Icmp,
    Any,
}

/// A packet on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub transport: Transport,
    /// The TTL or hop limit.
    pub hops: u8,
    /// It leaves by the loopback interface.
    pub loopback: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        source: u16,
        destination: u16,
    },
    Udp {
        source: u16,
        destination: u16,
    },
    /// ICMP for IPv4, ICMPv6 for IPv6; the type.
    Icmp(u8),
    /// Another IP protocol, by number.
    Other(u8),
    /// A fragment that is not the first.
    LaterFragment,
    /// A source route option, or a routing header.
    Rerouted,
    /// A header that cannot be parsed.
    Unparsable,
}

/// What is known besides the packet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// The clock, in seconds.
    pub now: u64,
    /// Answers of trusted resolvers.
    pub learned: Vec<Learned>,
    /// CNAME records of trusted resolvers' answers.
    pub aliases: Vec<Alias>,
    /// It belongs to a connection that was accepted, or answers a datagram, or is an ICMP error about either.
    pub reply: bool,
    /// It belongs to a connection opened outwards that this rule allowed when it began: by which rule, and under which
    /// learned name (`None`: by address).
    pub began: Option<Began>,
    /// For a later fragment: what became of its first one.
    pub first_fragment_passed: bool,
    /// The DNS question it carries, if it does.
    pub question: Option<String>,
    /// The other reading of DNS to addresses that are no trusted resolver: rules may open it.
    pub rules_open_dns: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// The name that was asked for.
    pub name: String,
    pub address: IpAddr,
    /// When the answer came, and its TTL, in seconds.
    pub at: u64,
    pub ttl: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pub owner: String,
    pub target: String,
    pub at: u64,
    pub ttl: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Began {
    pub rule: String,
    pub name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the packet leaves. In audit mode it always does.
    pub pass: bool,
    /// What was decided; in audit mode, what enforcement would decide.
    pub reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    Builtin(Builtin),
    Reply,
    /// The first rule of the file that allows it; others may too.
    Allowed(String),
    /// A connection that this rule allowed when it began.
    StillAllowed(String),
    Question,
    Fragment,
    // The rest are drops.
    Malformed,
    Protocol,
    FirstFragmentDropped,
    Denied(String),
    QuestionNotAllowed,
    OtherResolver,
    NoRule,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builtin {
    Loopback,
    NeighbourDiscovery,
    MulticastListener,
    Igmp,
    Dhcp,
}

impl Reason {
    #[must_use]
    pub fn passes(&self) -> bool {
        matches!(
            self,
            Reason::Builtin(_)
                | Reason::Reply
                | Reason::Allowed(_)
                | Reason::StillAllowed(_)
                | Reason::Question
                | Reason::Fragment
        )
    }
}
