//! `egress explain --policy P DEST`: what a policy says about a destination, without a daemon.

use std::{fmt::Write, process::ExitCode};

use serde::Serialize;

use super::{
    Failure,
    args::ExplainArgs,
    exit,
    output::{self, styled},
};
use crate::policy::{self, Compiled, Explanation, Mode, Reason, Via};

/// What `--json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    destination: &'a str,
    allowed: bool,
    mode: Mode,
    /// `builtin`, `allow`, `deny`, `not-asked` or `no-rule`.
    reason: &'static str,
    builtin: Option<&'static str>,
    /// The rules that decide; for `not-asked` those that would let the packet pass.
    rules: Vec<RuleAnswer<'a>>,
    nearest: Option<&'a str>,
    /// Of what no rule allows: the rule that would, as one item of `rules:`.
    add: Option<&'a str>,
    notes: &'a [String],
}

#[derive(Serialize)]
struct RuleAnswer<'a> {
    name: &'a str,
    why: Option<&'a str>,
    item: &'a str,
    ports: Vec<String>,
    file: &'a str,
    line: u32,
}

pub fn main(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let destination =
        args.destination.ok_or_else(|| Failure::input("no destination", "write one: `egress explain DEST`"))?;
    let loaded = policy::load(&args.policy.sources())?;
    let explanation = loaded.compiled.decide(&destination);
    show(&explanation, &loaded.compiled, args.json)?;
    Ok(code(&explanation))
}

/// 0 allowed, 1 denied.
pub fn code(explanation: &Explanation) -> ExitCode {
    ExitCode::from(if explanation.allowed { exit::DONE } else { exit::NO })
}

/// Prints an explanation, by this command or from the daemon.
pub fn show(explanation: &Explanation, compiled: &Compiled, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(&answer(explanation, compiled));
    }
    output::print(&text(explanation, compiled, output::color()));
    Ok(())
}

fn answer<'a>(explanation: &'a Explanation, compiled: &'a Compiled) -> Answer<'a> {
    let (reason, builtin, grants): (_, _, &[u32]) = match &explanation.reason {
        Reason::Builtin { builtin } => ("builtin", Some(*builtin), &[]),
        Reason::Allow { grants, .. } => ("allow", None, grants),
        Reason::Deny { grants } => ("deny", None, grants),
        Reason::NotAsked { grants } => ("not-asked", None, grants),
        Reason::NoRule => ("no-rule", None, &[]),
    };
    Answer {
        destination: &explanation.destination,
        allowed: explanation.allowed,
        mode: compiled.mode,
        reason,
        builtin,
        rules: grants.iter().map(|grant| rule(compiled, *grant)).collect(),
        nearest: explanation.nearest.as_ref().map(|nearest| nearest.text.as_str()),
        add: explanation.add.as_deref(),
        notes: &explanation.notes,
    }
}

fn rule(compiled: &Compiled, grant: u32) -> RuleAnswer<'_> {
    let grant = &compiled.grants[grant as usize];
    let rule = &compiled.rules[grant.rule as usize];
    RuleAnswer {
        name: &rule.name,
        why: rule.why.as_deref(),
        item: &grant.item,
        ports: rule.ports.iter().map(ToString::to_string).collect(),
        file: &rule.source.file,
        line: rule.source.line,
    }
}

fn text(explanation: &Explanation, compiled: &Compiled, color: bool) -> String {
    let verdict = if explanation.allowed { styled("allowed", "1;32", color) } else { styled("denied", "1;31", color) };
    let mut text = format!("{verdict}  {}\n", explanation.destination);
    let mut line = |what: std::fmt::Arguments<'_>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {what}");
    };
    let rules = |grants: &[u32], line: &mut dyn FnMut(std::fmt::Arguments<'_>)| {
        for grant in grants {
            let rule = rule(compiled, *grant);
            let source = &compiled.rules[compiled.grants[*grant as usize].rule as usize].source;
            line(format_args!("by rule `{}` ({source}): `{}` on {}", rule.name, rule.item, rule.ports.join(", ")));
            if let Some(why) = rule.why {
                line(format_args!("  why: {}", why.trim()));
            }
        }
    };
    match &explanation.reason {
        Reason::Builtin { builtin: "dns" } => line(format_args!("by the builtin `dns`: a trusted resolver")),
        Reason::Builtin { builtin } => line(format_args!("by the builtin `{builtin}`")),
        Reason::Allow { grants, via } => {
            rules(grants, &mut line);
            match via {
                Via::Name(name) if !explanation.destination.starts_with(name.as_str()) => {
                    line(format_args!("the address was learned under `{name}`"));
                }
                Via::Name(_) => {}
                Via::Address(address) if explanation.destination.contains(&address.to_string()) => {}
                Via::Address(address) => line(format_args!("by its address {address}")),
                Via::Everything => line(format_args!("whatever the name resolves to")),
            }
        }
        Reason::Deny { grants } => {
            line(format_args!("a deny rule comes first"));
            rules(grants, &mut line);
        }
        Reason::NotAsked { grants } => {
            line(format_args!("no rule allows the name, so it may not be asked for (`dns.queries: allowlisted`)"));
            line(format_args!("to its address the packet would pass:"));
            rules(grants, &mut line);
        }
        Reason::NoRule => line(format_args!("no rule allows it")),
    }
    if let Some(nearest) = &explanation.nearest {
        let source = &compiled.rules[compiled.grants[nearest.grant as usize].rule as usize].source;
        line(format_args!("nearest: {} ({source})", nearest.text));
    }
    for note in &explanation.notes {
        line(format_args!("note: {note}"));
    }
    if compiled.mode == Mode::Audit && !explanation.allowed {
        line(format_args!("note: the mode is audit, so it passes and is reported"));
    }
    if let Some(add) = &explanation.add {
        line(format_args!("add below `rules:`"));
        let _ = writeln!(text, "  {add}");
    }
    text
}
