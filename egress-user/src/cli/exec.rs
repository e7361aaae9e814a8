//! `egress exec`.

use std::process::ExitCode;

use super::{Failure, args::ExecArgs};

pub fn main(_args: ExecArgs) -> anyhow::Result<ExitCode> {
    Err(Failure::machine("`egress exec` is not part of this build", "build the whole workspace").into())
}
