//! Each warning where it belongs, and not beside it.

use super::{
    super::{compile::compile, render_all, warn},
    document,
};

fn check(text: &str) -> (Vec<&'static str>, usize, String) {
    let (document, files) = document(&[("p.yaml", text)], &[]).unwrap_or_else(|error| panic!("{error}"));
    let found = warn::check(&document, &compile(&document, &files, &[]).unwrap());
    let codes = found.warnings.iter().filter_map(|warning| warning.code).collect();
    (codes, found.silenced.len(), render_all(&found.warnings, &files, false))
}

fn codes(text: &str) -> Vec<&'static str> {
    check(text).0
}

#[test]
fn a_wildcard_under_a_public_suffix() {
    let rule = |item: &str| format!("rules:\n  - {{name: x, to: [\"{item}\"], ports: [443/tcp]}}\n");
    for item in ["*.blob.core.windows.net", "*.com", "*.github.io", "umsa*.blob.core.windows.net", "*.co.uk"] {
        assert_eq!(codes(&rule(item)), ["public-suffix"], "{item}");
    }
    for item in ["*.example.com", "*.account.blob.core.windows.net", "blob.core.windows.net", "*.ubuntu.com"] {
        assert!(codes(&rule(item)).is_empty(), "{item}");
    }
}

#[test]
fn covered_by_another_rule() {
    let text = "rules:
  - {name: wide, to: [\"*.example.com\", 10.0.0.0/8], ports: [any]}
  - {name: narrow, to: [api.example.com, 10.1.0.0/16, \"*.a.example.com\"], ports: [443/tcp]}
  - {name: apex, to: [example.com, 11.0.0.1], ports: [443/tcp]}
";
    assert_eq!(codes(text), ["covered", "covered", "covered"]);
    let ports = "rules:\n  - {name: a, to: [x.example.com], ports: [443/tcp]}\n  - {name: b, to: [x.example.com], ports: [443/tcp, 80/tcp]}\n";
    assert_eq!(codes(ports), ["covered"], "the narrower one alone");
    let same = "rules:\n  - {name: a, to: [x.example.com], ports: [443/tcp]}\n  - {name: b, to: [x.example.com], ports: [443/tcp]}\n";
    assert_eq!(codes(same), ["covered"], "one of two equal ones");
}

#[test]
fn denied_by_a_rule() {
    let deny = "  - {name: no, action: deny, to: [10.0.0.0/8]}\n";
    assert_eq!(codes(&format!("rules:\n  - {{name: a, to: [10.1.0.0/16], ports: [443/tcp]}}\n{deny}")), ["denied"]);
    assert!(codes(&format!("rules:\n  - {{name: a, to: [0.0.0.0/3], ports: [443/tcp]}}\n{deny}")).is_empty());
}

#[test]
fn any_on_many_ports() {
    let rule = |to: &str, ports: &str| format!("rules:\n  - {{name: x, to: [{to}], ports: [{ports}]}}\n");
    assert_eq!(codes(&rule("any", "any")), ["wide-ports"]);
    assert_eq!(codes(&rule("0.0.0.0/0", "1-100/tcp")), ["wide-ports"]);
    assert!(codes(&rule("any", "123/udp, icmp")).is_empty());
    assert!(codes(&rule("10.0.0.0/8", "any")).is_empty());
}

#[test]
fn a_denied_resolver() {
    let text = |ports: &str| {
        format!("dns: {{resolvers: [10.0.0.53]}}\nrules:\n  - {{name: no, action: deny, to: [10.0.0.0/8]{ports}}}\n")
    };
    assert_eq!(codes(&text("")), ["resolver-denied"]);
    assert!(codes(&text(", ports: [80/tcp]")).is_empty());
}

#[test]
fn a_reason_silences_and_an_unused_one_is_told() {
    let text = "rules:\n  - {name: x, to: [any], ports: [any], silence: {wide-ports: a lab, covered: why not}}\n";
    let (codes, silenced, report) = check(text);
    assert_eq!((codes, silenced), (vec!["unused-silence"], 1));
    insta::assert_snapshot!(report);
}

#[test]
fn warnings_look_like_errors() {
    let text = "rules:
  - name: wide
    to: [\"*.example.com\"]
    ports: [any]
  - name: store
    to: [\"*.blob.core.windows.net\", api.example.com]
    ports: [443/tcp]
";
    insta::assert_snapshot!(check(text).2);
}
