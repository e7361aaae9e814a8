//! The operator's word that nothing is to be enforced: for one boot, or until it is taken back.

use std::{fs, path::Path};

/// Disables enforcement as long as it is there.
pub const FILE: &str = "/etc/egress/disabled";
/// Disables enforcement for one boot, on the kernel's command line.
const OPTION: &str = "egress=off";

/// Who said that enforcement is off, if somebody did.
pub fn by_whom() -> Option<String> {
    said(Path::new(FILE), Path::new("/proc/cmdline"))
}

fn said(file: &Path, command_line: &Path) -> Option<String> {
    if file.exists() {
        return Some(format!("the file {} is there; remove it to enforce again", file.display()));
    }
    let booted = fs::read_to_string(command_line).unwrap_or_default();
    let off = booted.split_ascii_whitespace().any(|word| word == OPTION);
    off.then(|| format!("the machine was booted with `{OPTION}`; boot without it to enforce again"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_and_the_boot_option_disable_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (file, line) = (dir.path().join("disabled"), dir.path().join("cmdline"));
        assert_eq!(said(&file, &line), None);
        fs::write(&line, "root=/dev/sda1 noegress=off egress=offline quiet\n").unwrap();
        assert_eq!(said(&file, &line), None);
        fs::write(&line, "root=/dev/sda1 egress=off quiet\n").unwrap();
        assert!(said(&file, &line).unwrap().contains("egress=off"));
        fs::write(&line, "").unwrap();
        fs::write(&file, "").unwrap();
        assert!(said(&file, &line).unwrap().contains("disabled"));
    }
}
