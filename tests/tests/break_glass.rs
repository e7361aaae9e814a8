//! P8: the ways back in that `docs/operations.md` names, with the commands it has.

use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use egress_tests::daemon::{binary, patient};
use egress_tests::mntns::BPFFS;
use egress_tests::probe::tcp;
use egress_tests::skip::has_tcx;
use egress_tests::{Governed, Place, Service, World};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
";
const DENIED: &str = "198.51.100.77:7000";

fn governed() -> Governed {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let test = Governed::over(world, POLICY).unwrap();
    assert!(tcp(&test.inside, DENIED).unwrap().refused());
    test
}

fn sh(place: &Place, script: &str) {
    let run = place.run("sh", &["-ec", script], patient(Duration::from_secs(5))).unwrap();
    assert!(run.ok(), "{script}: {run:?}");
}

/// The kernel lets go of a link whose last holder is gone in a work item, a moment later.
fn assert_open(test: &Governed, when: &str) {
    for (place, which) in [(&test.inside, "inside"), (&test.beside, "beside")] {
        let until = Instant::now() + patient(Duration::from_secs(5));
        let open = std::iter::repeat_with(|| tcp(place, DENIED).unwrap().echoed)
            .take_while(|open| *open || Instant::now() < until)
            .any(|open| open);
        assert!(open, "{when}: {which}");
    }
}

/// P8: with the daemon ended, `rm -r` of the pins is enough. Where there is no tcx it leaves the uplinks' filters, as operations.md says.
#[test]
fn rm_of_the_pins_opens_the_way() {
    if !has_tcx("rm_of_the_pins_opens_the_way", "the whole test") {
        return;
    }
    let mut test = governed();
    test.daemon.kill().unwrap();
    assert!(tcp(&test.inside, DENIED).unwrap().refused(), "enforcement outlives the daemon");
    sh(&test.beside, &format!("rm -r {BPFFS}/egress"));
    assert_open(&test, "after rm -r");
}

/// P8: `detach` beside a daemon that runs, with pins of a version that nobody knows, half of them gone, and what others
/// left in the directory.
#[test]
fn detach_needs_no_sound_state() {
    let test = governed();
    let root = format!("{BPFFS}/egress");
    sh(
        &test.beside,
        &format!(
            "cd {root}; for dir in v*; do mv $dir v999; done
             mkdir v999/links/0-foreign v999/other; mv v999/maps/LIVE v999/links/1-a-map; rm v999/maps/CONFIG"
        ),
    );
    let run = test.daemon.detach().unwrap();
    assert!(run.ok(), "{run:?}");
    assert_open(&test, "after detach");
    sh(&test.beside, &format!("test ! -e {root}"));
}

/// `detach` removes what is in bpffs alone: not a directory that `EGRESS_BPFFS` names by mistake, nor what a symbolic link leads to.
#[test]
fn detach_leaves_files_that_are_not_its_own() {
    let test = governed();
    let dir = test.world.dir().join("precious");
    let file = dir.join("egress/v1/links/file");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "").unwrap();
    sh(&test.beside, &format!("ln -s {} {BPFFS}/egress/elsewhere", dir.display()));
    let run = test.daemon.detach().unwrap();
    assert!(file.exists(), "what a link leads to: {run:?}");
    assert!(run.ok(), "{run:?}");
    sh(&test.beside, &format!("test ! -e {BPFFS}/egress"));
    let script = format!("EGRESS_BPFFS={} {} detach", dir.display(), binary().unwrap().display());
    let run = test.beside.run("sh", &["-c", &script], patient(Duration::from_secs(5))).unwrap();
    assert!(file.exists(), "another directory: {run:?}");
    assert_eq!(run.code(), Some(3), "{run:?}");
    assert!(run.stderr.contains("in no bpffs"), "{run:?}");
}

/// `detach` removes a socket that a killed daemon left, and nothing else that `--socket` names.
#[test]
fn detach_removes_no_file_that_is_no_socket() {
    let mut test = governed();
    let file = test.world.dir().join("policy.yaml");
    std::fs::write(&file, POLICY).unwrap();
    let detach = |socket: &Path| {
        let script = format!("{} detach --socket {}", binary().unwrap().display(), socket.display());
        test.beside.run("sh", &["-c", &script], patient(Duration::from_secs(5))).unwrap()
    };
    let run = detach(&file);
    assert!(run.ok() && file.exists(), "{run:?}");
    assert!(!run.stdout.contains("policy.yaml"), "{run:?}");
    let socket = test.daemon.socket().to_owned();
    let run = detach(&socket);
    assert!(run.ok() && socket.exists(), "of a daemon that runs: {run:?}");
    test.daemon.kill().unwrap();
    let run = detach(&socket);
    assert!(run.stdout.contains("socket ") && !socket.exists(), "of one that was killed: {run:?}");
}

/// P8: a daemon that hangs, and whose socket takes no more connections, keeps nobody from `detach`.
#[test]
fn detach_waits_for_no_daemon_that_hangs() {
    let test = governed();
    test.daemon.signal(Signal::SIGSTOP).unwrap();
    let status = format!("/proc/{}/status", test.daemon.pid());
    while !std::fs::read_to_string(&status).unwrap().contains("State:\tT") {
        std::thread::sleep(Duration::from_millis(2));
    }
    let address = UnixAddr::new(test.daemon.socket()).unwrap();
    let mut waiting = Vec::new();
    loop {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        match connect(client.as_raw_fd(), &address) {
            Ok(()) => waiting.push(client),
            Err(errno) => break assert_eq!(errno, Errno::EAGAIN, "after {} connections", waiting.len()),
        }
    }
    let run = test.daemon.detach().unwrap();
    assert!(run.ok() && run.stdout.contains("nothing is enforced any more"), "{run:?}");
    assert_open(&test, "after detach");
    test.daemon.signal(Signal::SIGCONT).unwrap();
}
