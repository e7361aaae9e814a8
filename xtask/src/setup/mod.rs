//! `cargo xtask setup`: what building and testing need, below `target/` where that can be.
//!
//! Two phases run side by side: what the distribution gives (library source, packages) and what is compiled (tools).

mod apt;
mod packages;
mod resolved;
mod rust_src;
mod tools;

use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::ebpf::Compiler;
use crate::place::Place;

pub use apt::Private;
pub use packages::{PACKAGES, installed, is_root};
pub use tools::has_nextest;

#[derive(clap::Args, Default)]
pub struct Options {
    /// What `.ci/run` needs besides: cargo-deny.
    #[arg(long)]
    pub ci: bool,
    /// Only what a build needs: the library source and bpf-linker, no system packages and no test runner.
    #[arg(long, conflicts_with = "ci")]
    pub build_only: bool,
}

impl Options {
    /// What a build needs, no more.
    pub fn building() -> Self {
        Self { build_only: true, ..Self::default() }
    }
}

pub fn run(place: &Place, options: &Options) -> Result<()> {
    let start = Instant::now();
    let compiler = Compiler::detect()?;
    let (system, tools) = thread::scope(|scope| {
        let system = scope.spawn(|| -> Result<bool> {
            let source = step("rust-src", || rust_src::ensure(place, &compiler))?;
            let packages = !options.build_only && step("packages", || packages::ensure(place, PACKAGES))?;
            let resolved = !options.build_only && step("resolved", || resolved::ensure(place))?;
            Ok(source || packages || resolved)
        });
        let tools = scope.spawn(|| tools::ensure(place, options));
        let lost = |_| Err(anyhow!("a setup thread panicked; its message stands above"));
        (system.join().unwrap_or_else(lost), tools.join().unwrap_or_else(lost))
    });
    let changed = match (system, tools) {
        (Ok(system), Ok(tools)) => system || tools,
        // Both are said: repairing one only to hear of the other wastes a run.
        (Err(first), Err(second)) => return Err(anyhow!("{first:#}\nerror: {second:#}")),
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => return Err(error),
    };
    if changed {
        println!("setup: done in {:.1} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// What `cargo xtask vm` needs from the distribution besides.
pub fn emulator(place: &Place) -> Result<()> {
    step("emulator", || packages::ensure(place, packages::VM_PACKAGES)).map(drop)
}

/// What one step found or did.
pub enum Outcome {
    /// It was there already; the text says where or which.
    There(String),
    /// It was installed; the text says how.
    Done(String),
}

/// Runs one step and prints its line with the seconds it took. Says whether it changed anything.
fn step(name: &str, work: impl FnOnce() -> Result<Outcome>) -> Result<bool> {
    let start = Instant::now();
    let outcome = work().map_err(|error| error.context(format!("setup of {name} failed")))?;
    let seconds = start.elapsed().as_secs_f64();
    match &outcome {
        Outcome::There(what) => println!("setup: {name:<11} there      {seconds:6.1} s  {what}"),
        Outcome::Done(what) => println!("setup: {name:<11} installed  {seconds:6.1} s  {what}"),
    }
    Ok(matches!(outcome, Outcome::Done(_)))
}

/// Said before a step that takes long.
pub fn begin(name: &str, what: &str) {
    println!("setup: {name:<11} ...                  {what}");
}
