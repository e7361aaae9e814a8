//! `egress explain --packet`: the attached programs' own verdict beside the model's.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use super::{exit, explain_daemon};
use crate::{
    api::{Client, PacketExplanation, PacketQuestion, PacketVerdict},
    events::Style,
};

/// Asks the daemon at `socket`. Exit code 0: it goes on, 1: it is dropped, 2: no packet, 3: kernel and model disagree.
pub fn run(socket: &Path, question: &PacketQuestion, json: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let said = match explain_daemon::answer(runtime.block_on(Client::new(socket).packet(question)))? {
        Ok(said) => said,
        Err(code) => return Ok(code),
    };
    let text = if json {
        format!("{}\n", serde_json::to_string_pretty(&said)?)
    } else {
        render(&said, Style::detect(&io::stdout()))
    };
    explain_daemon::print(&text)?;
    if !said.agree {
        let _ = io::stderr().write_all(DISAGREE.as_bytes());
        return Ok(ExitCode::from(exit::MACHINE));
    }
    Ok(ExitCode::from(if said.goes_on { exit::DONE } else { exit::NO }))
}

const DISAGREE: &str = "error: THE KERNEL AND THE MODEL DISAGREE about this packet: one of them is wrong, and that is a \
                        fault in egress\nhelp: please report it, with this output, that of `egress status --json`, and the policy\n";

/// The answer as text.
fn render(said: &PacketExplanation, style: Style) -> String {
    let verdict = match (said.agree, said.goes_on) {
        (false, _) => style.paint("DISAGREEMENT", "1;31"),
        (true, true) => style.paint("goes on", "32"),
        (true, false) => style.paint("dropped", "31"),
    };
    let mut text = format!("{}: {verdict}\n", said.packet);
    for asked in &said.hooks {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:<11} {}", asked.hook, asked.at);
        let _ = writeln!(text, "    kernel    {}", one(&asked.kernel));
        let model = if asked.agree { "the same".to_owned() } else { style.paint(&one(&asked.model), "1;31") };
        let _ = writeln!(text, "    model     {model}");
    }
    let _ = writeln!(text, "  {:<11} {}", "generation", said.generation);
    if said.mode == "audit" {
        let _ = writeln!(text, "  {:<11} audit: what no rule allows is reported, and goes on", "mode");
    }
    for note in &said.notes {
        let _ = writeln!(text, "  {:<11} {note}", "note");
    }
    text
}

fn one(verdict: &PacketVerdict) -> String {
    let mut text = format!("{}, {}", if verdict.goes_on { "goes on" } else { "dropped" }, verdict.reason);
    if let Some(rule) = &verdict.rule {
        let _ = write!(text, " {} ({}): {} on {}", rule.name, rule.source, rule.item, rule.ports.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::HookVerdict;

    #[test]
    fn a_disagreement_cannot_be_overlooked() {
        let verdict = |goes_on, reason: &str| PacketVerdict { goes_on, reason: reason.to_owned(), rule: None };
        let asked = HookVerdict {
            hook: "uplink".into(),
            at: "eth0".into(),
            kernel: verdict(true, "rule"),
            model: verdict(false, "no-rule"),
            agree: false,
        };
        let said =
            PacketExplanation { packet: "tcp 192.0.2.1:1".into(), hooks: vec![asked], ..PacketExplanation::default() };
        let text = render(&said, Style::default());
        assert!(
            text.contains("DISAGREEMENT") && text.contains("goes on, rule\n    model     dropped, no-rule"),
            "{text}"
        );
    }
}
