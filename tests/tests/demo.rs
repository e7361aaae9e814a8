//! The demo's table proves something: without enforcement the forbidden rows succeed, and a daemon that only claims to
//! enforce fails the demo.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

fn demo(args: &[&str], egress: Option<&std::path::Path>) -> (Output, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args(args);
    if let Some(egress) = egress {
        command.env("EGRESS_BIN", egress);
    }
    let out = command.output().unwrap();
    let text = String::from_utf8(out.stdout.clone()).unwrap();
    (out, text)
}

fn rows(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.ends_with(" yes") || line.ends_with(" NO")).collect()
}

#[test]
fn without_enforcement_every_forbidden_row_succeeds() {
    let (out, text) = demo(&["--without-enforcement"], None);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    let forbidden = text.split_once("-- forbidden").unwrap().1;
    assert!(rows(forbidden).len() >= 30, "{text}");
    assert_eq!(rows(&text).len(), rows(&text).iter().filter(|row| row.ends_with(" yes")).count());
    assert!(text.lines().all(|line| line.chars().count() <= 100), "a line is wider than 100 columns:\n{text}");
    assert!(!text.contains('\x1b'), "colours without a terminal");
}

/// A stand-in for `egress` that claims enforcement and does nothing; its events are what `report` prints.
fn pretender(dir: &std::path::Path, report: &str) -> std::path::PathBuf {
    let fake = dir.join("egress");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = events ] && {{ {report}; exit 0; }}\n[ \"$1\" = run ] || exit 0\n\
         echo enforcement is on\ntrap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n"
    );
    std::fs::write(&fake, script).unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    fake
}

#[test]
fn a_daemon_that_only_claims_to_enforce_fails_the_demo() {
    // The second one reports a fresh drop of everything, each time it is asked.
    let drops = "echo \"{\\\"at\\\":$(date +%s%N),\\\"to\\\":\\\"198.51.100.77 2001:db8:77::77 203.0.113.66\\\"}\"";
    for report in ["true", drops] {
        let dir = tempfile::tempdir().unwrap();
        let (out, text) = demo(&[], Some(&pretender(dir.path(), report)));
        assert_eq!(out.status.code(), Some(1), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
        let (allowed, forbidden) = text.split_once("-- forbidden").unwrap();
        assert!(rows(allowed).iter().all(|row| row.ends_with(" yes")), "{allowed}");
        assert!(rows(forbidden).len() >= 30 && rows(forbidden).iter().all(|row| row.ends_with(" NO")), "{forbidden}");
        assert_eq!(forbidden.contains(" drop "), report == drops, "{forbidden}");
    }
}
