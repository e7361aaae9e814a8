//! The project's own commands, `cargo xtask COMMAND`: one module each.

mod bench;
mod build;
mod doctor;
mod ebpf;
mod fuzz;
mod harness;
mod lint;
mod package;
mod place;
mod run;
mod setup;
mod test;
mod upgrade;
mod vm;

use std::process::ExitCode;

use clap::Parser;

use crate::place::Place;

/// Egress' own build commands.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Xtask {
    /// Install what is missing, below target/ where that can be; safe to repeat.
    Setup(setup::Options),
    /// List what this machine has and lacks, each with its remedy.
    Doctor,
    /// Build the `egress` binary, the eBPF object in it.
    Build(build::Options),
    /// Set up, build and run every test; needs root.
    Test(test::Options),
    /// Measure what Egress costs; needs root.
    Bench(bench::Options),
    /// Fuzz the parsers, guided by coverage.
    Fuzz(fuzz::Options),
    /// Run clippy on the workspace and on the eBPF programs; a warning is an error.
    Lint,
    /// Set up, build and run the demo; needs root.
    Demo(harness::Options),
    /// Run kernel tests, or a command, in a virtual machine with another kernel; needs root to install the emulator.
    Vm(vm::Options),
    /// Break the daemon and what it needs, under traffic, and count what gets out; needs root, takes up to ten minutes.
    Chaos(harness::Options),
    /// Make a Debian package, target/package/egress_VERSION_ARCH.deb.
    Package(package::Options),
    /// Let earlier builds give way to this one and back, under traffic; needs root, and the repository's history.
    Upgrade(upgrade::Options),
}

fn main() -> ExitCode {
    let place = match Place::find() {
        Ok(place) => place,
        Err(error) => return fail(&error),
    };
    let done = match Xtask::parse() {
        Xtask::Setup(options) => setup::run(&place, &options).map(|()| true),
        Xtask::Doctor => doctor::run(&place),
        Xtask::Build(options) => build::run(&place, &options).map(|()| true),
        Xtask::Test(options) => test::run(&place, &options),
        Xtask::Bench(options) => bench::run(&place, &options),
        Xtask::Fuzz(options) => fuzz::run(&place, &options),
        Xtask::Lint => lint::run(&place).map(|()| true),
        Xtask::Demo(options) => harness::run(&place, "demo", &options),
        Xtask::Vm(options) => vm::run(&place, &options),
        Xtask::Chaos(options) => harness::run(&place, "chaos", &options),
        Xtask::Package(options) => package::run(&place, &options).map(|()| true),
        Xtask::Upgrade(options) => upgrade::run(&place, &options),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
