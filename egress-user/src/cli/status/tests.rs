use insta::assert_snapshot;

use super::*;
use crate::api::{Health, tests::status};

const NOW: Timestamp = Timestamp(1_772_366_624_000_000 + 3_725_000_000);

#[test]
fn trouble_is_on_the_screen() {
    assert_snapshot!(render(&status(), Style::default(), NOW));
}

#[test]
fn no_line_is_wider_than_a_terminal_and_the_screen_is_bounded() {
    let mut status = status();
    status.rules = vec![status.rules[1].clone(); 500];
    status.names = vec![status.names[1].clone(); 500];
    status.policy.files = vec!["/a/very/long/path".repeat(20); 40];
    status.warnings = vec!["x".repeat(300)];
    let text = render(&status, Style::default(), NOW);
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
    }
    assert!(text.lines().count() < 110, "{} lines", text.lines().count());
}

#[test]
fn colours_only_where_wanted_and_a_healthy_daemon_says_so() {
    let mut status = status();
    status.health = Health { healthy: true, problems: Vec::new() };
    let plain = render(&status, Style::default(), NOW);
    assert!(plain.contains("health   ok\n") && !plain.contains('\x1b'), "{plain}");
    assert!(render(&status, Style { color: true, local: false }, NOW).contains("\x1b[32mok\x1b[0m"));
    status.enforcing = false;
    assert!(render(&status, Style::default(), NOW).contains("NOT ENFORCING"));
}

#[test]
fn where_the_policy_came_from_is_said() {
    let mut status = status();
    assert!(!render(&status, Style::default(), NOW).contains("apply"));
    status.policy.applied = true;
    assert!(render(&status, Style::default(), NOW).contains("         by `egress apply`, until the files"));
    status.policy.confirm_seconds_left = Some(42);
    let text = render(&status, Style::default(), NOW);
    assert!(text.contains("on trial: the policy before comes back in 42s, unless `egress confirm`"), "{text}");
}

#[test]
fn units() {
    for (seconds, text) in [(0, "0s"), (119, "119s"), (120, "2m"), (3600, "1h 0m"), (90_000, "1d 1h")] {
        assert_eq!(duration(seconds), text);
    }
    for (count, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (u64::MAX, "16384.0 PiB")] {
        assert_eq!(bytes(count), text);
    }
}

#[test]
fn a_place_in_a_policy_is_shown_as_it_is_written() {
    let mut status = status();
    let place = "refused: error: `port` is unknown\n --> p.yaml:5:5\n  |\n5 |     port: [443/tcp]\n  |     ^^^^\n  = help: a hint that is longer than what is left of a line of eighty columns\n";
    status.health = Health { healthy: false, problems: vec![place.to_owned()] };
    status.policy.rules = 1;
    let text = render(&status, Style::default(), NOW);
    assert!(text.contains("\n                  5 |     port: [443/tcp]\n                    |     ^^^^\n"), "{text}");
    assert!(
        text.contains(
            "\n                  = help: a hint that is longer than what is left of a line of\n                  eighty"
        ),
        "{text}"
    );
    assert!(text.contains(", 1 rule, hash"), "{text}");
}
