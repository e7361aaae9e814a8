//! `egress man --out DIR`: a manual page for `egress` and one for each command.

use std::{fs, process::ExitCode};

use clap::CommandFactory;

use super::{Cli, Failure, args::ManArgs, exit, output};

pub fn main(args: ManArgs) -> anyhow::Result<ExitCode> {
    fs::create_dir_all(&args.out).and_then(|()| clap_mangen::generate_to(Cli::command(), &args.out)).map_err(
        |error| {
            let what = format!("cannot write the pages to {}: {error}", args.out.display());
            Failure::input(what, "name a directory that you may write, with `--out`")
        },
    )?;
    let pages = Cli::command().get_subcommands().count() + 1;
    output::print(&format!(
        "{} in {}: read one with `man -l {}/egress.1`\n",
        output::count(pages, "page"),
        args.out.display(),
        args.out.display()
    ));
    Ok(ExitCode::from(exit::DONE))
}
