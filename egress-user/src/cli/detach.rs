//! `egress detach`.

use std::{path::Path, process::ExitCode};

use super::{Failure, args::DetachArgs};

pub fn main(_args: DetachArgs, _socket: &Path) -> anyhow::Result<ExitCode> {
    Err(Failure::machine("`egress detach` is not part of this build", "build the whole workspace").into())
}
