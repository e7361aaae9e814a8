//! `egress diff`: two policies, or the one in force and a file, by meaning.

use std::{path::Path, process::ExitCode};

use super::{apply, args::DiffArgs, exit, output, without_daemon};
use crate::{
    api::{ApplyRequest, Client},
    policy::{self, Diff, Loaded, Sources},
};

/// Exit 0 where they mean the same, 1 where not.
pub fn main(args: &DiffArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    let sources =
        |path: &Path| Sources { policies: vec![path.to_owned()], set: args.set.clone(), ..Sources::default() };
    let load = |path: &Path| -> anyhow::Result<Loaded> { Ok(policy::load(&sources(path))?) };
    let first = load(&args.first)?;
    let diff = match &args.second {
        Some(second) => Diff::new(&first.compiled, &load(second)?.compiled),
        None => {
            let texts = apply::texts(&first, &sources(&args.first));
            let request = ApplyRequest { texts, confirm_seconds: None, dry_run: true };
            let answer = apply::ask(Client::new(socket).apply(&request));
            let alone = |error| without_daemon(error, Some("two policies take no daemon: `egress diff A B`"));
            answer.map_err(|error| error.downcast().map_or_else(|other| other, alone))?.diff
        }
    };
    if args.json {
        output::json(&diff)?;
    } else {
        output::print(&diff.to_string());
    }
    Ok(ExitCode::from(if diff.is_empty() { exit::DONE } else { exit::NO }))
}
