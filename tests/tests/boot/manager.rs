//! What `egress run` says to a service manager, and when it is told not to enforce: without systemd.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use egress_tests::mntns::BPFFS;
use egress_tests::probe::tcp;
use egress_tests::{Cgroup, Daemon, Service, World};

const POLICY: &str = "version: 1\nrules:\n  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}\n";
const DENIED: &str = "198.51.100.77:7000";
const LIMIT: Duration = Duration::from_secs(20);

/// P2: READY=1 is said when enforcement is on and not before, then WATCHDOG=1 at least once in each interval that the
/// manager gives; a daemon that hangs says nothing.
#[test]
fn ready_is_said_when_enforcement_is_on_and_the_watchdog_while_it_works() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let path = world.dir().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
    let daemon = builder.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "3000000").spawn().unwrap();
    let receive = || {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("a message of the daemon's");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert!(receive().contains("READY=1"));
    let inside = world.node().in_cgroup(&cgroup);
    assert!(tcp(&inside, DENIED).unwrap().refused(), "ready, and in force");
    let begun = Instant::now();
    let mut beats = 0;
    while beats < 4 {
        beats += u32::from(receive().contains("WATCHDOG=1"));
    }
    assert!(begun.elapsed() < Duration::from_secs(12), "4 beats in {:?}", begun.elapsed());
    daemon.signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
    socket.set_nonblocking(true).unwrap();
    while socket.recv(&mut [0; 4096]).is_ok() {}
    std::thread::sleep(Duration::from_millis(2500));
    assert!(socket.recv(&mut [0; 4096]).is_err(), "a stopped daemon says nothing");
    assert!(tcp(&inside, DENIED).unwrap().refused(), "hung, and in force");
}

/// P8: `egress=off` on the kernel's command line, and `/etc/egress/disabled`: `run` ends with 1, says who said so, to the
/// service manager too (it is no failed start: what requires the unit comes up), and what was in force is removed.
#[test]
fn a_disabled_boot_removes_what_is_in_force_and_ends_with_1() {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let inside = world.node().in_cgroup(&cgroup);
    let sh = |script: &str| {
        let run = world.node().run("sh", &["-ec", script], LIMIT).unwrap();
        assert!(run.ok(), "{script}: {run:?}");
    };
    let start = || Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
    let dir = world.dir().display();
    let notify = world.dir().join("notify");
    let socket = UnixDatagram::bind(&notify).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let ways = [
        (format!("echo quiet egress=off >{dir}/cmdline; mount --bind {dir}/cmdline /proc/cmdline"), "umount /proc/cmdline", "egress=off"),
        ("mkdir /run/etc /run/work; mount -t overlay none -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/work /etc; mkdir -p /etc/egress; : >/etc/egress/disabled".to_owned(), "umount /etc", "/etc/egress/disabled"),
    ];
    for (off, on, says) in ways {
        start().start().unwrap().crash().unwrap();
        assert!(tcp(&inside, DENIED).unwrap().refused());
        sh(&off);
        let run = start().env("NOTIFY_SOCKET", &notify).run_to_end(LIMIT).unwrap();
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).expect("a message to the manager");
        let told = String::from_utf8_lossy(&buffer[..length]);
        assert!(told.contains("READY=1") && told.contains("STATUS=enforcement is off"), "{told}");
        assert_eq!(run.code(), Some(1), "{run:?}");
        assert!(run.stderr.contains("ENFORCEMENT IS OFF") && run.stderr.contains(says), "{run:?}");
        assert!((0..5).any(|_| tcp(&inside, DENIED).unwrap().echoed), "{says}: nothing is in force");
        sh(&format!("test ! -e {BPFFS}/egress; {on}"));
    }
}
