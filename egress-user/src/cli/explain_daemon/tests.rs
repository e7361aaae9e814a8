use insta::assert_snapshot;

use super::*;

#[test]
fn an_explanation_tells_all_that_is_known() {
    let allowed = Explanation {
        destination: "203.0.113.4:443/tcp".into(),
        allowed: true,
        reason: "rule".into(),
        rule: Some("images".into()),
        via_name: Some("mcr.microsoft.com".into()),
        learned_from: Some("10.0.0.53:53".into()),
        seconds_left: Some(930),
        generation: 3,
        ..Explanation::default()
    };
    let denied = Explanation {
        destination: "mcr.microsoft.com:80/tcp".into(),
        reason: "no-rule".into(),
        generation: 3,
        nearest_rule: Some("rule `images` allows it, but on 443/tcp only".into()),
        notes: vec!["a note".into()],
        hint: Some("add `80/tcp` to its `ports`".into()),
        ..Explanation::default()
    };
    assert_snapshot!(format!("{}\n{}", render(&allowed, Style::default()), render(&denied, Style::default())));
}
