//! `egress completions SHELL`.

use std::process::ExitCode;

use clap::CommandFactory;

use super::{Cli, args::CompletionsArgs, exit, output};

pub fn main(args: CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "egress", &mut script);
    output::print(&String::from_utf8(script)?);
    Ok(ExitCode::from(exit::DONE))
}
