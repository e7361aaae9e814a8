//! `egress explain` without a policy: asks the daemon.

use std::{path::Path, process::ExitCode};

use super::{Failure, args::ExplainArgs};

pub fn main(_args: ExplainArgs, _socket: &Path) -> anyhow::Result<ExitCode> {
    Err(Failure::machine(
        "this build cannot ask the daemon",
        "name a policy: `egress explain --policy P DEST`",
    )
    .into())
}
