//! Tests that a machine cannot run: never silently.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Says that `test` could not be run here and why, also in the file that `cargo xtask test` prints (`EGRESS_SKIPS`).
///
/// # Panics
/// When that file cannot be written.
pub fn skip(test: &str, why: &str) {
    eprintln!("skipped: {test}: {why}");
    if let Some(path) = std::env::var_os("EGRESS_SKIPS") {
        let mut file = OpenOptions::new().create(true).append(true).open(path).expect("open the file of skipped tests");
        writeln!(file, "{test}: {why}").expect("write the file of skipped tests");
    }
}

/// The kernel's version: major and minor.
///
/// # Panics
/// When the kernel does not say.
#[must_use]
pub fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("read the kernel's release");
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Whether the kernel calls BPF LSM programs; unmounted securityfs counts as no, as it does to the daemon's warning.
#[must_use]
pub fn bpf_lsm() -> bool {
    std::fs::read_to_string("/sys/kernel/security/lsm")
        .is_ok_and(|active| active.split(',').any(|name| name.trim() == "bpf"))
}

/// Whether the uplinks are attached by tcx; where not, says that `test`, or `what` of it, was skipped.
#[must_use]
pub fn has_tcx(test: &str, what: &str) -> bool {
    let there = kernel() >= (6, 6);
    if !there {
        skip(test, &format!("{what}: this kernel is older than 6.6 and has no tcx"));
    }
    there
}

/// Whether this is `cargo xtask vm`'s machine, which has nobody else on it.
#[must_use]
pub fn in_vm() -> bool {
    std::env::var_os("EGRESS_VM").is_some()
}
