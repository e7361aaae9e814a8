//! What a user who is not root is told. P9 in part: nothing is changed, and nothing false is said.

use std::{
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Output},
};

use egress_tests::daemon;

const NOBODY: u32 = 65534;

/// Runs `egress ARGS` as nobody, from a copy that nobody can reach.
fn as_nobody(args: &[&str]) -> Output {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).expect("open the directory");
    let copy = dir.path().join("egress");
    std::fs::copy(daemon::binary().expect("the binary"), &copy).expect("copy the binary");
    Command::new(&copy)
        .args(args)
        .env("EGRESS_SOCKET", dir.path().join("socket"))
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .output()
        .expect("runs")
}

/// Exit code 3, what is missing, and what to do.
#[test]
fn without_root_each_command_says_so_and_ends_with_3() {
    for args in [
        &["detach"][..],
        &["exec", "--policy", "deny-all", "--resolver", "127.0.0.1", "--", "true"],
        &["run", "--policy", "deny-all", "--resolver", "127.0.0.1"],
    ] {
        let output = as_nobody(args);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{args:?}: {text}");
        assert!(text.contains("run it as root"), "{args:?}: {text}");
    }
}
