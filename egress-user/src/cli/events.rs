//! `egress events`.

use std::{path::Path, process::ExitCode};

use super::{Failure, args::EventsArgs};

pub fn main(_args: EventsArgs, _socket: &Path) -> anyhow::Result<ExitCode> {
    Err(Failure::machine("`egress events` is not part of this build", "build the whole workspace").into())
}
