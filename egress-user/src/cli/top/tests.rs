use ratatui::{Terminal, backend::TestBackend};

use super::{
    draw::draw,
    state::{Act, State, View},
    table::{ROWS, Sort, Table},
};
use crate::api::tests::status;

fn screen(state: &State, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state, false)).unwrap();
    terminal.backend().to_string()
}

fn some() -> State {
    let mut state = State::default();
    for second in 0..10 {
        state.now = second;
        for (name, count) in [("203.0.113.9", second + 1), ("2001:db8::9", 3)] {
            let json = format!(
                r#"{{"version":1,"time":"2026-01-01T00:00:00Z","kind":"dropped","verdict":"drop","reason":"no-rule","hook":"connect",
                "protocol":"tcp","destination":"{name}","destination_port":443,"bytes":0,"generation":1,"count":{count},
                "process":{{"pid":7,"comm":"curl","uid":0}},"cgroup":"/system.slice/cron.service"}}"#
            );
            state.event(&serde_json::from_str(&json).unwrap());
        }
    }
    state
}

#[test]
fn what_it_shows_at_80_columns() {
    insta::assert_snapshot!(screen(&some(), 80, 8));
}

#[test]
fn what_it_shows_at_20_columns() {
    insta::assert_snapshot!(screen(&some(), 20, 8));
}

#[test]
fn no_size_is_too_small() {
    for (width, height) in [(1, 1), (3, 2), (20, 3), (200, 1)] {
        screen(&some(), width, height);
    }
}

#[test]
fn views_and_orders() {
    let mut state = some();
    assert_eq!(state.table().sorted(Sort::Name, 9)[0].0, "203.0.113.9:443/tcp");
    assert!(state.act(Act::Show(View::Process)));
    assert!(screen(&state, 80, 8).contains("curl[7]"));
    assert!(state.act(Act::NextView));
    assert!(screen(&state, 80, 8).contains("/system.slice/cron.service"));
    assert!(!state.act(Act::Quit));
}

#[test]
fn rules_count_from_the_first_reading() {
    let mut state = State::default();
    assert!(state.act(Act::Show(View::Rule)));
    let mut rules = status().rules;
    state.rules(&rules);
    assert_eq!(state.table().total, 0);
    rules[0].packets += 5;
    state.rules(&rules);
    // Another policy: the counter began anew.
    rules[0].packets = 2;
    state.rules(&rules);
    assert_eq!(state.table().total, 7);
}

#[test]
fn a_million_destinations_are_bounded_and_the_busiest_stay() {
    let mut table = Table::default();
    for n in 0..1_000_000_u64 {
        table.add(&format!("d{n}"), "no-rule", n / 100_000, 1);
        if n % 100 == 0 {
            table.add("busy", "no-rule", n / 100_000, 2);
        }
    }
    assert!(table.len() <= ROWS, "{}", table.len());
    let rows = table.sorted(Sort::Total, 9);
    assert_eq!((rows[0].0, rows[0].1.total), ("busy", 20_000));
    assert_eq!(table.others + rows.iter().map(|(_, row)| row.total).sum::<u64>(), table.total);
    assert_eq!(table.total, 1_020_000, "nothing is lost but names");
}

#[test]
fn rates_are_of_the_last_seconds() {
    let mut table = Table::default();
    for second in 0..100 {
        table.add("x", "", second, 10);
    }
    let rate = |now| table.sorted(Sort::Rate, now)[0].1.rate(now);
    assert_eq!(rate(99), 10.0);
    assert_eq!(rate(102), 6.0);
    assert_eq!(rate(200), 0.0);
}
