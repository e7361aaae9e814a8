//! `egress explain` without a policy: the daemon says what it does, learned names included.

use std::{
    fmt::Write,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use super::{Failure, args::ExplainArgs, explain_packet, without_daemon};
use crate::{
    api::{Client, ClientError, ExplainedAddress, Explanation, PacketQuestion},
    events::Style,
};

/// Asks about what was given: a destination or a packet.
pub fn main(socket: &Path, args: ExplainArgs) -> anyhow::Result<ExitCode> {
    if !args.policy.set.is_empty() {
        return Err(Failure::input(
            "`--set` fills a placeholder of a policy, and none is given",
            "name it: `egress explain --policy P --set KEY=VALUE DEST`; the daemon was told by `egress run` or `egress apply`",
        )
        .into());
    }
    match (args.packet, args.destination) {
        (Some(packet), _) => {
            let question = PacketQuestion { packet: packet.to_string(), hook: args.hook, cgroup: args.cgroup };
            explain_packet::run(socket, &question, args.json)
        }
        (None, Some(destination)) => run(socket, &destination.to_string(), args.json),
        (None, None) => Err(Failure::input("no destination", "write one, or `--packet`").into()),
    }
}

/// Asks the daemon at `socket` about `to`. Exit code 0: allowed, 1: denied, 2: no destination. Not to be called inside
/// a tokio runtime.
pub fn run(socket: &Path, to: &str, json: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answered = answer(runtime.block_on(Client::new(socket).explain(to))).map_err(|error| {
        without_daemon(
            error,
            Some(format!("what a policy says of it takes no daemon: `egress explain --policy P {to}`")),
        )
    })?;
    let explanation = match answered {
        Ok(explanation) => explanation,
        Err(code) => return Ok(code),
    };
    let text = if json {
        format!("{}\n", serde_json::to_string_pretty(&explanation)?)
    } else {
        render(&explanation, Style::detect(&io::stdout()))
    };
    print(&text)?;
    Ok(ExitCode::from(u8::from(!explanation.allowed)))
}

/// The daemon's answer, or the exit code where the question was wrong, which is told.
pub(super) fn answer<T>(answer: Result<T, ClientError>) -> Result<Result<T, ExitCode>, ClientError> {
    match answer {
        Ok(answer) => Ok(Ok(answer)),
        Err(ClientError::Refused { message, hint }) => {
            let hint = hint.map(|hint| format!("help: {hint}\n")).unwrap_or_default();
            let _ = io::stderr().write_all(format!("error: {message}\n{hint}").as_bytes());
            Ok(Err(ExitCode::from(2)))
        }
        Err(error) => Err(error),
    }
}

pub(super) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// The explanation as text.
pub fn render(explanation: &Explanation, style: Style) -> String {
    let verdict = if explanation.allowed { style.paint("allowed", "32") } else { style.paint("denied", "31") };
    let mut text = format!("{}: {verdict}\n", explanation.destination);
    let mut field = |name: &str, value: &str| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {name:<11} {value}");
    };
    for (at, rule) in explanation.rules.iter().enumerate() {
        let ports = rule.ports.join(", ");
        let text = format!("{} ({}): {} {} on {ports}", rule.name, rule.source, rule.action, rule.item);
        field(if at == 0 { "rule" } else { "and rule" }, &text);
        if let Some(why) = &rule.why {
            field("why", why);
        }
    }
    match (&explanation.builtin, explanation.rules.is_empty(), &explanation.rule) {
        (Some(builtin), ..) => field("builtin", builtin),
        (None, true, Some(rule)) => field("rule", rule),
        (None, true, None) => field("reason", &reason(&explanation.reason)),
        (None, false, _) if !explanation.allowed => field("reason", &reason(&explanation.reason)),
        (None, false, _) => {}
    }
    if let Some(name) = &explanation.via_name {
        field("name", name);
    }
    if let Some(resolver) = &explanation.learned_from {
        field("learned", &learned(resolver, explanation.learned_seconds_ago));
    }
    if let Some(left) = explanation.seconds_left {
        field(
            "counts for",
            &format!("{}{}", lasting(left), if explanation.in_grace { " more, in the grace" } else { " more" }),
        );
    }
    // What was said above is not said twice.
    if explanation.addresses.len() > 1 || explanation.via_name.is_none() {
        for listed in &explanation.addresses {
            field("address", &address(listed));
        }
    }
    field("generation", &explanation.generation.to_string());
    if explanation.mode == "audit" {
        field("mode", "audit: everything passes, and this says what enforce would do");
    }
    if let Some(nearest) = &explanation.nearest_rule {
        let place = explanation.nearest.as_ref().map(|nearest| format!(" ({})", nearest.rule.source));
        field("nearest", &format!("{nearest}{}", place.unwrap_or_default()));
    }
    for note in &explanation.notes {
        field("note", note);
    }
    if let Some(hint) = &explanation.hint {
        field("help", hint);
    }
    if let Some(add) = &explanation.add {
        let _ = writeln!(text, "  {add}");
    }
    text
}

/// A reason's stable name, which events have too, and what it says.
fn reason(name: &str) -> String {
    let says = match name {
        "no-rule" => "no rule allows it",
        "no-port" => "no rule allows it on this port",
        "denied" => "a deny rule comes first",
        "expired" => "the answer that gave this address is too old",
        "name-not-allowed" => "the name may not be asked for",
        "untrusted-resolver" => "port 53 passes to trusted resolvers only",
        "protocol" => "no rule can open this protocol",
        _ => return name.to_owned(),
    };
    format!("{name}: {says}")
}

fn address(listed: &ExplainedAddress) -> String {
    let mut text = listed.address.to_string();
    if let Some(name) = &listed.name {
        let _ = write!(text, " of {name}");
    }
    let _ = write!(text, ": {}", if listed.allowed { "allowed" } else { &listed.reason });
    if let Some(resolver) = &listed.learned_from {
        let _ = write!(text, ", learned {}", learned(resolver, listed.learned_seconds_ago));
    }
    if let Some(left) = listed.seconds_left {
        let _ =
            write!(text, ", counts for {} more{}", lasting(left), if listed.in_grace { " in the grace" } else { "" });
    }
    text
}

fn learned(resolver: &str, ago: Option<u64>) -> String {
    match ago {
        Some(ago) => format!("from {resolver} {} ago", lasting(ago)),
        None => format!("from {resolver}"),
    }
}

/// Seconds as a person says them: `45 s`, `12 min`, `3 h 20 min`.
fn lasting(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests;
