//! Each sentence of DESIGN section 1 that the model knows, and the laws that follow from them.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

const NAMES: [(&str, &str, bool); 22] = [
    ("example.com", "example.com", true),
    ("example.com", "EXAMPLE.com.", true),
    ("Example.Com.", "example.com", true),
    ("example.com", "www.example.com", false),
    ("example.com", "xexample.com", false),
    ("*.example.com", "www.example.com", true),
    ("*.example.com", "a.b.c.example.com", true),
    ("*.example.com", "example.com", false),
    ("*.example.com", ".example.com", false),
    ("*.example.com", "evilexample.com", false),
    ("*.example.com", "www.example.com.evil.test", false),
    ("md-*.blob.storage.azure.net", "md-7.blob.storage.azure.net", true),
    ("md-*.blob.storage.azure.net", "md-.blob.storage.azure.net", false),
    ("md-*.blob.storage.azure.net", "md-a.b.blob.storage.azure.net", false),
    ("md-*.blob.storage.azure.net", "x.md-7.blob.storage.azure.net", false),
    ("md-*.blob.storage.azure.net", "blob.storage.azure.net", false),
    ("a*a.example.com", "a.example.com", false),
    ("a*a.example.com", "aa.example.com", false),
    ("a*a.example.com", "aba.example.com", true),
    ("*b.example.com", "b.example.com", false),
    ("*b.example.com", "ab.example.com", true),
    ("*b.example.com", "a.b.example.com", false),
];

#[test]
fn names_match_as_the_text_says() {
    for (pattern, name, expected) in NAMES {
        assert_eq!(name_match(pattern, name), expected, "{pattern} against {name}");
    }
}

fn base() -> Policy {
    let rule = |name: &str, action, to: Vec<To>, ports: Vec<Ports>| Rule { name: name.into(), action, to, ports };
    let net = |text: &str| To::Net(text.parse().unwrap());
    Policy {
        mode: Mode::Enforce,
        dns: Dns {
            resolvers: vec!["203.0.113.53".parse().unwrap()],
            queries: Queries::Allowlisted,
            internal: vec!["cluster.local".into()],
            allow_private: Vec::new(),
            min_ttl: 60,
            grace: 900,
        },
        rules: vec![
            rule(
                "api",
                Action::Allow,
                vec![To::Name("*.azmk8s.io".into())],
                vec![Ports::Tcp(443, 443), Ports::Tcp(9000, 9000)],
            ),
            rule("time", Action::Allow, vec![To::Any], vec![Ports::Udp(123, 123)]),
            rule("net", Action::Allow, vec![net("20.0.0.0/8")], vec![Ports::Any]),
            rule("no-metadata", Action::Deny, vec![net("20.9.0.0/16")], vec![]),
        ],
    }
}

fn known(now: u64) -> Facts {
    let learned =
        Learned { name: "k.hcp.azmk8s.io".into(), address: "198.51.100.7".parse().unwrap(), at: 1000, ttl: 5 };
    Facts { now, learned: vec![learned], ..Facts::default() }
}

fn packet(to: &str, transport: Transport) -> Packet {
    Packet {
        source: "192.0.2.10".parse().unwrap(),
        destination: to.parse().unwrap(),
        transport,
        hops: 64,
        loopback: false,
    }
}

fn tcp(to: &str, port: u16) -> Packet {
    packet(to, Transport::Tcp { source: 40_000, destination: port })
}

fn udp(to: &str, port: u16) -> Packet {
    packet(to, Transport::Udp { source: 40_000, destination: port })
}

fn why(facts: &Facts, packet: &Packet) -> Reason {
    decide(&base(), facts, packet).reason
}

#[test]
fn a_name_allows_its_addresses_on_its_ports_while_the_answer_lives() {
    let allowed = Reason::Allowed("api".into());
    assert_eq!(why(&known(1000), &tcp("198.51.100.7", 443)), allowed);
    assert_eq!(why(&known(1000), &tcp("198.51.100.7", 9000)), allowed);
    assert_eq!(why(&known(1000), &tcp("198.51.100.7", 80)), Reason::NoRule);
    assert_eq!(why(&known(1000), &udp("198.51.100.7", 443)), Reason::NoRule);
    assert_eq!(why(&known(1000), &tcp("198.51.100.8", 443)), Reason::NoRule);
    // TTL 5 is raised to 60, and 900 of grace: the last second is 1959.
    assert_eq!(why(&known(1959), &tcp("198.51.100.7", 443)), allowed);
    assert_eq!(why(&known(1960), &tcp("198.51.100.7", 443)), Reason::NoRule);
}

#[test]
fn a_connection_lives_on_while_its_rule_stands() {
    let began = Began { rule: "api".into(), name: Some("k.hcp.azmk8s.io".into()) };
    let facts = Facts { began: Some(began), ..known(9999) };
    assert_eq!(why(&facts, &tcp("198.51.100.7", 443)), Reason::StillAllowed("api".into()));
    let mut without = base();
    without.rules.remove(0);
    assert_eq!(decide(&without, &facts, &tcp("198.51.100.7", 443)).reason, Reason::NoRule);
}

#[test]
fn deny_wins_and_replies_pass() {
    assert_eq!(why(&known(0), &tcp("20.8.0.1", 1)), Reason::Allowed("net".into()));
    assert_eq!(why(&known(0), &packet("20.8.0.1", Transport::Icmp(8))), Reason::Allowed("net".into()));
    assert_eq!(why(&known(0), &tcp("20.9.0.1", 1)), Reason::Denied("no-metadata".into()));
    assert_eq!(why(&known(0), &udp("20.9.0.1", 123)), Reason::Denied("no-metadata".into()));
    let reply = Facts { reply: true, ..known(0) };
    assert_eq!(why(&reply, &tcp("20.9.0.1", 40_000)), Reason::Reply);
}

#[test]
fn dns_is_judged_by_resolver_and_question() {
    let ask = |name: &str| Facts { question: Some(name.into()), ..known(1000) };
    assert_eq!(why(&ask("x.azmk8s.io"), &udp("203.0.113.53", 53)), Reason::Question);
    assert_eq!(why(&ask("a.svc.cluster.local"), &udp("203.0.113.53", 53)), Reason::Question);
    assert_eq!(why(&ask("secret.evil.test"), &udp("203.0.113.53", 53)), Reason::QuestionNotAllowed);
    assert_eq!(why(&ask("secret.evil.test"), &tcp("203.0.113.53", 53)), Reason::QuestionNotAllowed);
    assert_eq!(why(&ask("x.azmk8s.io"), &udp("20.8.8.8", 53)), Reason::OtherResolver);
    assert_eq!(why(&known(0), &tcp("203.0.113.53", 53)), Reason::Question);
    assert_eq!(why(&known(0), &udp("203.0.113.53", 53)), Reason::QuestionNotAllowed);
    let alias = Alias { owner: "x.azmk8s.io".into(), target: "edge.test".into(), at: 1000, ttl: 60 };
    let facts = |now| Facts { aliases: vec![alias.clone()], question: Some("edge.test".into()), ..known(now) };
    assert_eq!(why(&facts(1959), &udp("203.0.113.53", 53)), Reason::Question);
    assert_eq!(why(&facts(1960), &udp("203.0.113.53", 53)), Reason::QuestionNotAllowed);
}

#[test]
fn an_alias_carries_its_targets_addresses() {
    let learned = Learned { name: "edge.test".into(), address: "198.51.100.9".parse().unwrap(), at: 1000, ttl: 60 };
    let alias = |owner: &str| Alias { owner: owner.into(), target: "edge.test".into(), at: 1000, ttl: 60 };
    let mut facts =
        Facts { now: 1000, learned: vec![learned], aliases: vec![alias("x.azmk8s.io")], ..Facts::default() };
    assert_eq!(why(&facts, &tcp("198.51.100.9", 443)), Reason::Allowed("api".into()));
    facts.aliases = vec![alias("x.evil.test")];
    assert_eq!(why(&facts, &tcp("198.51.100.9", 443)), Reason::NoRule);
}

#[test]
fn builtins_pass_and_oddities_do_not() {
    let facts = known(0);
    let v6 = |kind| packet("ff02::1", Transport::Icmp(kind));
    let hops = |hops, packet| Packet { hops, ..packet };
    assert_eq!(why(&facts, &hops(255, v6(135))), Reason::Builtin(Builtin::NeighbourDiscovery));
    assert_eq!(why(&facts, &hops(254, v6(135))), Reason::NoRule);
    assert_eq!(why(&facts, &hops(255, v6(137))), Reason::NoRule);
    assert_eq!(why(&facts, &hops(1, v6(143))), Reason::Builtin(Builtin::MulticastListener));
    assert_eq!(why(&facts, &v6(143)), Reason::NoRule);
    let dhcp = |to| packet(to, Transport::Udp { source: 546, destination: 547 });
    assert_eq!(why(&facts, &dhcp("ff02::1:2")), Reason::Builtin(Builtin::Dhcp));
    assert_eq!(why(&facts, &dhcp("2001:db8::1")), Reason::NoRule);
    assert_eq!(why(&facts, &v6(128)), Reason::NoRule);
    assert_eq!(why(&facts, &packet("198.51.100.7", Transport::Icmp(135))), Reason::NoRule);
    let igmp = packet("224.0.0.22", Transport::Other(2));
    assert_eq!(why(&facts, &igmp), Reason::Protocol);
    assert_eq!(why(&facts, &hops(1, igmp)), Reason::Builtin(Builtin::Igmp));
    for odd in [
        Transport::Rerouted,
        Transport::Unparsable,
        Transport::Other(47),
        Transport::Other(4),
        Transport::LaterFragment,
    ] {
        assert!(!decide(&base(), &facts, &packet("20.8.0.1", odd.clone())).pass, "{odd:?}");
    }
    let after_first = Facts { first_fragment_passed: true, ..facts };
    assert_eq!(why(&after_first, &packet("20.8.0.1", Transport::LaterFragment)), Reason::Fragment);
}

fn laws(law: impl Fn(Case) -> Result<(), TestCaseError>) {
    TestRunner::new(Config { cases: 4_000, failure_persistence: None, ..Config::default() })
        .run(&case(true), law)
        .unwrap();
}

/// The bytes of a case are what the case says, as the sniffer's parser reads them.
#[test]
fn the_bytes_of_a_packet_are_the_packet() {
    laws(|case| {
        let frame = crate::sniffer::parse(1, &case.ethernet_frame());
        prop_assert_eq!(frame.source, Some(case.packet.source));
        prop_assert_eq!(frame.destination, Some(case.packet.destination));
        let v4 = case.packet.destination.is_ipv4();
        let (protocol, ports) = match case.packet.transport {
            Transport::Tcp { source, destination } => (6, Some((source, destination))),
            Transport::Udp { source, destination } => (17, Some((source, destination))),
            Transport::Icmp(kind) => {
                prop_assert_eq!(frame.payload[0], kind);
                (if v4 { 1 } else { 58 }, None)
            }
            // SCTP has its ports where TCP has them.
            Transport::Other(number) => (number, (number == 132).then_some((0, 0))),
            Transport::LaterFragment => (17, None),
            Transport::Rerouted => (6, Some((40_000, 443))),
            Transport::Unparsable => (6, None),
        };
        prop_assert_eq!(frame.protocol, Some(protocol));
        prop_assert_eq!(frame.source_port.zip(frame.destination_port), ports);
        if v4 {
            let header = &case.ip_packet()[..usize::from(case.ip_packet()[0] & 15) * 4];
            let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            prop_assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
        }
        Ok(())
    });
}

#[test]
fn order_never_matters() {
    laws(|mut case| {
        let before = decide(&case.policy, &case.facts, &case.packet).pass;
        case.policy.rules.reverse();
        prop_assert_eq!(decide(&case.policy, &case.facts, &case.packet).pass, before);
        Ok(())
    });
}

#[test]
fn a_rule_taken_away_moves_the_verdict_one_way_only() {
    laws(|case| {
        let before = decide(&case.policy, &case.facts, &case.packet).pass;
        for n in 0..case.policy.rules.len() {
            let mut fewer = case.policy.clone();
            let rule = fewer.rules.remove(n);
            let after = decide(&fewer, &case.facts, &case.packet).pass;
            match rule.action {
                Action::Deny => prop_assert!(after || !before, "without a deny rule less passes"),
                Action::Allow => prop_assert!(!after || before, "without an allow rule more passes"),
            }
        }
        Ok(())
    });
}

#[test]
fn audit_passes_everything_and_tells_the_same_reason() {
    laws(|mut case| {
        case.policy.mode = Mode::Enforce;
        let enforced = decide(&case.policy, &case.facts, &case.packet);
        case.policy.mode = Mode::Audit;
        let audited = decide(&case.policy, &case.facts, &case.packet);
        prop_assert!(audited.pass);
        prop_assert_eq!(audited.reason, enforced.reason);
        Ok(())
    });
}

/// Comparing two deciders on cases that all end the same way would compare nothing.
#[test]
fn generated_cases_reach_every_kind_of_verdict() {
    let counts = std::cell::RefCell::new(std::collections::BTreeMap::<String, usize>::new());
    laws(|case| {
        let reason = format!("{:?}", decide(&case.policy, &case.facts, &case.packet).reason);
        let kind = reason.split(['(', ' ']).next().unwrap_or_default().to_owned();
        *counts.borrow_mut().entry(kind).or_default() += 1;
        Ok(())
    });
    let counts = counts.into_inner();
    for kind in [
        "Builtin",
        "Reply",
        "Allowed",
        "StillAllowed",
        "Question",
        "Fragment",
        "Malformed",
        "Protocol",
        "FirstFragmentDropped",
        "Denied",
        "QuestionNotAllowed",
        "OtherResolver",
        "NoRule",
    ] {
        assert!(counts.get(kind).copied().unwrap_or(0) >= 20, "few or no cases of {kind}: {counts:?}");
    }
}

#[test]
fn the_text_of_a_policy_is_what_a_user_would_write() {
    let expected = "version: 1\nmode: enforce\ndns:\n  resolvers: [\"203.0.113.53\"]\n  queries: allowlisted\n  \
                    minTtl: 60s\n  grace: 900s\n  internal: [\"cluster.local\"]\nrules:\n  - name: api\n    \
                    to: [\"*.azmk8s.io\"]\n    ports: [\"443/tcp\", \"9000/tcp\"]\n  - name: time\n    to: [\"any\"]\n    \
                    ports: [\"123/udp\"]\n  - name: net\n    to: [\"20.0.0.0/8\"]\n    ports: [\"any\"]\n  \
                    - name: no-metadata\n    action: deny\n    to: [\"20.9.0.0/16\"]\n";
    assert_eq!(base().to_yaml(), expected);
}
