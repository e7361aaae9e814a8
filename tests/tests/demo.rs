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
    text.lines()
        .filter(|line| line.ends_with(" yes") || line.ends_with(" NO"))
        .collect()
}

#[test]
fn without_enforcement_every_forbidden_row_succeeds() {
    let (out, text) = demo(&["--without-enforcement"], None);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    let forbidden = text.split_once("-- forbidden").unwrap().1;
    assert!(rows(forbidden).len() >= 30, "{text}");
    assert_eq!(
        rows(&text).len(),
        rows(&text).iter().filter(|row| row.ends_with(" yes")).count()
    );
    assert!(
        text.lines().all(|line| line.chars().count() <= 100),
        "a line is wider than 100 columns:\n{text}"
    );
    assert!(!text.contains('\x1b'), "colours without a terminal");
}

#[test]
fn a_daemon_that_does_nothing_fails_the_demo() {
    let dir = tempfile::tempdir().unwrap();
    let fake = dir.path().join("egress");
    let script = "#!/bin/sh\n[ \"$1\" = run ] || exit 0\necho enforcement is on\ntrap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n";
    std::fs::write(&fake, script).unwrap();
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).unwrap();
    let (out, text) = demo(&[], Some(&fake));
    assert_eq!(
        out.status.code(),
        Some(1),
        "{text}\n{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let (allowed, forbidden) = text.split_once("-- forbidden").unwrap();
    assert!(rows(allowed).iter().all(|row| row.ends_with(" yes")), "{allowed}");
    assert!(
        rows(forbidden).len() >= 30 && rows(forbidden).iter().all(|row| row.ends_with(" NO")),
        "{forbidden}"
    );
}
