use insta::assert_snapshot;

use super::*;
use crate::api::{ExplainedRule, NearestRule};

fn images() -> ExplainedRule {
    ExplainedRule {
        name: "images".into(),
        action: "allow".into(),
        item: "*.example.com".into(),
        ports: vec!["443/tcp".into()],
        source: "policy.yaml:7".into(),
        why: Some("container images".into()),
    }
}

#[test]
fn an_explanation_tells_all_that_is_known() {
    let allowed = Explanation {
        destination: "203.0.113.4:443/tcp".into(),
        allowed: true,
        reason: "rule".into(),
        rule: Some("images".into()),
        rules: vec![images()],
        via_name: Some("a.example.com".into()),
        learned_from: Some("10.0.0.53:53".into()),
        learned_seconds_ago: Some(150),
        seconds_left: Some(30),
        in_grace: true,
        generation: 3,
        ..Explanation::default()
    };
    let address = ExplainedAddress {
        address: "203.0.113.4".parse().unwrap(),
        name: Some("a.example.com".into()),
        allowed: false,
        reason: "no-port".into(),
        learned_from: Some("10.0.0.53:53".into()),
        learned_seconds_ago: Some(5),
        seconds_left: Some(7300),
        in_grace: false,
    };
    let denied = Explanation {
        destination: "a.example.com:80/tcp".into(),
        mode: "audit".into(),
        reason: "no-rule".into(),
        generation: 3,
        addresses: vec![address],
        nearest_rule: Some("rule `images` allows it, but on 443/tcp only".into()),
        nearest: Some(NearestRule { near: "other-port".into(), rule: images() }),
        notes: vec!["a note".into()],
        add: Some("- {name: allow-a-example-com, to: [\"a.example.com\"], ports: [80/tcp]}".into()),
        hint: Some("paste this below `rules:`".into()),
        ..Explanation::default()
    };
    let builtin = Explanation {
        destination: "127.0.0.1:80/tcp".into(),
        allowed: true,
        reason: "builtin".into(),
        builtin: Some("loopback".into()),
        generation: 3,
        ..Explanation::default()
    };
    let texts = [allowed, denied, builtin].map(|explanation| render(&explanation, Style::default()));
    assert_snapshot!(texts.join("\n"));
}
