//! `egress apply`: another policy for the running daemon.

mod owners;

use std::{future::Future, path::Path, process::ExitCode};

use super::{Failure, args::ApplyArgs, exit, output};
use crate::{
    api::{ApplyRequest, Changed, Client, ClientError, Texts},
    policy::{self, Loaded, Sources},
};

/// Says what changes, then does it.
pub fn main(args: &ApplyArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    let sources = Sources {
        policies: args.policies.clone(),
        allow: args.allow.clone(),
        set: args.set.clone(),
        ..Sources::default()
    };
    // Here first: errors with positions, in colour, and nothing sent.
    let loaded = policy::load(&sources)?;
    policy::eprint_all(&loaded.warnings, &loaded.files);
    let mut request = ApplyRequest { texts: texts(&loaded, &sources), confirm_seconds: args.confirm, dry_run: true };
    let client = Client::new(socket);
    let mut planned = ask(client.apply(&request))?;
    if let Some(cut) = &mut planned.cut {
        owners::name(cut);
    }
    if args.dry_run {
        tell(&planned, args.json, "nothing was changed (--dry-run)")?;
        return Ok(ExitCode::from(exit::DONE));
    }
    if !args.json {
        output::print(&what_changes(&planned));
    }
    request.dry_run = false;
    let mut changed = ask(client.apply(&request))?;
    changed.cut = planned.cut.take();
    if args.json {
        output::json(&changed)?;
        return Ok(ExitCode::from(exit::DONE));
    }
    for warning in changed.warnings.iter().filter(|warning| !planned.warnings.contains(warning)) {
        output::eprint(&format!("warning: {warning}\n"));
    }
    output::print(&match args.confirm {
        Some(seconds) => format!(
            "in force for {seconds} s as generation {}; `egress confirm` keeps it, else the old policy comes back\n",
            changed.generation
        ),
        None => format!("in force as generation {}\n", changed.generation),
    });
    Ok(ExitCode::from(exit::DONE))
}

/// The text of what was loaded, as the daemon takes it.
pub(super) fn texts(loaded: &Loaded, sources: &Sources) -> Texts {
    Texts {
        files: loaded.files.iter().map(|file| (file.name.clone(), file.text.clone())).collect(),
        allow: sources.allow.clone(),
        set: sources.set.clone(),
    }
}

/// Asks the daemon; its refusals get the exit codes that a person's mistakes have.
pub(super) fn ask(answer: impl Future<Output = Result<Changed, ClientError>>) -> anyhow::Result<Changed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(answer).map_err(|error| match error {
        ClientError::Refused { message, hint } => {
            anyhow::Error::from(Failure { code: exit::WRONG_INPUT, what: message, hint })
        }
        ClientError::Conflict { message, hint } => Failure { code: exit::NO, what: message, hint }.into(),
        error => error.into(),
    })
}

/// What a change did, as text or JSON.
pub(super) fn tell(changed: &Changed, json: bool, end: &str) -> anyhow::Result<()> {
    if json {
        return output::json(changed);
    }
    output::print(&format!("{}{end}\n", what_changes(changed)));
    Ok(())
}

fn what_changes(changed: &Changed) -> String {
    let mut text = changed.diff.to_string();
    if text.is_empty() {
        text.push_str("the same meaning as the policy in force\n");
    }
    for warning in &changed.warnings {
        text.push_str(&format!("warning: {warning}\n"));
    }
    if let Some(cut) = &changed.cut {
        text.push_str(&cut.to_string());
    }
    text
}
