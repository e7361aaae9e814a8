//! `egress status`: the daemon's state on one screen.

use std::{
    fmt::Write,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use egress_ebpf::reason::Reason;

use super::{output::count, without_daemon};
use crate::{
    api::{Client, MapFill, NameStatus, Status},
    datapath::Pins,
    events::{Style, Timestamp},
};

/// Lines of a section that are shown; `--json` has all.
const SHOWN: usize = 15;
/// Columns that a line may have.
const WIDTH: usize = 80;

/// Asks the daemon at `socket` and prints its state. Not to be called inside a tokio runtime.
pub fn run(socket: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(Client::new(socket).status()).map_err(|error| {
        let on = Pins::new(&Pins::default_bpffs()).hold();
        without_daemon(error, on.then_some("enforcement stays on without a daemon; `egress detach` ends it"))
    })?;
    let text = if json {
        format!("{}\n", serde_json::to_string_pretty(&status)?)
    } else {
        render(&status, Style::detect(&io::stdout()), Timestamp::now())
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// The state as text of at most 80 columns.
pub fn render(status: &Status, style: Style, now: Timestamp) -> String {
    let mut text = String::new();
    head(status, style, now, &mut text);
    section("attached", style, &mut text);
    if status.attach_points.is_empty() {
        row("nowhere: nothing is enforced", &mut text);
    }
    for point in &status.attach_points {
        let state = if point.present { String::new() } else { style.paint("  MISSING", "31") };
        let link = point.link_id.map(|id| format!("  link {id}")).unwrap_or_default();
        row_with(&format!("{:<22} {}{link}", point.hook, point.target), &state, &mut text);
    }
    rules(status, style, &mut text);
    names(status, style, &mut text);
    let dropped: Vec<_> = status.counters.iter().filter(|counter| !counter.passes && counter.packets > 0).collect();
    let verb = if status.mode == "audit" { "would drop" } else { "dropped" };
    section(verb, style, &mut text);
    if dropped.is_empty() {
        row("nothing", &mut text);
    }
    for counter in dropped {
        row(&format!("{:<22} {:>12} packets {:>10}", counter.reason, counter.packets, bytes(counter.bytes)), &mut text);
    }
    let lost: Vec<_> = status.learning.iter().filter(|counter| counter.loses).collect();
    if !lost.is_empty() {
        section("not learned from DNS", style, &mut text);
    }
    for counter in lost {
        row(&format!("{:<22} {:>12}", counter.what, counter.count), &mut text);
    }
    // A map is worth a line when it runs full, and takes nothing new then.
    let fills = |map: &&MapFill| !map.evicts && map.capacity > 0 && map.entries >= map.capacity / 5 * 4;
    for map in status.maps.iter().filter(fills) {
        warn(&format!("map {} holds {} of {} entries", map.name, map.entries, map.capacity), style, &mut text);
    }
    for sink in status.sinks.iter().filter(|sink| sink.lost > 0) {
        warn(&format!("{} events did not reach {}", sink.lost, sink.sink), style, &mut text);
    }
    if status.events_lost > 0 {
        warn(&format!("{} events were lost (verdicts are not affected)", status.events_lost), style, &mut text);
    }
    for warning in &status.warnings {
        warn(warning, style, &mut text);
    }
    text
}

fn head(status: &Status, style: Style, now: Timestamp, text: &mut String) {
    let mode = match (status.mode.as_str(), status.enforcing) {
        ("audit", _) => style.paint("audit: everything passes", "33"),
        (mode, true) => style.paint(mode, "32"),
        (mode, false) => style.paint(&format!("{mode}, NOT ENFORCING"), "31"),
    };
    let up = duration(now.seconds().saturating_sub(status.started.seconds()));
    let _ = writeln!(text, "egress {}  {mode}  up {up}", status.version);
    if status.health.healthy {
        let _ = writeln!(text, "health   {}", style.paint("ok", "32"));
    }
    for problem in &status.health.problems {
        wrapped("health   ", &style.paint("problem: ", "31"), "problem: ".len(), problem, text);
    }
    let hash: String = status.policy.hash.chars().take(12).collect();
    let policy = format!("generation {}, {}, hash {hash}", status.generation, count(status.policy.rules, "rule"));
    let _ = writeln!(text, "policy   {policy}");
    if let Some(left) = status.policy.confirm_seconds_left {
        let left = format!("on trial: the policy before comes back in {}, unless `egress confirm`", duration(left));
        wrapped("         ", "", 0, &style.paint(&left, "33"), text);
    } else if status.policy.applied {
        let _ = writeln!(text, "         by `egress apply`, until the files of `egress run` change");
    }
    for file in status.policy.files.iter().take(SHOWN) {
        let _ = writeln!(text, "         {}", cut_front(file, WIDTH - 9));
    }
    more(status.policy.files.len(), "files", text);
}

fn rules(status: &Status, style: Style, text: &mut String) {
    section("rules", style, text);
    let mut rules: Vec<_> = status.rules.iter().collect();
    // Those that do something first, as far as the screen goes; else the policy's order.
    if rules.len() > SHOWN {
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.packets));
    }
    for rule in rules.iter().take(SHOWN) {
        let name = cut(&rule.name, 28);
        let hits = if rule.packets == 0 {
            format!("{:>12} {:>10}", "no hits", "")
        } else {
            format!("{:>12} {:>10}", rule.packets, bytes(rule.bytes))
        };
        row(&format!("{:<5} {name:<28} {hits}  {}", rule.action, cut_front(&rule.source, 18)), text);
    }
    more(rules.len(), "rules", text);
}

fn names(status: &Status, style: Style, text: &mut String) {
    section("names", style, text);
    let mut names: Vec<&NameStatus> = status.names.iter().collect();
    // Trouble first: it must not fall off the screen.
    names.sort_by_key(|name| name.last_error.is_none());
    for name in names.iter().take(SHOWN) {
        let addresses: Vec<String> = name
            .addresses
            .iter()
            .map(|address| match address.permanent {
                true => address.address.to_string(),
                false => format!("{} ({})", address.address, duration(address.seconds_left)),
            })
            .collect();
        let addresses = match addresses.as_slice() {
            [] => "no address".to_owned(),
            [one] => one.clone(),
            [first, rest @ ..] => format!("{first} +{}", rest.len()),
        };
        row(&format!("{:<42} {addresses}", cut(&name.name, 42)), text);
        if let Some(error) = &name.last_error {
            let error = cut(error, WIDTH - 6);
            let _ = writeln!(text, "      {}", style.paint(&error, "33"));
        }
    }
    more(names.len(), "names", text);
    // The first packets of flows: what an open connection sends is no use of its address.
    if let Some(grace) = status.counters.iter().find(|counter| counter.reason == Reason::Grace.name()) {
        row(&format!("{} packets passed in the grace: their address' TTL was over", grace.packets), text);
    }
}

fn section(title: &str, style: Style, text: &mut String) {
    let _ = writeln!(text, "\n{}", style.paint(title, "1"));
}

fn row(line: &str, text: &mut String) {
    row_with(line, "", text);
}

/// A row, and what must stay visible at its end (painted; `  MISSING` is the longest).
fn row_with(line: &str, end: &str, text: &mut String) {
    let room = WIDTH - 2 - if end.is_empty() { 0 } else { "  MISSING".len() };
    let line = cut(line, room);
    let _ = writeln!(text, "  {}{end}", if end.is_empty() { line.trim_end() } else { line.as_str() });
}

fn warn(message: &str, style: Style, text: &mut String) {
    text.push('\n');
    wrapped("", &style.paint("warning: ", "33"), "warning: ".len(), message, text);
}

/// `message` broken at spaces, under where it begins; lines of its own, which show a place in a policy, stay as they are where they fit.
fn wrapped(indent: &str, label: &str, label_width: usize, message: &str, text: &mut String) {
    let left = indent.len() + label_width;
    let _ = write!(text, "{indent}{label}");
    for (number, line) in message.trim_end().lines().enumerate() {
        if number > 0 {
            let _ = write!(text, "{:left$}", "");
        }
        if number > 0 && left + line.chars().count() <= WIDTH {
            text.push_str(line);
        } else {
            words(left, line, text);
        }
        text.push('\n');
    }
}

/// The words of a line, broken where the column `left` begins.
fn words(left: usize, line: &str, text: &mut String) {
    let mut column = left;
    for word in line.split_whitespace() {
        let word = cut(word, WIDTH - left);
        let width = word.chars().count();
        if column > left && column + 1 + width > WIDTH {
            let _ = write!(text, "\n{:left$}", "");
            column = left;
        } else if column > left {
            text.push(' ');
            column += 1;
        }
        text.push_str(&word);
        column += width;
    }
}

fn more(count: usize, what: &str, text: &mut String) {
    if count > SHOWN {
        let _ = writeln!(text, "  ... and {} more {what}: --json has them all", count - SHOWN);
    }
}

/// At most `width` characters, the end replaced where it is more.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(2)).collect();
    short.push_str("..");
    short
}

/// The same, but the beginning goes: of a path the end tells most.
fn cut_front(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let end: String = text.chars().skip(count - width.saturating_sub(2)).collect();
    format!("..{end}")
}

/// `59s`, `5m`, `3h 5m`, `2d 3h`.
fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 60 => format!("{minutes}m"),
        () if hours < 24 => format!("{hours}h {}m", minutes % 60),
        () => format!("{days}d {}h", hours % 24),
    }
}

/// `999 B`, `1.5 KiB`, ....
fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "one digit after the point is shown")]
    let mut value = count as f64;
    let mut unit = "";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests;
