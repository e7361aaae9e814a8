//! `egress rollback`: ends the policy on trial, or goes back to the one before the last change.

use std::{path::Path, process::ExitCode};

use super::{apply, args::ChangeArgs, exit};
use crate::api::Client;

/// Exit 1 where there is nothing to go back to.
pub fn main(args: &ChangeArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    let changed = apply::ask(Client::new(socket).roll_back())?;
    let end = format!("the policy before is in force again, as generation {}", changed.generation);
    apply::tell(&changed, args.json, &end)?;
    Ok(ExitCode::from(exit::DONE))
}
