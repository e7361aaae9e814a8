//! An independent model of the decision, written the slow, obvious way from DESIGN section 1 alone: linear scans over the
//! rules as they stand in the file, no compiled form, no cache. The real decision is compared with it.
//!
//! Where the text leaves a choice, this is how it is read:
//! - What is malformed or rerouted is dropped before anything else is asked, on the loopback interface too.
//! - Builtins, then replies to what came in, pass before the rules are asked, deny rules included (P8 says that an
//!   operator's SSH session passes *throughout*).
//! - Rules speak of TCP, UDP, ICMP and ICMPv6. `any` as a port means all of these; no rule opens another IP protocol.
//! - A deny rule drops DNS to a trusted resolver too.
//! - Port 53 towards a trusted resolver is judged by the question, never by the allow rules: a rule such as `any` on `any` does
//!   not open a tunnel (P5). Towards any other address it is dropped, unless [`Facts::rules_open_dns`] is set.
//! - `to: [any]` allows addresses, and no name to be asked for.

mod generate;
#[cfg(test)]
mod tests;
mod types;
pub mod wire;
mod yaml;

use std::net::IpAddr;

pub use generate::{Case, NOW, case, case_of, edge_addresses, edge_ports, names_near, packet, policy};
pub use types::{
    Action, Alias, Began, Builtin, Dns, Facts, Learned, Mode, Packet, Policy, Ports, Queries, Reason, Rule, To,
    Transport, Verdict,
};
pub use wire::{QUOTED_PORT, dns_query};

/// The verdict on one packet.
#[must_use]
pub fn decide(policy: &Policy, facts: &Facts, packet: &Packet) -> Verdict {
    let reason = reason(policy, facts, packet);
    Verdict { pass: policy.mode == Mode::Audit || reason.passes(), reason }
}

fn reason(policy: &Policy, facts: &Facts, packet: &Packet) -> Reason {
    match packet.transport {
        Transport::Rerouted | Transport::Unparsable => return Reason::Malformed,
        _ if packet.loopback => return Reason::Builtin(Builtin::Loopback),
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
    if facts.reply && answers(packet) && !asks(policy, packet) {
        return Reason::Reply;
    }
    if let Some(rule) = denied(policy, packet) {
        return Reason::Denied(rule.name.clone());
    }
    if let Some(reason) = dns(policy, facts, packet) {
        return reason;
    }
    for rule in policy.rules.iter().filter(|rule| rule.action == Action::Allow) {
        if ports_match(rule, packet) && rule.to.iter().any(|to| allowed_now(to, policy, facts, packet.destination)) {
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
        // RFC 4861: router and neighbour solicitation and advertisement, from a neighbour. A redirect (137) is a router's.
        (Transport::Icmp(kind @ 133..=136), IpAddr::V6(to)) if packet.hops == 255 => {
            // A neighbour is asked by its other addresses too, and answers from them.
            let on_link = to.is_unicast_link_local() || to.segments()[0] == 0xff02;
            (on_link || *kind >= 135).then_some(Builtin::NeighbourDiscovery)
        }
        // RFC 2710 and RFC 3810: groups are told to groups.
        (Transport::Icmp(130..=132 | 143), IpAddr::V6(to)) if packet.hops == 1 && to.is_multicast() => {
            Some(Builtin::MulticastListener)
        }
        (Transport::Other(2), IpAddr::V4(to)) if packet.hops == 1 && to.is_multicast() => Some(Builtin::Igmp),
        // RFC 2131: to everybody, or to a server inside.
        (Transport::Udp { source: 68, destination: 67 }, IpAddr::V4(to)) => {
            let shared = to.octets()[0] == 100 && to.octets()[1] & 0xc0 == 64;
            (to.is_broadcast() || to.is_private() || to.is_link_local() || shared).then_some(Builtin::Dhcp)
        }
        (Transport::Udp { source: 546, destination: 547 }, IpAddr::V6(to)) => {
            (to.is_unicast_link_local() || to.segments()[0] == 0xff02).then_some(Builtin::Dhcp)
        }
        _ => None,
    }
}

/// Whether a packet can be an answer: of ICMP an echo reply, or an error about what came in.
fn answers(packet: &Packet) -> bool {
    match (&packet.transport, packet.destination) {
        (Transport::Tcp { .. } | Transport::Udp { .. }, _) => true,
        (Transport::Icmp(kind), IpAddr::V4(_)) => matches!(kind, 0 | 3 | 11 | 12),
        (Transport::Icmp(kind), IpAddr::V6(_)) => matches!(kind, 1..=4 | 129),
        _ => false,
    }
}

/// Whether it is a datagram to a trusted resolver: a query, whatever came from there before (P5).
fn asks(policy: &Policy, packet: &Packet) -> bool {
    matches!(packet.transport, Transport::Udp { destination: 53, .. })
        && policy.dns.resolvers.contains(&packet.destination)
}

fn denied<'a>(policy: &'a Policy, packet: &Packet) -> Option<&'a Rule> {
    policy.rules.iter().find(|rule| {
        rule.action == Action::Deny
            && ports_match(rule, packet)
            && rule.to.iter().any(|to| address_match(to, packet.destination))
    })
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
        // A datagram that asks nothing is no DNS, whatever may be asked.
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
        || policy.rules.iter().filter(|rule| rule.action == Action::Allow).flat_map(|rule| &rule.to).any(
            |to| match to {
                To::Name(pattern) => stands_for(pattern, policy, facts, name),
                To::Net(_) | To::Any => false,
            },
        )
}

/// Whether an answer for this name may hold private addresses.
#[must_use]
pub fn may_be_private(policy: &Policy, name: &str) -> bool {
    policy.dns.allow_private.iter().any(|pattern| name_match(pattern, name))
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
    now < at + ttl.min(604_800).max(policy.dns.min_ttl) + policy.dns.grace
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

#[must_use]
/// Whether a rule speaks of this packet's protocol and port.
pub fn ports_match(rule: &Rule, packet: &Packet) -> bool {
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
