//! `egress explain` without a policy: the daemon says what it does, learned names included.

use std::{
    fmt::Write,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use crate::{
    api::{Client, ClientError, Explanation},
    events::Style,
};

/// Asks the daemon at `socket` about `to`. Exit code 0: allowed, 1: denied, 2: no destination. Not to be called inside
/// a tokio runtime.
pub fn run(socket: &Path, to: &str, json: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let explanation = match runtime.block_on(Client::new(socket).explain(to)) {
        Ok(explanation) => explanation,
        Err(ClientError::Refused { message, hint }) => {
            let hint = hint.map(|hint| format!("help: {hint}\n")).unwrap_or_default();
            let _ = io::stderr().write_all(format!("error: {message}\n{hint}").as_bytes());
            return Ok(ExitCode::from(2));
        }
        Err(error) => return Err(error.into()),
    };
    let text = if json {
        format!("{}\n", serde_json::to_string_pretty(&explanation)?)
    } else {
        render(&explanation, Style::detect(&io::stdout()))
    };
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    Ok(ExitCode::from(u8::from(!explanation.allowed)))
}

/// The explanation as text.
pub fn render(explanation: &Explanation, style: Style) -> String {
    let verdict = if explanation.allowed { style.paint("allowed", "32") } else { style.paint("denied", "31") };
    let mut text = format!("{}: {verdict}\n", explanation.destination);
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<11} {value}");
    };
    match (&explanation.rule, &explanation.builtin) {
        (Some(rule), _) => field("rule", rule),
        (None, Some(builtin)) => field("builtin", builtin),
        (None, None) => field("reason", &explanation.reason),
    }
    if let Some(name) = &explanation.via_name {
        field("name", name);
    }
    if let Some(resolver) = &explanation.learned_from {
        field("learned", &format!("from {resolver}"));
    }
    if let Some(seconds) = explanation.seconds_left {
        field("counts for", &format!("{seconds} s more"));
    }
    field("generation", &explanation.generation.to_string());
    if let Some(nearest) = &explanation.nearest_rule {
        field("nearest", nearest);
    }
    for note in &explanation.notes {
        field("note", note);
    }
    if let Some(hint) = &explanation.hint {
        field("help", hint);
    }
    text
}

#[cfg(test)]
mod tests;
