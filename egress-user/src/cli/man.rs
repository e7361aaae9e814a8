//! `egress man --out DIR`: a manual page for `egress` and one for each command.

use std::{fs, process::ExitCode};

use anyhow::Context as _;
use clap::CommandFactory;

use super::{Cli, args::ManArgs, exit, output};

pub fn main(args: ManArgs) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&args.out).with_context(|| format!("make the directory {}", args.out.display()))?;
    clap_mangen::generate_to(Cli::command(), &args.out)
        .with_context(|| format!("write the pages to {}", args.out.display()))?;
    let pages = Cli::command().get_subcommands().count() + 1;
    output::print(&format!(
        "{} in {}: read one with `man -l {}/egress.1`\n",
        output::count(pages, "page"),
        args.out.display(),
        args.out.display()
    ));
    Ok(ExitCode::from(exit::DONE))
}
