//! `egress status`.

use std::{path::Path, process::ExitCode};

use super::{Failure, args::StatusArgs};

pub fn main(_args: StatusArgs, _socket: &Path) -> anyhow::Result<ExitCode> {
    Err(Failure::machine("`egress status` is not part of this build", "build the whole workspace").into())
}
