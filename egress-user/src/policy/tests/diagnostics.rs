//! Every kind of wrong policy, as the user sees it.

use super::{document, report};

macro_rules! snapshots {
    ($($name:ident: $text:expr,)*) => {$(
        #[test]
        fn $name() {
            insta::assert_snapshot!(report($text));
        }
    )*};
}

snapshots! {
    empty_file: "",
    only_comments: "# nothing\n",
    not_a_map: "- a\n- b\n",
    not_yaml: "rules: [a, b\nmode: x\n",
    colon_in_a_text: "rules:\n  - name: x\n    why: see: the ticket\n    to: [any]\n    ports: [any]\n",
    two_documents: "version: 1\n---\nmode: audit\n",
    tab: "version: 1\nrules:\n\t- name: x\n",
    wildcard_without_quotes: "rules:\n  - name: x\n    to: [*.example.com]\n    ports: [443/tcp]\n",
    unknown_keys: "versoin: 1\nmodes: enforce\nrules:\n  - name: x\n    too: [any]\n    to: [any]\n    port: [any]\n    zzz: 1\n    ports: [any]\n",
    duplicate_key: "mode: enforce\nmode: audit\n",
    duplicate_rule: "rules:\n  - name: x\n    to: [any]\n    ports: [any]\n  - name: x\n    to: [any]\n    ports: [icmp]\n",
    wrong_version: "version: 2\n",
    wrong_mode: "mode: enforced\n",
    empty_lists: "rules:\n  - name: x\n    to: []\n    ports: []\n",
    no_rules_in_rules: "rules: []\n",
    null_rules: "rules:\n",
    missing_keys: "rules:\n  - why: no name\n    ports: [any]\n  - name: no-ports\n    to: [any]\n  - just text\n",
    not_lists: "rules:\n  - name: x\n    to: \"*.example.com\"\n    ports: 443/tcp\n",
    name_in_deny: "rules:\n  - name: x\n    action: deny\n    to: [192.0.2.1, example.com]\n",
    host_bits: "rules:\n  - name: x\n    to: [10.1.2.3/8, \"2001:db8::1/32\"]\n    ports: [any]\n",
    ports: "rules:\n  - name: x\n    to: [any]\n    ports: [0/tcp, 70000/tcp, 20-10/udp, 443, tcp/443, https, 1/sctp, 99999999999999999999/tcp]\n",
    times: "dns:\n  minTtl: 60\n  grace: soon\n  maxStale: 900d\n",
    resolvers: "dns:\n  resolvers: [192.0.2.53:0, example.com, 0.0.0.0]\n",
    one_resolver: "dns:\n  resolvers: 192.0.2.53\n",
    internal_wildcard: "dns:\n  internal: [\"*.cluster.local\"]\n",
    builtins: "builtins:\n  loopbak: true\n  arp: maybe\n",
    placeholder: "rules:\n  - name: x\n    to: [\"${region}.example.com\"]\n    ports: [443/tcp]\n",
    placeholder_forms: "rules:\n  - name: x\n    to:\n      - set: a.example.com\n        unset: b.example.com\n      - set: a.example.com\n    ports: [443/tcp]\n",
    silence: "rules:\n  - name: x\n    to: [any]\n    ports: [any]\n    silence: {wide-port: yes, covered: \"\"}\n",
    control_characters: "rules:\n  - name: \"a\\e[31mb\"\n    to: [any]\n    ports: [any]\n  - name: y\n    to: [\"a\\e[31m.com\"]\n    ports: [any]\n",
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = String::from("a0: &a0 [x, x]\n");
    for level in 1..40 {
        let before = level - 1;
        text.push_str(&format!("a{level}: &a{level} [*a{before}, *a{before}, *a{before}, *a{before}]\n"));
    }
    assert!(report(&text).contains("not YAML"), "{}", report(&text));
}

#[test]
fn a_second_document_is_refused() {
    assert!(report("version: 1\n---\nversion: 1\n").contains("p.yaml:"));
}

#[test]
fn two_files_that_say_the_same_name_both_places() {
    let files = [
        ("a.yaml", "mode: enforce\ndns:\n  grace: 1m\nbuiltins: {arp: false}\n"),
        ("b.yaml", "version: 1\nmode: audit\ndns:\n  grace: 2m\n  minTtl: 1s\nbuiltins: {arp: true, lldp: true}\n"),
    ];
    insta::assert_snapshot!(document(&files, &[]).expect_err("said twice").to_string());
}

#[test]
fn two_files_with_different_rules_of_one_name() {
    let rule = |ports: &str| format!("rules:\n  - name: x\n    to: [any]\n    ports: [{ports}]\n");
    let files = [("a.yaml", rule("443/tcp")), ("b.yaml", rule("80/tcp"))];
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    insta::assert_snapshot!(document(&files, &[]).expect_err("two rules").to_string());
}

#[test]
fn many_errors_are_counted() {
    let text = format!("rules:\n{}", "  - name: x\n".repeat(50));
    let report = report(&text);
    assert!(report.contains("\n... and 129 more errors"), "{}", &report[report.len() - 200..]);
}

#[test]
fn columns_count_characters_and_long_lines_are_cut() {
    let name = "ü".repeat(3000);
    let text = format!("rules: [{{why: \"{name}\", name: x, to: [\"*\"], ports: [any]}}]\n");
    let error = document(&[("p.yaml", &text)], &[]).expect_err("a star");
    let report = error.diagnostics[0].report(&error.files);
    assert_eq!((report.line, report.column), (Some(1), Some(3033)));
    assert!(error.to_string().len() < 4000, "{}", error.to_string().len());
}
