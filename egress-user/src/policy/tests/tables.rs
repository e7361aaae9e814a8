//! The compiled tables against the slow, obvious reading of every rule.

use std::{collections::BTreeSet, net::IpAddr};

use proptest::{collection::vec, prelude::*, sample::select};

use super::{
    super::{Compiled, NameKey, Proto},
    compiled,
};

/// A rule as it will be written.
#[derive(Clone, Debug)]
struct Written {
    deny: bool,
    items: Vec<String>,
    ports: Vec<&'static str>,
}

fn label() -> impl Strategy<Value = String> {
    select(vec!["a", "b", "ab", "aab", "abb", "abab", "com"]).prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = String> {
    vec(label(), 1..5).prop_map(|labels| labels.join("."))
}

fn name_item() -> impl Strategy<Value = String> {
    prop_oneof![
        name(),
        name().prop_map(|name| format!("*.{name}")),
        (select(vec!["a*", "ab*", "*b", "a*b", "ab*ab"]), name()).prop_map(|(inner, name)| format!("{inner}.{name}")),
    ]
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0..4u8, 0..4u8, any::<u8>()).prop_map(|(a, b, c)| IpAddr::from([10 + a, b * 64, 0, c])),
        (0..4u16, any::<u16>()).prop_map(|(a, b)| IpAddr::from([0x2001, 0xdb8, a * 0x4000, 0, 0, 0, 0, b])),
    ]
}

fn address_item() -> impl Strategy<Value = String> {
    let prefix = (address(), 0..=128u8).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        ipnet::IpNet::new(address, length.min(most)).unwrap().trunc().to_string()
    });
    prop_oneof![1 => Just("any".to_owned()), 8 => prefix]
}

const PORTS: [&str; 7] = ["443/tcp", "80/tcp", "79-444/tcp", "any/udp", "53/udp", "icmp", "any"];

fn rule() -> impl Strategy<Value = Written> {
    let ports = || vec(select(PORTS.to_vec()), 1..3);
    prop_oneof![
        4 => (vec(name_item(), 1..4), ports()).prop_map(|(items, ports)| Written { deny: false, items, ports }),
        2 => (vec(address_item(), 1..4), ports()).prop_map(|(items, ports)| Written { deny: false, items, ports }),
        1 => (vec(address_item(), 1..3), ports()).prop_map(|(items, ports)| Written { deny: true, items, ports }),
    ]
}

fn text(rules: &[Written], internal: &[String]) -> String {
    let mut text = String::from("version: 1\n");
    if !internal.is_empty() {
        text.push_str(&format!("dns: {{internal: {internal:?}}}\n"));
    }
    if !rules.is_empty() {
        text.push_str("rules:\n");
    }
    for (index, rule) in rules.iter().enumerate() {
        let action = if rule.deny { "deny" } else { "allow" };
        text.push_str(&format!(
            "  - {{name: r{index}, action: {action}, to: {:?}, ports: {:?}}}\n",
            rule.items, rule.ports
        ));
    }
    text
}

/// Written apart from the program's own matching: label by label on the text.
fn name_matches(item: &str, name: &str) -> bool {
    let item: Vec<_> = item.split('.').collect();
    let name: Vec<_> = name.split('.').collect();
    if item[0] == "*" {
        return name.len() >= item.len() && name[name.len() - (item.len() - 1)..] == item[1..];
    }
    if name.len() != item.len() || name[1..] != item[1..] {
        return false;
    }
    match item[0].split_once('*') {
        None => name[0] == item[0],
        Some((before, after)) => {
            (1..name[0].len().max(1)).any(|length| {
                (0..=name[0].len() - length).any(|at| name[0][..at] == *before && name[0][at + length..] == *after)
            }) || (before.is_empty() && after.is_empty() && !name[0].is_empty())
        }
    }
}

fn address_matches(item: &str, address: IpAddr) -> bool {
    if item == "any" {
        return true;
    }
    let (net, length) = item.split_once('/').unwrap_or((item, "128"));
    let length: u32 = length.parse().unwrap();
    match (net.parse().unwrap(), address) {
        (IpAddr::V4(net), IpAddr::V4(address)) => {
            (0..length.min(32)).all(|bit| (net.to_bits() ^ address.to_bits()) >> (31 - bit) & 1 == 0)
        }
        (IpAddr::V6(net), IpAddr::V6(address)) => {
            (0..length).all(|bit| (net.to_bits() ^ address.to_bits()) >> (127 - bit) & 1 == 0)
        }
        _ => false,
    }
}

fn port_matches(ports: &str, proto: Proto, port: u16) -> bool {
    match (ports, proto) {
        ("any", _) | ("any/udp", Proto::Udp) | ("icmp", Proto::Icmp) => true,
        ("443/tcp", Proto::Tcp) => port == 443,
        ("80/tcp", Proto::Tcp) => port == 80,
        ("79-444/tcp", Proto::Tcp) => (79..=444).contains(&port),
        ("53/udp", Proto::Udp) => port == 53,
        _ => false,
    }
}

/// The rules and items behind some classes.
fn grants(compiled: &Compiled, classes: &[u32]) -> BTreeSet<(u32, String)> {
    let numbers = classes.iter().flat_map(|class| compiled.classes.of(*class).grants);
    numbers.map(|grant| &compiled.grants[*grant as usize]).map(|grant| (grant.rule, grant.item.to_string())).collect()
}

/// The items that match, in canonical form.
fn expected(rules: &[Written], deny: bool, matches: impl Fn(&str) -> bool) -> BTreeSet<(u32, String)> {
    let mut found = BTreeSet::new();
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| rule.deny == deny) {
        for item in rule.items.iter().filter(|item| matches(item)) {
            // A prefix of full length is written as the address.
            let canonical = match item.parse::<ipnet::IpNet>() {
                Ok(net) if net.prefix_len() == net.max_prefix_len() => net.addr().to_string(),
                _ => item.clone(),
            };
            found.insert((u32::try_from(index).unwrap(), canonical));
        }
    }
    found
}

fn is_name(item: &str) -> bool {
    item != "any" && !item.contains('/') && item.parse::<IpAddr>().is_err()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn names_agree(rules in vec(rule(), 0..12), internal in vec(name(), 0..3), names in vec(name(), 1..20)) {
        let compiled = compiled(&text(&rules, &internal));
        for name in names {
            let found = compiled.match_name(&name);
            let wanted = expected(&rules, false, |item| is_name(item) && name_matches(item, &name));
            prop_assert_eq!(grants(&compiled, &found.classes), wanted.clone(), "{}", name);
            let inside = internal.iter().any(|apex| *apex == name || name.ends_with(&format!(".{apex}")));
            prop_assert_eq!(found.ask, inside || !wanted.is_empty(), "{}", name);
        }
    }

    #[test]
    fn addresses_agree(rules in vec(rule(), 0..12), addresses in vec(address(), 1..20)) {
        let compiled = compiled(&text(&rules, &[]));
        for address in addresses {
            for (deny, class) in [(false, compiled.match_address(address)), (true, compiled.match_deny(address))] {
                let wanted = expected(&rules, deny, |item| !is_name(item) && address_matches(item, address));
                prop_assert_eq!(grants(&compiled, &[class]), wanted, "{} deny {}", address, deny);
            }
        }
    }

    #[test]
    fn decisions_agree(
        rules in vec(rule(), 0..8),
        address in address(),
        proto in select(vec![Proto::Tcp, Proto::Udp, Proto::Icmp]),
        port in select(vec![53u16, 79, 80, 443, 444, 445, 8080]),
    ) {
        let compiled = compiled(&text(&rules, &[]));
        let hit = |deny: bool| rules.iter().any(|rule| {
            rule.deny == deny
                && rule.items.iter().any(|item| !is_name(item) && address_matches(item, address))
                && rule.ports.iter().any(|ports| port_matches(ports, proto, port))
        });
        let host = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
        let destination = if proto == Proto::Icmp { format!("{host}/icmp") } else { format!("{host}:{port}/{proto}") };
        let explanation = compiled.decide(&destination.parse().unwrap());
        // Of no resolver that is known here.
        let is_dns = proto != Proto::Icmp && port == 53;
        prop_assert_eq!(explanation.allowed, !is_dns && !hit(true) && hit(false), "{}: {:?}", destination, explanation);
    }

    #[test]
    fn the_tables_keep_their_promises(rules in vec(rule(), 0..12), internal in vec(name(), 0..3)) {
        let compiled = compiled(&text(&rules, &internal));
        prop_assert!(compiled.classes.of(0).grants.is_empty() && compiled.classes.of(0).ports_id == 0);
        let sets: BTreeSet<_> = compiled.classes.iter().map(|class| class.grants).collect();
        prop_assert_eq!(sets.len(), compiled.classes.len(), "a class is there twice");
        for (a, b) in compiled.classes.iter().zip(compiled.classes.iter().skip(1)) {
            prop_assert!(b.ports_id != 0);
            let opens = |class: super::super::Class<'_>, proto, port| class.ports.iter().any(|range| {
                range.proto == Proto::Any || range.proto == proto && (range.from..=range.to).contains(&port)
            });
            let same = [Proto::Tcp, Proto::Udp, Proto::Icmp, Proto::Any].into_iter().all(|proto| {
                [1, 53, 78, 79, 80, 443, 444, 445, 65535].into_iter().all(|port| opens(a, proto, port) == opens(b, proto, port))
            });
            prop_assert_eq!(same, a.ports_id == b.ports_id, "{:?} {:?}", a, b);
        }
        let keys: BTreeSet<_> = compiled.names.iter().map(|entry| {
            (entry.key.name().labels_from_top().map(str::to_owned).collect::<Vec<_>>(), matches!(entry.key, NameKey::Suffix(_)))
        }).collect();
        prop_assert_eq!(keys.len(), compiled.names.len());
        prop_assert!(compiled.addresses.is_sorted_by(|a, b| a.net < b.net));
        prop_assert!(compiled.denies.is_sorted_by(|a, b| a.net < b.net));
    }
}

#[test]
fn a_hundred_thousand_rules_compile_in_linear_time() {
    let rules = |count: usize| {
        let mut text = String::from("rules:\n");
        for i in 0..count {
            text.push_str(&format!(
                "- {{name: r{i}, to: [h{i}.zone{}.example.com, 10.{}.{}.{}], ports: [443/tcp]}}\n",
                i % 97,
                i >> 16,
                i >> 8 & 255,
                i & 255
            ));
        }
        text
    };
    let time = |count: usize| {
        let text = rules(count);
        let start = std::time::Instant::now();
        let compiled = compiled(&text);
        assert_eq!((compiled.names.len(), compiled.addresses.len()), (count, count));
        start.elapsed()
    };
    let (small, large) = (time(10_000), time(100_000));
    // Ten times the rules: a quadratic step would take a hundred times as long.
    assert!(large < small * 40, "{small:?} for 10,000 and {large:?} for 100,000 rules");
}

#[test]
fn a_policy_that_multiplies_out_is_refused() {
    let mut text = String::from("rules:\n");
    for i in 1..=8_000 {
        text.push_str(&format!("- {{name: w{i}, to: ['*.example.com'], ports: [{i}/tcp]}}\n"));
        text.push_str(&format!("- {{name: n{i}, to: [n{i}.example.com], ports: [{i}/udp]}}\n"));
    }
    let (document, files) = super::document(&[("p.yaml", &text)], &[]).unwrap();
    let error = super::compile(&document, &files, &[]).expect_err("64 million grants");
    assert!(error.title.contains("multiplies out"), "{}", error.title);
}

/// P3: names of `dns.allowPrivate` stand in the table with what opens them, and only where something does.
#[test]
fn names_with_private_addresses_have_entries_of_their_own() {
    let compiled = compiled(
        "dns: {allowPrivate: [db.corp.test, '*.sub.corp.test', 'pg-*.corp.test', a.elsewhere.test, 'b-*.elsewhere.test', '*.elsewhere.test']}
rules:
  - {name: corp, to: ['*.corp.test', 'pg-*.corp.test'], ports: [443/tcp]}
  - {name: one, to: [pg-1.corp.test, x.sub.corp.test], ports: [80/tcp]}
",
    );
    let entries: Vec<_> = compiled.names.iter().map(|entry| (entry.key.name().as_str(), entry.private)).collect();
    let wanted = [
        ("corp.test", false),
        ("db.corp.test", true),
        ("pg-1.corp.test", true),
        ("sub.corp.test", true),
        ("x.sub.corp.test", true),
    ];
    assert_eq!(entries, wanted);
    let class = |at: usize| compiled.names[at].class;
    assert_eq!((class(1), class(3)), (class(0), class(0)), "what `*.corp.test` opens");
    let inner: Vec<_> = compiled.names[0].inner.iter().map(|inner| (&*inner.prefix, inner.private)).collect();
    assert_eq!(inner, [("pg-", true)]);
}

/// The programs look at sixteen wildcards inside a label below one name: more are refused, not passed over.
#[test]
fn too_many_wildcards_inside_a_label_are_refused() {
    let text = |rules: usize, private: usize| {
        let list = |prefix: &str, count: usize| {
            (0..count).map(|number| format!("'{prefix}{number}-*.a.test'")).collect::<Vec<_>>().join(", ")
        };
        let dns =
            if private == 0 { String::new() } else { format!("dns: {{allowPrivate: [{}]}}\n", list("p", private)) };
        format!("{dns}rules:\n  - {{name: x, to: [{}], ports: [443/tcp]}}\n", list("r", rules))
    };
    assert_eq!(compiled(&text(16, 0)).names[0].inner.len(), 16);
    assert_eq!(compiled(&text(8, 8)).names[0].inner.len(), 16);
    for (rules, private) in [(17, 0), (9, 8), (1, 16)] {
        let text = text(rules, private);
        let (document, files) = super::document(&[("p.yaml", &text)], &[]).unwrap();
        let error = super::compile(&document, &files, &[]).expect_err("too many");
        assert!(error.title.contains("too many wildcards inside a label of `a.test`"), "{}", error.title);
        assert!(error.at.is_some() && error.hint.is_some(), "{error:?}");
    }
}
