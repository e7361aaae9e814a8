//! Several files, and what stays the same across compiles.

use super::{
    super::compile::{OFFSET, compile, fnv1a},
    compiled, document,
};

const RULE: &str = "rules:\n  - name: x\n    to: [a.example.com, b.example.com]\n    ports: [443/tcp, 80/tcp]\n";

#[test]
fn the_same_rule_in_two_files_is_one() {
    let again = "rules:\n  - name: x\n    to: [B.example.com., a.example.com]\n    ports: [80/tcp, 443/tcp]\n";
    let (document, files) = document(&[("a.yaml", RULE), ("b.yaml", again)], &[]).unwrap();
    let compiled = compile(&document, &files, &[]).unwrap();
    assert_eq!(compiled.rules.len(), 1);
    assert_eq!(compiled.grants.len(), 2);
}

#[test]
fn each_key_of_dns_may_be_said_in_another_file() {
    let files = [("a.yaml", "dns: {grace: 0s}\n"), ("b.yaml", "dns: {minTtl: 5s, internal: [Cluster.Local.]}\n")];
    let (document, files) = document(&files, &[]).unwrap();
    let dns = compile(&document, &files, &["lan".parse().unwrap()]).unwrap().dns;
    assert_eq!((dns.grace.as_secs(), dns.min_ttl.as_secs(), dns.max_stale.as_secs()), (0, 5, 3600));
    assert_eq!(dns.internal.iter().map(super::super::DomainName::as_str).collect::<Vec<_>>(), ["cluster.local", "lan"]);
}

#[test]
fn a_policy_without_rules_allows_nothing() {
    let compiled = compiled("version: 1\n");
    assert!(compiled.rules.is_empty() && compiled.names.is_empty() && compiled.addresses.is_empty());
    assert!(!compiled.decide(&"example.com".parse().unwrap()).allowed);
    assert!(compiled.decide(&"127.0.0.1:80".parse().unwrap()).allowed);
}

#[test]
fn hash_and_keys_follow_the_meaning() {
    let other = "# formatted otherwise, and another order\nversion: 1\nrules:\n- {name: y, to: [any], ports: [123/udp]}\n\
                 - {name: x, ports: [80/tcp, 443/tcp], to: [b.example.com, a.example.com]}\n";
    let one = format!("{RULE}  - name: y\n    to: [any]\n    ports: [123/udp]\n");
    let (one, other) = (compiled(&one), compiled(other));
    assert_eq!(one.hash, other.hash);
    let keys = |compiled: &super::Compiled| {
        let mut keys: Vec<_> = compiled.grants.iter().map(|grant| grant.key).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys(&one), keys(&other));
    assert!(keys(&one).contains(&fnv1a(OFFSET, b"allow a.example.com 80/tcp,443/tcp x")));
    assert_ne!(one.hash, compiled(RULE).hash);
    assert_ne!(compiled("mode: audit\n").hash, compiled("mode: enforce\n").hash);
}

#[test]
fn placeholders_are_filled_or_take_the_other_form() {
    let text = "rules:\n  - name: x\n    to: [{set: \"*.hcp.${region}.azmk8s.io\", unset: \"*.azmk8s.io\"}]\n    ports: [443/tcp]\n";
    let item = |set: &[(&str, &str)]| {
        let (document, _) = document(&[("p.yaml", text)], set).unwrap();
        document.rules[0].to[0].target.to_string()
    };
    assert_eq!(item(&[]), "*.azmk8s.io");
    assert_eq!(item(&[("region", "westeurope")]), "*.hcp.westeurope.azmk8s.io");
}
