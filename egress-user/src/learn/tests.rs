use std::net::IpAddr;

use serde_json::json;

use super::*;
use crate::{
    events::Event,
    policy::{self, Loaded, Sources},
};

fn event(fields: serde_json::Value) -> Event {
    let mut event = json!({"version": 1, "time": "2026-03-01T12:03:44.000000Z"});
    event.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    serde_json::from_value(event).unwrap()
}

fn asked(learner: &mut Learner, name: &str, addresses: &[&str]) {
    let addresses: Vec<_> = addresses.iter().map(|address| json!({"address": address, "ttl": 60})).collect();
    learner.add(&event(json!({"kind": "learned", "name": name, "resolver": "10.0.0.53", "resolver_port": 53,
        "rcode": 0, "addresses": addresses, "refused": 0, "generation": 1})));
}

fn sent(learner: &mut Learner, fields: serde_json::Value) {
    let mut whole = json!({"kind": "would-drop", "verdict": "pass", "reason": "no-rule", "hook": "connect",
        "protocol": "tcp", "bytes": 0, "generation": 1, "count": 1,
        "process": {"pid": 7, "comm": "curl", "uid": 0}});
    whole.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    learner.add(&event(whole));
}

/// A name is asked and connected to.
fn fetched(learner: &mut Learner, name: &str, address: &str, port: u16) {
    asked(learner, name, &[address]);
    sent(learner, json!({"destination": address, "destination_port": port, "names": [name]}));
}

fn text(learner: &Learner, wildcards: bool) -> String {
    Plan::of(learner, wildcards).text(learner, &Options { about: "a test".to_owned(), resolvers: Vec::new() })
}

/// The written policy, read back: it must pass `egress check --strict`.
fn read(text: &str) -> Loaded {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    std::fs::write(&path, text).unwrap();
    let loaded = policy::load(&Sources { policies: vec![path], ..Sources::default() });
    let loaded = loaded.unwrap_or_else(|error| panic!("{:?}\n{text}", error.diagnostics));
    assert!(loaded.warnings.is_empty(), "{:?}\n{text}", loaded.warnings);
    loaded
}

fn items(text: &str) -> Vec<String> {
    let compiled = read(text).compiled;
    let mut items: Vec<String> = compiled
        .grants
        .iter()
        .map(|grant| {
            let ports: Vec<String> =
                compiled.rules[grant.rule as usize].ports.iter().map(ToString::to_string).collect();
            format!("{} {}", grant.item, ports.join(","))
        })
        .collect();
    items.sort();
    items
}

#[test]
fn nothing_seen_is_a_policy_that_allows_nothing() {
    assert_eq!(items(&text(&Learner::new(), false)), [""; 0]);
}

#[test]
fn names_stand_for_addresses_and_ports_are_not_multiplied() {
    let mut learner = Learner::new();
    fetched(&mut learner, "a.example.com", "203.0.113.1", 443);
    fetched(&mut learner, "a.example.com", "203.0.113.2", 8443);
    fetched(&mut learner, "b.example.com", "203.0.113.3", 443);
    sent(&mut learner, json!({"destination": "2001:db8::7", "destination_port": 5432}));
    let text = text(&learner, false);
    assert_eq!(
        items(&text),
        ["2001:db8::7 5432/tcp", "a.example.com 443/tcp,8443/tcp", "b.example.com 443/tcp"],
        "{text}"
    );
    assert!(text.contains("a.example.com  # curl; seen 2; 203.0.113.1 203.0.113.2"), "{text}");
}

/// Whoever comes again asks for its own name first, so each that was asked is allowed.
#[test]
fn names_that_share_an_address_are_all_written() {
    let mut learner = Learner::new();
    asked(&mut learner, "one.example.com", &["203.0.113.1"]);
    asked(&mut learner, "two.example.net", &["203.0.113.1"]);
    let names = ["two.example.net", "one.example.com", "before.example.org"];
    sent(&mut learner, json!({"destination": "203.0.113.1", "destination_port": 443, "names": names}));
    assert_eq!(items(&text(&learner, false)), ["one.example.com 443/tcp", "two.example.net 443/tcp"]);
}

#[test]
fn wildcards_are_made_only_where_asked_and_never_below_a_public_suffix() {
    let mut learner = Learner::new();
    for (number, name) in ["a", "b", "c", "x.d"].iter().enumerate() {
        fetched(&mut learner, &format!("{name}.example.com"), &format!("203.0.113.{number}"), 443);
        fetched(&mut learner, &format!("{}.co.uk", name.replace('.', "-")), &format!("198.51.100.{number}"), 443);
        fetched(&mut learner, &format!("{}.github.io", name.replace('.', "-")), &format!("192.0.2.{number}"), 443);
    }
    fetched(&mut learner, "e.example.com", "203.0.113.9", 22);
    assert_eq!(items(&text(&learner, false)).len(), 13);
    let folded = items(&text(&learner, true));
    let of = |suffix: &str| folded.iter().filter(|item| item.contains(suffix)).cloned().collect::<Vec<_>>();
    assert_eq!(of("example.com"), ["*.example.com 443/tcp", "e.example.com 22/tcp"]);
    assert_eq!(of("co.uk").len(), 4, "{folded:?}");
    assert_eq!(of("github.io").len(), 4, "{folded:?}");
}

#[test]
fn two_siblings_are_no_reason_for_a_wildcard() {
    let mut learner = Learner::new();
    fetched(&mut learner, "a.example.com", "203.0.113.1", 443);
    fetched(&mut learner, "b.example.com", "203.0.113.2", 443);
    assert_eq!(items(&text(&learner, true)), ["a.example.com 443/tcp", "b.example.com 443/tcp"]);
}

#[test]
fn private_answers_are_allowed_by_name() {
    let mut learner = Learner::new();
    fetched(&mut learner, "db.corp.example", "10.1.2.3", 5432);
    fetched(&mut learner, "www.example.com", "203.0.113.1", 443);
    let text = text(&learner, false);
    let allowed = read(&text).compiled.dns.allow_private;
    assert_eq!(allowed.iter().map(ToString::to_string).collect::<Vec<_>>(), ["db.corp.example"], "{text}");
}

#[test]
fn what_is_left_out_is_told_with_the_reason() {
    let mut learner = Learner::new();
    sent(&mut learner, json!({"destination": "224.0.0.251", "destination_port": 5353, "protocol": "udp"}));
    sent(
        &mut learner,
        json!({"destination": "9.9.9.9", "destination_port": 53, "protocol": "udp",
        "reason": "untrusted-resolver", "count": 4}),
    );
    sent(&mut learner, json!({"destination": "192.0.2.7", "protocol": "gre", "reason": "protocol"}));
    asked(&mut learner, "unused.example.com", &["203.0.113.1"]);
    let text = text(&learner, false);
    assert_eq!(items(&text), [""; 0]);
    for part in [
        "# - multicast and broadcast",
        "224.0.0.251 udp port 5353 by curl",
        "not trusted: name it in `dns.resolvers` if it is meant: seen 4, such as 9.9.9.9 udp port 53",
        "other IP protocols",
        "not connected to: unused.example.com",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

/// A process may call itself what it likes; what it says stays in a comment on one line.
#[test]
fn users_cannot_write_rules() {
    let mut learner = Learner::new();
    let comm = crate::events::escape("x\n  - to: [any]\u{1b}[2J\u{202e}".as_bytes());
    let process = json!({"pid": 7, "comm": comm, "uid": 0});
    sent(&mut learner, json!({"destination": "203.0.113.1", "destination_port": 443, "process": process}));
    let text = text(&learner, false);
    assert_eq!(items(&text), ["203.0.113.1 443/tcp"], "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
}

#[test]
fn a_name_that_cannot_be_written_is_an_address() {
    let mut learner = Learner::new();
    let name = "a\\\\b.example.com";
    asked(&mut learner, name, &["203.0.113.1"]);
    sent(&mut learner, json!({"destination": "203.0.113.1", "destination_port": 443, "names": [name]}));
    assert_eq!(items(&text(&learner, false)), ["203.0.113.1 443/tcp"]);
}

#[test]
fn names_that_yaml_reads_otherwise_are_quoted() {
    let mut learner = Learner::new();
    for (number, name) in ["1e5.example", "0x10.fe", "no.example", "_dmarc.example.com", "3.14.fe"].iter().enumerate() {
        fetched(&mut learner, name, &format!("203.0.113.{number}"), 443);
    }
    assert_eq!(items(&text(&learner, false)).len(), 5);
}

#[test]
fn a_million_destinations_are_bounded_and_told() {
    let mut learner = Learner::new();
    let mut scan = event(json!({"kind": "would-drop", "verdict": "pass", "reason": "no-rule", "hook": "connect",
        "protocol": "tcp", "bytes": 0, "generation": 1, "count": 1, "destination_port": 443}));
    for number in 0..1_000_000_u32 {
        let crate::events::Kind::WouldDrop(refusal) = &mut scan.kind else { unreachable!() };
        refusal.destination = Some(IpAddr::from((0x2000_0000 + number).to_be_bytes()));
        learner.add(&scan);
    }
    assert_eq!(learner.destinations(), DESTINATIONS);
    let text = text(&learner, false);
    assert_eq!(items(&text).len(), DESTINATIONS);
    assert!(text.contains("look for a scan, or learn in parts: seen 980000"), "no word of what was left out");
}

#[test]
fn lost_events_are_told_at_the_top() {
    let mut learner = Learner::new();
    learner.lose(3);
    assert!(text(&learner, false).contains("# 3 events were lost"));
}
