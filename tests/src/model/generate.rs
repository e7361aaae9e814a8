//! Random policies, facts and packets. The pools are small on purpose, so that rules overlap and packets land on, and
//! one beside, the policy's edges.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::{Action, Alias, Began, Dns, Facts, Learned, Mode, Packet, Policy, Ports, Queries, Rule, To, Transport};

/// The clock of generated facts, in seconds.
pub const NOW: u64 = 1_000_000;
const RESOLVERS: [&str; 3] = ["203.0.113.53", "2001:db8::53", "198.51.100.53"];
const LABELS: [&str; 7] = ["a", "b", "api", "md-1", "md-", "x9", "www"];
const DOMAINS: [&str; 4] = ["example.com", "azmk8s.io", "blob.storage.example", "a.example.com"];

/// One question to the decision.
#[derive(Debug, Clone)]
pub struct Case {
    pub policy: Policy,
    pub facts: Facts,
    pub packet: Packet,
}

/// What a generated packet is bent towards, since chance alone would rarely get there.
#[derive(Debug, Clone, Copy)]
enum Aim {
    Anywhere,
    /// An address that was learned.
    Learned,
    /// A learned address, on a port of this rule.
    LearnedAndPort(usize),
    /// A connection that this rule allowed when it began.
    Began(usize),
    /// A trusted resolver.
    Resolver {
        tcp: bool,
    },
    /// What a builtin lets pass, or nearly so.
    Builtin(usize),
}

/// A policy with facts and a packet near its edges. `aliases`: facts hold CNAME records of earlier answers too.
pub fn case(aliases: bool) -> impl Strategy<Value = Case> {
    policy().prop_flat_map(move |policy| case_of(policy, aliases))
}

/// Facts and a packet near the edges of this policy; `aliases` as of [`case`].
pub fn case_of(policy: Policy, aliases: bool) -> impl Strategy<Value = Case> {
    let aim = prop_oneof![
        8 => Just(Aim::Anywhere),
        4 => Just(Aim::Learned),
        4 => (0..8_usize).prop_map(Aim::LearnedAndPort),
        2 => (0..8_usize).prop_map(Aim::Began),
        2 => any::<bool>().prop_map(|tcp| Aim::Resolver { tcp }),
        1 => (0..14_usize).prop_map(Aim::Builtin),
    ];
    let (names, addresses) = (names_near(&policy), edge_addresses(&policy));
    let (facts, packet) = (facts(names, addresses, aliases), packet(&policy));
    (Just(policy), facts, packet, aim).prop_map(|(policy, facts, packet, aim)| {
        let mut case = Case { policy, facts, packet };
        case.bend(aim);
        case
    })
}

impl Case {
    fn bend(&mut self, aim: Aim) {
        match aim {
            Aim::Anywhere => {}
            Aim::Learned => self.go_to(self.facts.learned.first().map(|learned| learned.address)),
            Aim::LearnedAndPort(n) => {
                self.go_to(self.facts.learned.first().map(|learned| learned.address));
                self.take_port(n);
            }
            Aim::Began(n) => {
                self.take_port(n);
                let name = |rule: &Rule| rule.to.iter().find_map(instance);
                self.facts.began =
                    self.policy.rules.get(n).map(|rule| Began { rule: rule.name.clone(), name: name(rule) });
                self.facts.reply = false;
            }
            Aim::Builtin(n) => self.take_builtin(n),
            Aim::Resolver { tcp } => {
                self.go_to(self.policy.dns.resolvers.first().copied());
                let (source, destination) = (40_000, 53);
                self.packet.transport =
                    if tcp { Transport::Tcp { source, destination } } else { Transport::Udp { source, destination } };
            }
        }
    }

    /// One of the packets that keep a link alive, or one that is a hop, a port or a scope beside it.
    fn take_builtin(&mut self, n: usize) {
        let udp = |source, destination| Transport::Udp { source, destination };
        let (to, transport, hops) = [
            ("255.255.255.255", udp(68, 67), 64),
            ("20.1.2.3", udp(68, 67), 64),
            ("20.1.2.3", udp(67, 68), 64),
            ("ff02::1:2", udp(546, 547), 1),
            ("fe80::1", udp(546, 547), 64),
            ("ff05::1:3", udp(546, 547), 64),
            ("ff02::1", Transport::Icmp(135), 255),
            ("fe80::1", Transport::Icmp(136), 254),
            ("ff02::16", Transport::Icmp(143), 1),
            ("ff02::16", Transport::Icmp(143), 2),
            ("224.0.0.22", Transport::Other(2), 1),
            ("224.0.0.22", Transport::Other(2), 2),
            ("20.1.2.3", Transport::Other(2), 1),
            ("fe80::1", Transport::Icmp(143), 1),
        ][n % 14]
            .clone();
        self.go_to(Some(address(to)));
        self.packet.transport = transport;
        self.packet.hops = hops;
    }

    fn go_to(&mut self, destination: Option<IpAddr>) {
        let Some(destination) = destination else { return };
        self.packet.destination = destination;
        self.packet.source = source_for(destination);
    }

    fn take_port(&mut self, rule: usize) {
        let source = 40_000;
        match self.policy.rules.get(rule).and_then(|rule| rule.ports.first()) {
            Some(&Ports::Tcp(destination, _)) => self.packet.transport = Transport::Tcp { source, destination },
            Some(&Ports::Udp(_, destination)) => self.packet.transport = Transport::Udp { source, destination },
            _ => {}
        }
    }
}

/// A name that a pattern matches.
fn instance(to: &To) -> Option<String> {
    let To::Name(pattern) = to else { return None };
    Some(pattern.replace('*', "7"))
}

fn source_for(destination: IpAddr) -> IpAddr {
    if destination.is_ipv4() { address("192.0.2.10") } else { address("3fff:0:0:1::10") }
}

/// A valid policy of up to eight rules.
pub fn policy() -> impl Strategy<Value = Policy> {
    let private = prop_oneof![1 => Just(Vec::new()), 1 => vec(pattern(), 1..4)];
    let dns =
        (vec(select(&RESOLVERS[..]), 1..3), prop::bool::weighted(0.2), prop::bool::ANY, 0..90_u64, 0..900_u64, private);
    let dns = dns.prop_map(|(resolvers, any, internal, min_ttl, grace, allow_private)| Dns {
        resolvers: resolvers.into_iter().collect::<BTreeSet<_>>().into_iter().map(address).collect(),
        queries: if any { Queries::Any } else { Queries::Allowlisted },
        internal: if internal { vec!["cluster.local".into()] } else { Vec::new() },
        allow_private,
        min_ttl,
        grace,
    });
    let mode = prop::bool::weighted(0.05).prop_map(|audit| if audit { Mode::Audit } else { Mode::Enforce });
    (mode, dns, vec(rule(), 0..8)).prop_map(|(mode, dns, mut rules)| {
        for (n, rule) in rules.iter_mut().enumerate() {
            rule.name = format!("rule-{n}");
        }
        Policy { mode, dns, rules }
    })
}

fn rule() -> impl Strategy<Value = Rule> {
    let net = net().prop_map(To::Net);
    let name = pattern().prop_map(To::Name);
    let allow = (vec(prop_oneof![6 => name, 4 => net.clone(), 1 => Just(To::Any)], 1..4), vec(ports(), 1..4));
    let deny = (vec(prop_oneof![8 => net, 1 => Just(To::Any)], 1..3), vec(ports(), 0..2));
    let named = |action| move |(to, ports)| Rule { name: String::new(), action, to, ports };
    prop_oneof![4 => allow.prop_map(named(Action::Allow)), 1 => deny.prop_map(named(Action::Deny))]
}

fn ports() -> impl Strategy<Value = Ports> {
    let port = || select(vec![1_u16, 22, 53, 80, 123, 443, 444, 9000, 30_000, 32_767, 65_535]);
    let range = move || (port(), port()).prop_map(|(a, b)| (a.min(b), a.max(b)));
    prop_oneof![
        4 => port().prop_map(|p| Ports::Tcp(p, p)),
        2 => port().prop_map(|p| Ports::Udp(p, p)),
        2 => range().prop_map(|(low, high)| Ports::Tcp(low, high)),
        1 => range().prop_map(|(low, high)| Ports::Udp(low, high)),
        1 => Just(Ports::AnyTcp),
        1 => Just(Ports::AnyUdp),
        1 => Just(Ports::Icmp),
        1 => Just(Ports::Any),
    ]
}

/// A network of the pool, without host bits: `20.0.0.0/8` and below, `2001:db8::/32` and below, and the whole family.
fn net() -> impl Strategy<Value = IpNet> + Clone {
    let v4 = (0..4_u8, 0..4_u8, select(vec![0_u8, 8, 9, 15, 16, 23, 24, 25, 31, 32])).prop_map(|(b, d, length)| {
        IpNet::V4(Ipv4Net::new(Ipv4Addr::new(20, b * 64, 7, d * 64 + 1), length).expect("a length up to 32").trunc())
    });
    let v6 =
        (0..4_u16, 0..4_u16, select(vec![0_u8, 32, 33, 47, 48, 63, 64, 65, 127, 128])).prop_map(|(c, h, length)| {
            let address = Ipv6Addr::new(0x2001, 0xdb8, c * 0x4000, 1, 0, 0, 0, h);
            IpNet::V6(Ipv6Net::new(address, length).expect("a length up to 128").trunc())
        });
    prop_oneof![3 => v4, 2 => v6]
}

fn plain_name() -> impl Strategy<Value = String> {
    (vec(select(&LABELS[..]), 0..3), select(&DOMAINS[..])).prop_map(|(mut labels, domain)| {
        // A label may not end in a hyphen.
        labels.retain(|label| !label.ends_with('-'));
        labels.push(domain);
        labels.join(".")
    })
}

fn pattern() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => plain_name(),
        3 => plain_name().prop_map(|name| format!("*.{name}")),
        1 => plain_name().prop_map(|name| format!("md-*.{name}")),
        1 => plain_name().prop_map(|name| format!("a*b.{name}")),
    ]
}

/// Names that the policy's patterns match, miss by one label, or miss by one character.
#[must_use]
pub fn names_near(policy: &Policy) -> Vec<String> {
    let mut names = BTreeSet::from(["example.com".to_owned(), "other.test".to_owned(), "x.cluster.local".to_owned()]);
    let of_rules = policy.rules.iter().flat_map(|rule| &rule.to).filter_map(|to| match to {
        To::Name(pattern) => Some(pattern),
        To::Net(_) | To::Any => None,
    });
    for pattern in of_rules.chain(&policy.dns.allow_private) {
        let domain = pattern.strip_prefix("*.").unwrap_or(pattern).replace('*', "7");
        names.extend([
            format!("a.{domain}"),
            format!("a.b.{domain}"),
            format!("evil{domain}"),
            format!("{domain}.evil.test"),
        ]);
        names.extend(
            [pattern.replacen("*", "", 1), pattern.replacen('*', "1.2", 1)].into_iter().filter(|n| !n.starts_with('.')),
        );
        names.extend(domain.split_once('.').map(|(_, parent)| parent.to_owned()));
        names.extend([domain.to_ascii_uppercase(), domain]);
    }
    names.into_iter().filter(|name| !name.contains('*') && !name.contains("-.")).collect()
}

/// First and last addresses of the policy's networks and those right outside, resolvers, and some strangers.
#[must_use]
pub fn edge_addresses(policy: &Policy) -> Vec<IpAddr> {
    let mut all =
        BTreeSet::from(["198.51.100.9", "2001:db8:ffff::9", "20.1.2.3", "20.1.2.4", "2603:1000::1"].map(address));
    all.extend(&policy.dns.resolvers);
    for to in policy.rules.iter().flat_map(|rule| &rule.to) {
        let To::Net(net) = to else { continue };
        match net {
            IpNet::V4(net) => {
                let (low, high) = (u32::from(net.network()), u32::from(net.broadcast()));
                let around = [Some(low), Some(high), low.checked_sub(1), high.checked_add(1)];
                all.extend(around.into_iter().flatten().map(|n| IpAddr::V4(n.into())));
            }
            IpNet::V6(net) => {
                let (low, high) = (u128::from(net.network()), u128::from(net.broadcast()));
                let around = [Some(low), Some(high), low.checked_sub(1), high.checked_add(1)];
                all.extend(around.into_iter().flatten().map(|n| IpAddr::V6(n.into())));
            }
        }
    }
    // What a router would not carry, and what hosts answer by themselves, is no question to a policy.
    all.into_iter()
        .filter(|a| !a.is_unspecified() && !a.is_multicast() && !a.is_loopback() && !is_broadcast(*a))
        .collect()
}

fn is_broadcast(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 0 || v4.octets()[0] >= 224)
}

/// The ends of the policy's port ranges, the ports right outside them, and those that builtins know.
#[must_use]
pub fn edge_ports(policy: &Policy) -> Vec<u16> {
    let mut all = BTreeSet::from([1, 53, 67, 80, 443, 547, 65_535]);
    for ports in policy.rules.iter().flat_map(|rule| &rule.ports) {
        if let Ports::Tcp(low, high) | Ports::Udp(low, high) = *ports {
            all.extend([Some(low), Some(high), low.checked_sub(1), high.checked_add(1)].into_iter().flatten());
        }
    }
    all.into_iter().filter(|port| *port > 0).collect()
}

/// A packet at the policy's edges.
pub fn packet(policy: &Policy) -> impl Strategy<Value = Packet> + use<> {
    let port = select(edge_ports(policy));
    let source = prop_oneof![8 => 32_768..60_000_u16, 1 => Just(68), 1 => Just(546), 1 => Just(53)];
    let transport = prop_oneof![
        10 => (source.clone(), port.clone()).prop_map(|(source, destination)| Transport::Tcp { source, destination }),
        7 => (source, port).prop_map(|(source, destination)| Transport::Udp { source, destination }),
        2 => select(vec![0_u8, 3, 8, 11, 128, 129, 130, 133, 135, 137, 138, 143]).prop_map(Transport::Icmp),
        1 => select(vec![2_u8, 4, 41, 47, 50, 132]).prop_map(Transport::Other),
        1 => Just(Transport::LaterFragment),
        1 => Just(Transport::Rerouted),
        1 => Just(Transport::Unparsable),
    ];
    let loopback = prop::bool::weighted(0.02);
    let hops = prop_oneof![6 => Just(64_u8), 2 => Just(255), 1 => Just(1), 1 => Just(254)];
    let all = (select(edge_addresses(policy)), transport, hops, loopback);
    all.prop_map(|(destination, transport, hops, loopback)| Packet {
        source: source_for(destination),
        destination,
        transport,
        hops,
        loopback,
    })
}

fn facts(names: Vec<String>, addresses: Vec<IpAddr>, aliases: bool) -> impl Strategy<Value = Facts> {
    // Around the moment when TTL, minimum and grace of the generated policies end.
    let answer = || (0..1200_u64, select(vec![0_u64, 5, 60, 89, 90, 300])).prop_map(|(ago, ttl)| (NOW - ago, ttl));
    let learned = (select(names.clone()), select(addresses), answer());
    let learned = learned.prop_map(|(name, address, (at, ttl))| Learned { name, address, at, ttl });
    let alias = (select(names.clone()), select(names.clone()), answer());
    let alias = alias.prop_map(|(owner, target, (at, ttl))| Alias { owner, target, at, ttl });
    let began = (0..9_usize, prop::option::of(select(names.clone())));
    let began = began.prop_map(|(n, name)| Began { rule: format!("rule-{n}"), name });
    (
        vec(learned, 0..8),
        vec(alias, 0..if aliases { 4 } else { 1 }),
        prop::bool::weighted(0.1),
        prop::option::weighted(0.1, began),
        any::<bool>(),
        prop::option::weighted(0.7, select(names)),
    )
        .prop_map(|(learned, aliases, reply, began, first_fragment_passed, question)| Facts {
            now: NOW,
            learned,
            aliases,
            reply,
            began,
            first_fragment_passed,
            question,
            rules_open_dns: false,
        })
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address of the pool")
}
