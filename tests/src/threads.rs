//! Where the threads of a process are: for what does not end when it should.

use std::fmt::Write as _;
use std::fs;

/// A line for each thread that is left: its name, its state, and where in the kernel it is, as far as `/proc` says.
///
/// A process has ended when the last of its threads has. One in state D cannot be interrupted: after SIGKILL it is the
/// kernel's work that is waited for (a program's verification, a grace period of RCU when a link or map goes).
#[must_use]
pub fn threads(pid: u32) -> String {
    let mut text = String::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let status = read("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map_or("?", str::trim).to_owned()
        };
        let (name, state, pending) = (field("Name:"), field("State:"), field("SigPnd:"));
        let _ = writeln!(text, "{name}: state {state}, pending signals {pending}, waits in {}", read("wchan").trim());
        for frame in read("stack").lines().take(8) {
            let _ = writeln!(text, "    {frame}");
        }
    }
    text
}
