//! The table, within 100 columns; colours on a terminal only.

use std::io::IsTerminal as _;
use std::time::Duration;

use super::{Options, Outcome, frames_text};

const GREEN: &str = "32";
const RED: &str = "1;31";
const BOLD: &str = "1";

fn paint(text: &str, colour: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

fn word(pass: bool) -> &'static str {
    if pass { "allowed" } else { "blocked" }
}

pub fn heading(options: Options, built: Duration, ready: Duration) {
    println!("A small internet in network namespaces, built in {} ms.", built.as_millis());
    if options.without_enforcement {
        println!("No daemon runs: every row must get through, the forbidden ones too.\n");
    } else {
        let start = (ready - built).as_millis();
        println!("egress run --policy aks-required --policy aks-optional: enforcement is on after {start} ms.\n");
    }
    let line = format!(
        "{:<43} {:<22} {:<8} {:<7} {:<5} {:<6} ok",
        "destination", "tried", "expected", "client", "world", "daemon"
    );
    println!("{}", paint(&line, BOLD));
}

pub fn section(name: &str) {
    println!("{}", paint(&format!("-- {name}"), BOLD));
}

pub fn row(outcome: &Outcome) {
    let world = if outcome.world_saw() { "saw" } else { "-" };
    let daemon = match outcome.events.as_deref() {
        None => "none",
        Some([]) => "-",
        Some(_) => "drop",
    };
    let verdict = if outcome.as_expected() { paint("yes", GREEN) } else { paint("NO", RED) };
    println!(
        "{:<43} {:<22} {:<8} {:<7} {:<5} {:<6} {verdict}",
        outcome.row.destination,
        outcome.row.tried,
        word(outcome.expect_pass),
        word(outcome.told.pass),
        world,
        daemon
    );
}

pub fn details(outcome: &Outcome) {
    println!("    the client said: {}", outcome.told.words);
    let frames = &outcome.frames[..outcome.frames.len().min(4)];
    print!(
        "{}",
        frames_text(frames).lines().map(|line| format!("    the world saw: {}\n", line.trim())).collect::<String>()
    );
    for event in outcome.events.iter().flatten().take(4) {
        println!("    the daemon said: {event}");
    }
}

pub fn summary(options: Options, rows: usize, wrong: usize, took: Duration) {
    let took = format!("{:.1} s", took.as_secs_f64());
    let mode = if options.without_enforcement { "without enforcement" } else { "under enforcement" };
    if wrong == 0 {
        println!("\n{}", paint(&format!("All {rows} rows are as expected {mode}, in {took}."), GREEN));
    } else {
        println!("\n{}", paint(&format!("{wrong} of {rows} rows are NOT as expected {mode}, in {took}."), RED));
    }
}
