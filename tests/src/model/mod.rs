//! An independent model of the decision, written the slow, obvious way from DESIGN section 1 alone: linear scans over the
//! rules as they stand in the file, no compiled form, no cache. The real decision is compared with it.
//!
//! Where the text leaves a choice, this is how it is read:
//! - What is malformed or rerouted is dropped before anything else is asked, loopback alone excepted.
//! - Builtins, then replies to what came in, pass before the rules are asked, deny rules included (P8 says that an
//!   operator's SSH session passes *throughout*).
//! - Rules speak of TCP, UDP, ICMP and ICMPv6. `any` as a port means all of these; no rule opens another IP protocol.
//! - Port 53 towards a trusted resolver is judged by the question, never by the rules: a rule such as `any` on `any` does
//!   not open a tunnel (P5). Towards any other address it is dropped, unless [`Facts::rules_open_dns`] is set.
//! - `to: [any]` allows addresses, and no name to be asked for.

mod generate;
#[cfg(test)]
mod tests;
mod wire;
mod yaml;

use std::net::IpAddr;

use ipnet::IpNet;

pub use generate::{Case, NOW, case, edge_addresses, edge_ports, packet, policy};
pub use wire::dns_query;

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

/// The verdict on one packet.
#[must_use]
pub fn decide(policy: &Policy, facts: &Facts, packet: &Packet) -> Verdict {
    let reason = reason(policy, facts, packet);
    Verdict {
        pass: policy.mode == Mode::Audit || reason.passes(),
        reason,
    }
}

fn reason(policy: &Policy, facts: &Facts, packet: &Packet) -> Reason {
    if packet.loopback {
        return Reason::Builtin(Builtin::Loopback);
    }
    match packet.transport {
        Transport::Rerouted | Transport::Unparsable => return Reason::Malformed,
        Transport::LaterFragment if facts.first_fragment_passed => return Reason::Fragment,
        Transport::LaterFragment => return Reason::FirstFragmentDropped,
        _ => {}
    }
    if let Some(builtin) = builtin(packet) {
        return Reason::Builtin(builtin);
    }
    if matches!(packet.transport, Transport::Other(_)) {
        return Reason::Protocol;
    }
    if facts.reply {
        return Reason::Reply;
    }
    if let Some(reason) = dns(policy, facts, packet) {
        return reason;
    }
    for rule in policy.rules.iter().filter(|rule| rule.action == Action::Deny) {
        if ports_match(rule, packet) && rule.to.iter().any(|to| address_match(to, packet.destination)) {
            return Reason::Denied(rule.name.clone());
        }
    }
    for rule in policy.rules.iter().filter(|rule| rule.action == Action::Allow) {
        if ports_match(rule, packet)
            && rule
                .to
                .iter()
                .any(|to| allowed_now(to, policy, facts, packet.destination))
        {
            return Reason::Allowed(rule.name.clone());
        }
    }
    match &facts.began {
        Some(began) if policy.rules.iter().any(|rule| still_stands(rule, began, packet)) => {
            Reason::StillAllowed(began.rule.clone())
        }
        _ => Reason::NoRule,
    }
}

fn builtin(packet: &Packet) -> Option<Builtin> {
    match (&packet.transport, packet.destination) {
        // RFC 4861: router and neighbour solicitation and advertisement, redirect.
        (Transport::Icmp(133..=137), IpAddr::V6(_)) => Some(Builtin::NeighbourDiscovery),
        // RFC 2710 and RFC 3810.
        (Transport::Icmp(130..=132 | 143), IpAddr::V6(_)) => Some(Builtin::MulticastListener),
        (Transport::Other(2), IpAddr::V4(_)) => Some(Builtin::Igmp),
        (
            Transport::Udp {
                source: 68,
                destination: 67,
            },
            IpAddr::V4(_),
        ) => Some(Builtin::Dhcp),
        (
            Transport::Udp {
                source: 546,
                destination: 547,
            },
            IpAddr::V6(_),
        ) => Some(Builtin::Dhcp),
        _ => None,
    }
}

/// What is said of DNS, apart from the rules; `None` where the rules decide.
fn dns(policy: &Policy, facts: &Facts, packet: &Packet) -> Option<Reason> {
    let (Transport::Tcp { destination: 53, .. } | Transport::Udp { destination: 53, .. }) = packet.transport else {
        return None;
    };
    if !policy.dns.resolvers.contains(&packet.destination) {
        return (!facts.rules_open_dns).then_some(Reason::OtherResolver);
    }
    let tcp = matches!(packet.transport, Transport::Tcp { .. });
    Some(match &facts.question {
        Some(name) if may_ask(policy, facts, name) => Reason::Question,
        Some(_) => Reason::QuestionNotAllowed,
        // A handshake, or an acknowledgement: no question is in it.
        None if tcp => Reason::Question,
        None if policy.dns.queries == Queries::Any => Reason::Question,
        None => Reason::QuestionNotAllowed,
    })
}

/// Whether a name may be asked for.
#[must_use]
pub fn may_ask(policy: &Policy, facts: &Facts, name: &str) -> bool {
    let inside = |domain: &String| {
        let (name, domain) = (normal(name), normal(domain));
        name == domain || name.ends_with(&format!(".{domain}"))
    };
    policy.dns.queries == Queries::Any
        || policy.dns.internal.iter().any(inside)
        || policy
            .rules
            .iter()
            .filter(|rule| rule.action == Action::Allow)
            .flat_map(|rule| &rule.to)
            .any(|to| match to {
                To::Name(pattern) => stands_for(pattern, policy, facts, name),
                To::Net(_) | To::Any => false,
            })
}

/// Whether `name` is what `pattern` allows, itself or as the end of a chain of live aliases.
fn stands_for(pattern: &str, policy: &Policy, facts: &Facts, name: &str) -> bool {
    let mut known = vec![normal(name)];
    let mut next = 0;
    while let Some(current) = known.get(next).cloned() {
        if name_match(pattern, &current) {
            return true;
        }
        for alias in facts.aliases.iter().filter(|alias| normal(&alias.target) == current) {
            let owner = normal(&alias.owner);
            if lives(policy, facts.now, alias.at, alias.ttl) && !known.contains(&owner) {
                known.push(owner);
            }
        }
        next += 1;
    }
    false
}

/// Whether an answer given at `at` still counts: its TTL, raised to the minimum, plus the grace.
fn lives(policy: &Policy, now: u64, at: u64, ttl: u64) -> bool {
    now < at + ttl.max(policy.dns.min_ttl) + policy.dns.grace
}

fn allowed_now(to: &To, policy: &Policy, facts: &Facts, address: IpAddr) -> bool {
    match to {
        To::Name(pattern) => facts.learned.iter().any(|learned| {
            learned.address == address
                && lives(policy, facts.now, learned.at, learned.ttl)
                && stands_for(pattern, policy, facts, &learned.name)
        }),
        To::Net(_) | To::Any => address_match(to, address),
    }
}

/// A connection goes on while the rule that allowed it stands and still covers it, whether its address expired or not.
fn still_stands(rule: &Rule, began: &Began, packet: &Packet) -> bool {
    rule.action == Action::Allow
        && rule.name == began.rule
        && ports_match(rule, packet)
        && rule.to.iter().any(|to| match (to, &began.name) {
            (To::Name(pattern), Some(name)) => name_match(pattern, name),
            (To::Name(_), None) => false,
            (To::Net(_) | To::Any, _) => address_match(to, packet.destination),
        })
}

fn address_match(to: &To, address: IpAddr) -> bool {
    match to {
        To::Name(_) => false,
        To::Net(net) => net.contains(&address),
        To::Any => true,
    }
}

fn ports_match(rule: &Rule, packet: &Packet) -> bool {
    (rule.action == Action::Deny && rule.ports.is_empty()) || rule.ports.iter().any(|ports| port_match(*ports, packet))
}

fn port_match(ports: Ports, packet: &Packet) -> bool {
    match (ports, &packet.transport) {
        (Ports::Tcp(low, high), Transport::Tcp { destination, .. })
        | (Ports::Udp(low, high), Transport::Udp { destination, .. }) => (low..=high).contains(destination),
        (Ports::AnyTcp, Transport::Tcp { .. })
        | (Ports::AnyUdp, Transport::Udp { .. })
        | (Ports::Icmp, Transport::Icmp(_))
        | (Ports::Any, Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Icmp(_)) => true,
        _ => false,
    }
}

/// Whether a pattern of a policy matches a name.
#[must_use]
pub fn name_match(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (normal(pattern), normal(name));
    if let Some(domain) = pattern.strip_prefix("*.") {
        // One or more labels before the domain, never none.
        return name
            .strip_suffix(domain)
            .and_then(|rest| rest.strip_suffix('.'))
            .is_some_and(|labels| !labels.is_empty());
    }
    let (first_pattern, rest_pattern) = pattern.split_once('.').unwrap_or((&pattern, ""));
    let Some((before, after)) = first_pattern.split_once('*') else {
        return pattern == name;
    };
    let (first, rest) = name.split_once('.').unwrap_or((&name, ""));
    // The star is one character or more, within this one label.
    rest == rest_pattern
        && first.len() > before.len() + after.len()
        && first.starts_with(before)
        && first.ends_with(after)
}

fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}
