//! The machine fails around the daemon: pins, bpffs, descriptors, memory, clock. Nothing forbidden arrives in the world, what is
//! allowed goes on, and the next start, or the end of the trouble, makes it whole (P2, P6).

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use egress_ebpf::abi::{AddressEntry, AddressKey4, Slot};
use egress_tests::held::{FLOOD, python};
use egress_tests::mntns::BPFFS;
use egress_tests::probe::tcp;
use egress_tests::{Cgroup, Daemon, Governed, Held, Place, Service, World, learned};
use egress_user::datapath::{Pins, Table, boot_ticks, sys};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(10);
const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: wild, to: ['*.wild.example.com'], ports: [7000/tcp]}
";
const MORE: &str = "  - {name: more, to: [203.0.113.12], ports: [7000/tcp]}\n";
const DENIED: &str = "198.51.100.77:7000";
const PUMP: &str = "import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
 try: s.sendto(b'leak', ('198.51.100.77', 7000))
 except OSError: pass
 time.sleep(0.001)
";

fn world() -> World {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.dns.set_text("*.wild.example.com", 60, &["203.0.113.30"]);
    world
}

/// A governed world in which something forbidden is sent all the time, from the cgroup and from beside it.
struct Scene {
    test: Governed,
    held: Held,
    pumps: Vec<Child>,
}

impl Scene {
    fn new() -> Self {
        Self::over(Governed::over(world(), POLICY).unwrap())
    }

    fn over(test: Governed) -> Self {
        let held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
        let pump = |place: &Place| place.command(python()).args(["-c", PUMP]).stdin(Stdio::null()).spawn().unwrap();
        let pumps = vec![pump(&test.inside), pump(&test.beside)];
        Self { test, held, pumps }
    }

    /// What must hold at any time: the pumps run, nothing of theirs arrived, and what is allowed passes.
    #[track_caller]
    fn assert_holds(&mut self, when: &str) {
        assert_eq!(self.held.say("still").unwrap(), "echo", "{when}");
        assert!(tcp(&self.test.inside, "203.0.113.10:7000").unwrap().echoed, "{when}");
        self.assert_closed(when);
    }

    #[track_caller]
    fn assert_closed(&mut self, when: &str) {
        assert!(tcp(&self.test.inside, DENIED).unwrap().refused(), "{when}");
        assert!(!tcp(&self.test.beside, DENIED).unwrap().echoed, "{when}");
        assert!(self.pumps.iter_mut().all(|pump| pump.try_wait().unwrap().is_none()), "{when}: a pump ended");
        let denied: SocketAddr = DENIED.parse().unwrap();
        self.test.world.sniffer.assert_none(when, |frame| frame.destination == Some(denied.ip()));
    }

    fn policy_file(&self, name: &str, text: &str) -> String {
        let path = self.test.world.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    fn sh(&self, script: &str) {
        let run = self.test.beside.run("sh", &["-ec", script], LIMIT).unwrap();
        assert!(run.ok(), "{script}: {run:?}");
    }

    fn state(&self) -> Value {
        let path = self.test.world.dir().join("state/policy.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn set_state(&self, state: &Value) {
        std::fs::write(self.test.world.dir().join("state/policy.json"), state.to_string()).unwrap();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.pumps.iter_mut().for_each(|pump| drop((pump.kill(), pump.wait())));
    }
}

/// P2: pins that are gone, of another kind, of another shape, or somebody else's: the next start makes new ones behind the
/// programs that are in force.
#[test]
fn corrupt_pins_are_made_anew_without_a_gap() {
    let mut scene = Scene::new();
    for script in [
        "rm maps/LIVE; mkdir maps/LIVE maps/LIVE/below",
        "rm maps/CONFIG",
        "rm maps/ADDRESSES_4",
        "rm maps/ADDRESSES_4; mv maps/FLOWS maps/ADDRESSES_4",
        "rm maps/NAMES; mv links/cgroup-*-connect6 maps/NAMES",
        "mkdir links/0-foreign links/0-foreign/below",
        "mv maps/PENDING links/1-a-map",
        "for pin in links/cgroup-*-sendmsg4; do rm $pin; mkdir $pin; done",
        "rm -r maps",
    ] {
        scene.test.daemon.kill().unwrap();
        scene.sh(&format!("cd {BPFFS}/egress/v*; {script}"));
        scene.assert_closed(script);
        scene.test.restart().unwrap_or_else(|error| panic!("{script}: {error:#}"));
        let status = scene.test.daemon.status().unwrap();
        assert_eq!(status["health"]["healthy"], true, "{script}: {}", status["health"]);
        scene.assert_holds(script);
    }
}

/// P2: with bpffs unmounted under it the daemon keeps in force what it holds, and says that this ends with it; the next one
/// mounts bpffs anew.
#[test]
fn bpffs_unmounted_under_the_daemon_is_told() {
    let mut scene = Scene::new();
    scene.sh(&format!("umount -l {BPFFS}"));
    scene.assert_holds("unmounted");
    let status = scene.test.daemon.status().unwrap();
    assert!(status["health"]["problems"].to_string().contains("pins in bpffs are gone"), "{}", status["health"]);
    let more = scene.policy_file("more.yaml", &format!("{POLICY}{MORE}"));
    assert!(scene.test.daemon.egress(&["apply", &more]).unwrap().ok());
    assert!(tcp(&scene.test.inside, "203.0.113.12:7000").unwrap().echoed, "its policy is changed all the same");
    scene.assert_holds("another policy");
    // From here until the next one's start nothing is in force.
    scene.pumps.iter_mut().for_each(|pump| drop((pump.kill(), pump.wait())));
    scene.test.daemon.stop().unwrap();
    scene.test.restart().unwrap();
    assert_eq!(scene.test.daemon.status().unwrap()["health"]["healthy"], true);
    assert!(tcp(&scene.test.inside, DENIED).unwrap().refused());
    assert!(!tcp(&scene.test.beside, DENIED).unwrap().echoed);
}

/// P6: with no descriptor left the daemon answers nobody, and goes on when there are some again.
#[test]
fn without_descriptors_enforcement_goes_on() {
    let mut scene = Scene::new();
    let pid = scene.test.daemon.pid();
    let limit = |number: usize| {
        let run = Command::new("prlimit").arg(format!("--pid={pid}")).arg(format!("--nofile={number}:")).status();
        assert!(run.unwrap().success());
    };
    limit(std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count());
    let clients: Vec<_> = (0..40).map(|_| UnixStream::connect(scene.test.daemon.socket())).collect();
    let mut client = UnixStream::connect(scene.test.daemon.socket()).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    client.write_all(b"GET /v1/status HTTP/1.1\r\nhost: egress\r\n\r\n").unwrap();
    assert!(client.read(&mut [0; 100]).is_err(), "nobody is answered");
    scene.test.write_policy(&format!("{POLICY}{MORE}")).unwrap();
    scene.test.daemon.signal(Signal::SIGHUP).unwrap();
    assert!(scene.test.inside.run("getent", &["ahosts", "some.wild.example.com"], LIMIT).unwrap().ok());
    assert!(tcp(&scene.test.inside, "203.0.113.30:7000").unwrap().echoed, "names are learned");
    scene.assert_holds("without descriptors");
    let output = scene.test.daemon.output();
    assert_eq!(output.matches("cannot accept a connection").count(), 1, "{output}");
    drop((client, clients));
    limit(1024);
    let start = Instant::now();
    while !scene.test.daemon.egress(&["status"]).unwrap().ok() {
        assert!(start.elapsed() < LIMIT, "{}", scene.test.daemon.output());
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.test.daemon.signal(Signal::SIGHUP).unwrap();
    scene.test.status_until(|status| status["rules"][2]["name"] == "more").unwrap();
    scene.assert_holds("with descriptors again");
}

/// A cgroup with a limit of memory, of version 2 or 1, whichever has the controller. Removed when dropped.
struct Memory(std::path::PathBuf);

impl Memory {
    fn new(bytes: u64) -> Self {
        let name = egress_tests::netns::unique_name("memory");
        let v1 = std::path::Path::new("/sys/fs/cgroup/memory");
        if v1.join("memory.limit_in_bytes").exists() {
            let path = v1.join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::write(path.join("memory.limit_in_bytes"), bytes.to_string()).unwrap();
            return Self(path);
        }
        let root = egress_tests::cgroup::mount_point().unwrap();
        std::fs::write(root.join("cgroup.subtree_control"), "+memory").expect("cgroup v2 has the memory controller");
        let path = root.join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("memory.max"), bytes.to_string()).unwrap();
        let _ = std::fs::write(path.join("memory.swap.max"), "0");
        Self(path)
    }

    fn add(&self, pid: u32) {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// P2: the daemon outgrows its limit of memory and is killed by the kernel: enforcement goes on, and the next one takes it up.
#[test]
fn killed_for_want_of_memory_nothing_opens() {
    let mut scene = Scene::new();
    let links = |scene: &Scene| -> Vec<Value> {
        let status = scene.test.daemon.status().unwrap();
        status["attach_points"].as_array().unwrap().iter().map(|point| point["link_id"].clone()).collect()
    };
    let before = links(&scene);
    let memory = Memory::new(8 << 20);
    memory.add(scene.test.daemon.pid());
    let names: String = (0..60_000).map(|n| format!("      - n{n}.example.com\n")).collect();
    let huge =
        scene.policy_file("huge.yaml", &format!("{POLICY}  - name: huge\n    ports: [443/tcp]\n    to:\n{names}"));
    let run = scene.test.daemon.egress(&["apply", &huge]).unwrap();
    assert!(!run.ok(), "the daemon was to be killed: {run:?}");
    let ended = scene.test.daemon.kill().unwrap();
    assert!(!ended.success());
    scene.assert_holds("killed");
    scene.test.restart().unwrap();
    assert_eq!(links(&scene), before, "what is pinned is taken up");
    assert!(scene.test.daemon.status().unwrap()["rules"][2].is_null());
    scene.assert_holds("after the restart");
}

/// P8: a policy on trial goes by its deadline, neither sooner nor later, while the wall clock steps ten years on and back.
#[test]
fn steps_of_the_clock_move_no_deadline() {
    let (world, cgroup) = (world(), Cgroup::new("clock").unwrap());
    let clock = world.dir().join("clock");
    std::fs::write(&clock, "+0").unwrap();
    let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";
    let library = ["/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1", library]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .expect("libfaketime is installed: `cargo xtask setup`");
    let daemon = Daemon::builder(&world)
        .policy_text(POLICY)
        .cgroup(&cgroup)
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_NO_CACHE", "1")
        .start()
        .unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let mut scene = Scene::over(Governed { daemon, inside, beside, cgroup, world });
    let more = scene.policy_file("more.yaml", &format!("{POLICY}{MORE}"));
    let opened = |scene: &Scene| tcp(&scene.test.inside, "203.0.113.12:7000").unwrap().echoed;
    for (step, year) in [("+3650d", "203"), ("-3650d", "201")] {
        let run = scene.test.daemon.egress(&["apply", &more, "--confirm", "4s"]).unwrap();
        assert!(run.ok(), "{run:?}");
        let asked = Instant::now();
        std::fs::write(&clock, step).unwrap();
        let event = scene.test.event(|event| event["time"].as_str().is_some_and(|time| time.starts_with(year)));
        assert!(event.unwrap().is_some(), "the clock was to step by {step}");
        assert!(opened(&scene) && asked.elapsed() < Duration::from_secs(4), "{step}: it went too soon");
        let left = scene.test.daemon.status().unwrap()["policy"]["confirm_seconds_left"].as_u64();
        assert!(left.is_some_and(|left| left <= 6), "{step}: {left:?}");
        // Four seconds, and a tick (1.07 s).
        std::thread::sleep(Duration::from_millis(5200).saturating_sub(asked.elapsed()));
        assert!(!opened(&scene), "{step}: it is in force after its time");
        scene.test.status_until(|status| status["rules"][2].is_null()).unwrap();
        scene.assert_holds(step);
    }
    assert!(scene.test.daemon.egress(&["apply", &more, "--confirm", "4s"]).unwrap().ok());
    std::fs::write(&clock, "+20y").unwrap();
    assert!(scene.test.daemon.egress(&["confirm"]).unwrap().ok());
    assert!(opened(&scene));
}

/// P7: a file that is swapped a thousand times in seconds: what it says last is in force, and no policy in between opened more.
#[test]
fn a_file_swapped_a_thousand_times_ends_as_it_says() {
    let mut scene = Scene::new();
    let file = Daemon::builder(&scene.test.world).policy_file(0);
    for number in 0..1000 {
        let text = format!("{POLICY}  - {{name: n{number}, to: [203.0.113.12], ports: [7000/tcp]}}\n");
        let fresh = file.with_extension("fresh");
        std::fs::write(&fresh, if number % 2 == 0 { text.as_str() } else { POLICY }).unwrap();
        std::fs::rename(&fresh, &file).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    std::fs::write(&file, format!("{POLICY}  - {{name: last, to: [203.0.113.12], ports: [7000/tcp]}}\n")).unwrap();
    scene.test.status_until(|status| status["rules"][2]["name"] == "last").unwrap();
    assert!(tcp(&scene.test.inside, "203.0.113.12:7000").unwrap().echoed);
    assert_eq!(scene.test.daemon.status().unwrap()["health"]["healthy"], true);
    scene.assert_holds("swapped");
}

/// P2: a daemon that died between the flip and the writing down left the text as an intention: what is in force stays.
#[test]
fn what_is_in_force_stays_though_it_was_not_written_down() {
    let mut scene = Scene::new();
    let more = scene.policy_file("more.yaml", &format!("{POLICY}{MORE}"));
    assert!(scene.test.daemon.egress(&["apply", &more]).unwrap().ok());
    let generation = scene.test.daemon.status().unwrap()["generation"].clone();
    scene.test.daemon.kill().unwrap();
    let applied = scene.state()["applied"]["texts"].clone();
    assert!(applied.is_object(), "{}", scene.state());
    scene.set_state(&json!({"trial": applied}));
    scene.test.restart().unwrap();
    let status = scene.test.daemon.status().unwrap();
    assert_eq!((&status["generation"], &status["policy"]["applied"]), (&generation, &Value::Bool(true)));
    assert!(tcp(&scene.test.inside, "203.0.113.12:7000").unwrap().echoed);
    scene.assert_holds("restarted");
    // Written down by now: a further restart knows it too.
    scene.test.daemon.kill().unwrap();
    assert!(scene.state()["trial"].is_null() && scene.state()["applied"].is_object(), "{}", scene.state());
}

/// P7: an intention that never came to be, too large for the tables besides, changes nothing; not the tables either.
#[test]
fn what_was_never_in_force_is_passed_over() {
    let mut scene = Scene::new();
    assert!(scene.test.inside.run("getent", &["ahosts", "some.wild.example.com"], LIMIT).unwrap().ok());
    let rules: String =
        (0..3000).map(|n| format!("  - {{name: r{n}, to: [n{n}.example.com], ports: [443/tcp]}}\n")).collect();
    let huge = scene.policy_file("huge.yaml", &format!("{POLICY}{rules}"));
    let run = scene.test.daemon.egress(&["apply", &huge, "--confirm", "60s"]).unwrap();
    assert!(!run.ok() && run.stderr.contains("fit"), "{run:?}");
    assert!(scene.state()["trial"].is_null(), "nothing is left of what was refused");
    scene.test.daemon.kill().unwrap();
    scene.set_state(&json!({"trial": {"files": [["huge.yaml", format!("{POLICY}{rules}")]]}}));
    scene.test.restart().unwrap();
    assert!(tcp(&scene.test.inside, "203.0.113.30:7000").unwrap().echoed, "what was learned is there");
    assert!(scene.test.daemon.status().unwrap()["rules"][2].is_null());
    scene.assert_holds("restarted");
}

/// P6: what a change that was cut short left in the tables goes at the next start, though it takes up the same policy.
#[test]
fn what_a_change_cut_short_left_is_swept() {
    let mut scene = Scene::new();
    let generation = scene.test.daemon.status().unwrap()["generation"].as_u64().unwrap() as u32;
    scene.test.daemon.kill().unwrap();
    let mut entry = AddressEntry::default();
    entry.slots[0] = Slot { class: 1, expiry: boot_ticks() + 1000 }.pack();
    scene.test.world.mounts.run(|| {
        let map = sys::open_pin(&Pins::new(std::path::Path::new(BPFFS)).map("ADDRESSES_4")).unwrap();
        let key = AddressKey4 { address: [192, 0, 2, 99], epoch: u32::MAX };
        Table::<AddressKey4, AddressEntry>::new("ADDRESSES_4", map).unwrap().set(&key, &entry, sys::ANY).unwrap();
    });
    let left = |scene: &Scene| learned::addresses(&scene.test.world).unwrap().contains(&"192.0.2.99".parse().unwrap());
    assert!(left(&scene));
    scene.test.restart().unwrap();
    assert!(!left(&scene));
    assert_eq!(scene.test.daemon.status().unwrap()["generation"], generation);
    scene.assert_holds("restarted");
}

const SPIN: &str = "while True: pass\n";

/// Echoes of one datagram after the other in 0.4 s, while two processes run a script in the cgroup.
fn echoes(test: &Governed, script: &str) -> u32 {
    let start = |_| test.inside.command(python()).args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
    let mut processes: Vec<_> = (0..2).map(start).collect();
    std::thread::sleep(Duration::from_millis(200));
    let counted = test.inside.fork(LIMIT, || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("203.0.113.11:7000")?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < Duration::from_millis(400) {
            socket.send(b"echo")?;
            count += u32::from(socket.recv(&mut [0; 16]).is_ok());
        }
        Ok(count)
    });
    processes.iter_mut().for_each(|process| drop((process.kill(), process.wait())));
    counted.unwrap()
}

/// P6: what a process that floods with forbidden packets takes from the others is its share of the processors, as one that
/// computes does. The figures are in docs/reliability.md; the bound here is for a machine that does other things besides.
#[test]
fn a_forbidden_flood_takes_no_more_than_its_share() {
    let world = world();
    world.serve(Service::UdpEcho, "203.0.113.11:7000").unwrap();
    let policy = format!("{POLICY}  - {{name: echo, to: [203.0.113.11], ports: [7000/udp]}}\n");
    let test = Governed::over(world, &policy).unwrap();
    let (mut spinning, mut flooded) = (0, 0);
    let denied: SocketAddr = DENIED.parse().unwrap();
    for _ in 0..2 {
        spinning += echoes(&test, SPIN);
        flooded += echoes(&test, FLOOD);
        test.world.sniffer.assert_none("a flood", |frame| frame.destination == Some(denied.ip()));
        test.world.sniffer.clear();
    }
    println!("echoes beside two that compute: {spinning}, beside two that flood: {flooded}");
    assert!(spinning > 0 && flooded * 10 > spinning, "beside two that compute {spinning}, that flood {flooded}");
}
