//! `egress run`.

use std::{path::Path, process::ExitCode};

use super::{Failure, args::RunArgs};

pub fn main(_args: RunArgs, _socket: &Path) -> anyhow::Result<ExitCode> {
    Err(Failure::machine("`egress run` is not part of this build", "build the whole workspace").into())
}
