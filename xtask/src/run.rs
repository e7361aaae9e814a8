//! Running other programs, with errors that say which and why.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::ebpf;
use crate::place::Place;

/// `cargo` in the workspace, our tools on its path.
pub fn cargo(place: &Place) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(&place.workspace)
        .env("PATH", ebpf::path_with_tools(&place.target))
        .env("CARGO_TARGET_DIR", &place.target)
        // Said by the cargo that runs xtask, of xtask; a child that finds them rebuilds what tracks them.
        .env_remove("CARGO_MANIFEST_DIR")
        .env_remove("CARGO_MANIFEST_PATH")
        .env_remove("CARGO_PKG_NAME");
    command
}

/// The call as a person would type it.
fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs it to its end on this terminal; says whether it ended well.
pub fn status(command: &mut Command) -> Result<bool> {
    let status = command.status().with_context(|| format!("cannot run `{}`", show(command)))?;
    Ok(status.success())
}

/// Runs it to its end on this terminal; anything but success is an error.
pub fn check(command: &mut Command) -> Result<()> {
    if !status(command)? {
        bail!("`{}` failed; what it said stands above", show(command));
    }
    Ok(())
}

/// Its standard output, its standard error thrown away; `None` when it cannot run or fails.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs it with its output in the file `log`, which an error quotes the end of.
pub fn logged(command: &mut Command, log: &Path) -> Result<()> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    let file = File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("open {}", log.display()))?;
    let call = show(command);
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .status()
        .with_context(|| format!("cannot run `{call}`"))?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let end = lines[lines.len().saturating_sub(15)..].join("\n    ");
    bail!("`{call}` failed; all it said is in {}, it ends:\n    {end}", log.display())
}
