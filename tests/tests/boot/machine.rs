//! A systemd in namespaces of its own, over the node of a world: its cgroup v2 root is a cgroup of the test's.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use egress_tests::{Cgroup, Place, Run, Service, World, daemon, skip};

use crate::PATIENCE;

pub const POLICY: &str = "version: 1
dns: {resolvers: [203.0.113.53]}
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
";
const UNIT: &str = include_str!("../../../deploy/systemd/egress.service");
/// What tests cannot wait for, or must see.
const DROP_IN: &str = "[Service]
WatchdogSec=4
StandardOutput=append:/run/egress.log
StandardError=append:/run/egress.log
";
const FOO: &str = "[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -c \"import socket; socket.create_connection(('198.51.100.77', 7000), 1)\"
";
/// What `systemctl enable` makes of WantedBy=sysinit.target, without what else a sysinit.target starts.
const TARGET: &str = "[Unit]
DefaultDependencies=no
Wants=egress.service
";
const LIMIT: Duration = Duration::from_secs(20);
const SYSTEMD: &str = "/lib/systemd/systemd";

/// A world for the machine; `None`, and said where `cargo xtask test` prints it, without systemd.
pub fn ready(test: &str) -> Option<World> {
    if !Path::new(SYSTEMD).exists() {
        skip(test, &format!("there is no {SYSTEMD} here"));
        return None;
    }
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    Some(world)
}

/// Ends with all its processes when it is dropped.
pub struct Machine {
    unshare: Child,
    first: String,
    place: Place,
    files: std::path::PathBuf,
    _cgroup: Cgroup,
}

impl Machine {
    pub fn boot(world: &World) -> Self {
        let cgroup = Cgroup::new("machine").unwrap();
        let files = world.dir().join("machine");
        fs::create_dir(&files).unwrap();
        let texts = [("egress.service", UNIT), ("test.conf", DROP_IN), ("foo.service", FOO), ("test.target", TARGET)];
        for (name, text) in texts.into_iter().chain([("policy.yaml", POLICY), ("cmdline", "quiet\n")]) {
            fs::write(files.join(name), text).unwrap();
        }
        let mut command = world.node().in_cgroup(&cgroup).command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--cgroup", "--uts", "--ipc"]);
        command.args(["sh", "-c", include_str!("init.sh"), "init"]).arg(daemon::binary().unwrap()).arg(&files);
        command.arg(files.join("cmdline")).stdin(Stdio::null());
        let log = fs::File::create(files.join("log")).unwrap();
        let mut unshare = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let begun = Instant::now();
        let first = loop {
            let first = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            let name = fs::read_to_string(format!("/proc/{first}/comm")).unwrap_or_default();
            if name == "systemd\n" {
                break first;
            }
            let log = || fs::read_to_string(files.join("log")).unwrap_or_default();
            assert!(unshare.try_wait().unwrap().is_none() && begun.elapsed() < PATIENCE, "no systemd: {}", log());
            std::thread::sleep(Duration::from_millis(5));
        };
        Self { unshare, first, place: Place::default(), files, _cgroup: cgroup }
    }

    /// Runs a program in the machine's namespaces, outside its cgroups.
    fn run(&self, args: &[&str]) -> Run {
        let all = [&["--all", "--target", &self.first, "--"], args].concat();
        self.place.run("nsenter", &all, LIMIT).unwrap()
    }

    pub fn sh(&self, script: &str) -> Run {
        self.run(&["sh", "-c", script])
    }

    pub fn systemctl(&self, args: &[&str]) -> Run {
        self.run(&[&["systemctl"], args].concat())
    }

    pub fn egress(&self, args: &[&str]) -> Run {
        self.run(&[&["/usr/bin/egress"], args].concat())
    }

    /// A property of `egress.service`.
    pub fn property(&self, name: &str) -> String {
        self.of("egress.service", name)
    }

    pub fn of(&self, unit: &str, name: &str) -> String {
        self.systemctl(&["show", "--value", "--property", name, unit]).stdout.trim().to_owned()
    }

    pub fn write(&self, path: &str, text: &str) {
        let run = self.run(&["sh", "-c", "printf %s \"$1\" >\"$2\"", "write", text, path]);
        assert!(run.ok(), "{run:?}");
    }

    /// Writes the kernel's command line, as the next start of a service sees it.
    pub fn command_line(&self, text: &str) {
        fs::write(self.files.join("cmdline"), text).unwrap();
    }

    /// What systemd, the set-up and the daemon said.
    pub fn log(&self) -> String {
        let set_up = fs::read_to_string(self.files.join("log")).unwrap_or_default();
        set_up + &self.sh("cat /run/console /run/egress.log").stdout
    }

    pub fn until(&self, what: &str, done: impl Fn() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the machine said:\n{}---", self.log());
        }
        // --kill-child: the first process dies with it, and with that all of the namespace.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}
