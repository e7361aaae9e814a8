//! `egress confirm`: keeps the policy on trial.

use std::{path::Path, process::ExitCode};

use super::{apply, args::ChangeArgs, exit, output};
use crate::api::Client;

/// Exit 1 where no policy waits for it.
pub fn main(args: &ChangeArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    let changed = apply::ask(Client::new(socket).confirm())?;
    if args.json {
        output::json(&changed)?;
    } else {
        for warning in &changed.warnings {
            output::eprint(&format!("warning: {warning}\n"));
        }
        output::print(&format!("generation {} stays in force\n", changed.generation));
    }
    Ok(ExitCode::from(exit::DONE))
}
