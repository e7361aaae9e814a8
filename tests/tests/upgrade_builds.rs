//! Really different builds take over from one another, up and down (P2): `cargo xtask upgrade` builds them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use egress_tests::{
    Cgroup, Daemon, Held, Place, Service, World,
    held::{FLOOD, python},
    mntns::BPFFS,
    probe::tcp,
};
use serde_json::Value;

const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: named, to: ['*.wild.example.com'], ports: [7000/tcp]}
";
const LIMIT: Duration = Duration::from_secs(10);

fn links(daemon: &Daemon) -> Vec<Value> {
    let status = daemon.status().unwrap();
    assert_eq!(status["health"]["healthy"], true, "{status:#}");
    status["attach_points"].as_array().unwrap().iter().map(|point| point["link_id"].clone()).collect()
}

fn abi(place: &Place) -> String {
    place.run("ls", &[&format!("{BPFFS}/egress")], LIMIT).unwrap().stdout.trim().to_owned()
}

/// P2: up through all builds and down again, each killed before the next starts, and some killed while they start: no
/// forbidden packet arrives, an allowed connection goes on. The same ABI keeps its links, another one makes its own first and says
/// what it leaves behind.
#[test]
#[ignore = "needs other builds of egress: cargo xtask upgrade"]
fn builds_take_over_from_one_another() {
    let builds: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("EGRESS_BUILDS").unwrap()).collect();
    assert!(!builds.is_empty());
    let present = egress_tests::daemon::binary().unwrap();
    let up = builds.iter().chain([&present]);
    let steps: Vec<&Path> = up.chain(builds.iter().rev()).chain([&present]).map(PathBuf::as_path).collect();

    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let start = |binary: &Path| Daemon::builder(&world).binary(binary).policy_text(POLICY).cgroup(&cgroup);
    let mut daemon = start(steps[0]).start().unwrap();
    let mut held = Held::connect(&inside, "203.0.113.10", 7000).unwrap();
    let mut held_beside = Held::connect(&beside, "203.0.113.10", 7000).unwrap();
    world.sniffer.clear();
    let mut pumps: Vec<_> = [&inside, &beside]
        .iter()
        .map(|place| place.command(python()).args(["-c", FLOOD]).stdin(Stdio::null()).spawn().unwrap())
        .collect();
    let denied = "198.51.100.77".parse().ok();
    let (mut kept, mut rebuilt, mut down) = (0, 0, 0);
    for (step, binary) in steps.iter().enumerate().skip(1) {
        let name = format!("n{step}.wild.example.com");
        world.dns.set(&name, 30, &[format!("203.0.113.{}", 100 + step).parse().unwrap()]);
        let (old_links, old_abi) = (links(&daemon), abi(&beside));
        daemon.crash().unwrap();
        // Interrupted: the next start finishes what this one began, or begins anew.
        for crash in 0..3 {
            let interrupted = start(binary).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(100 + 150 * crash));
            interrupted.crash().unwrap();
            assert_eq!(held.say("interrupted").unwrap(), "echo", "step {step}");
        }
        daemon = start(binary).start().unwrap();
        let (new_links, new_abi, output) = (links(&daemon), abi(&beside), daemon.output());
        if new_abi == old_abi {
            kept += 1;
            assert_eq!(new_links, old_links, "step {step}");
        } else {
            rebuilt += 1;
            let version = |abi: &str| abi.trim_start_matches('v').parse::<u32>().unwrap();
            down += usize::from(version(&new_abi) < version(&old_abi));
            assert!(new_links.iter().all(|link| !old_links.contains(link)), "step {step}: {new_links:?}");
        }
        println!(
            "step {step}: {} of ABI {new_abi} over {old_abi}, {}",
            binary.file_name().unwrap_or_default().to_string_lossy(),
            output.lines().find(|line| line.contains("gave way")).unwrap_or("links kept")
        );
        assert_eq!((held.say("up").unwrap(), held_beside.say("up").unwrap()), ("echo".into(), "echo".into()));
        let client = "import socket, sys
s = socket.create_connection((sys.argv[1], 7000), 3)
s.sendall(b'x')
print(s.recv(1) == b'x')
";
        let run = inside.run(python(), &["-c", client, &name], LIMIT).unwrap();
        assert_eq!(run.stdout.trim(), "True", "step {step}: {run:?}");
        assert!(tcp(&inside, "198.51.100.77:7000").unwrap().refused(), "step {step}");
        world.sniffer.assert_none("a packet while builds change", |frame| frame.destination == denied);
    }
    assert!(pumps.iter_mut().all(|pump| pump.try_wait().unwrap().is_none()), "a pump ended early");
    pumps.iter_mut().for_each(|pump| drop((pump.kill(), pump.wait())));
    world.sniffer.assert_none("a packet while builds change", |frame| frame.destination == denied);
    println!("{kept} took the links over, {rebuilt} made new ones ({down} of them a downgrade); 0 forbidden packets");
}
