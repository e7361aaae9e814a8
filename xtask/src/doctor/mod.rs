//! `cargo xtask doctor`: what this machine has and lacks, each with its remedy.

mod kernel;
mod privileges;
mod toolchain;

#[cfg(test)]
mod tests;

use anyhow::Result;

use crate::place::Place;

/// One line of the table.
struct Item {
    name: &'static str,
    state: State,
    found: String,
    /// What to do; empty where nothing is to be done.
    remedy: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Good,
    /// Something is weaker without it, or only a part of the tests needs it.
    Weaker,
    /// Egress, its build or its tests do not work without it.
    Missing,
    /// This machine does not say.
    Unknown,
}

/// Prints the table. Whether nothing that is required is missing.
pub fn run(place: &Place) -> Result<bool> {
    let mut items = toolchain::items(place);
    items.extend(privileges::items());
    items.extend(kernel::items());
    for item in &items {
        let state = match item.state {
            State::Good => "ok",
            State::Weaker => "weaker",
            State::Missing => "MISSING",
            State::Unknown => "unknown",
        };
        println!("{:<16} {state:<8} {}", item.name, item.found);
        if item.state != State::Good && !item.remedy.is_empty() {
            println!("{:<16}          -> {}", "", item.remedy);
        }
    }
    Ok(items.iter().all(|item| item.state != State::Missing))
}

fn item(name: &'static str, good: bool, otherwise: State, found: impl Into<String>, remedy: &'static str) -> Item {
    Item { name, state: if good { State::Good } else { otherwise }, found: found.into(), remedy }
}
