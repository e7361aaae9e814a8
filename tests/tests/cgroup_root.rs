//! `egress run` without `--cgroup`: the root of cgroup v2, as the daemon sees it (P1).
//!
//! This machine's own root is governed in audit mode alone; with a policy enforced where that is a virtual machine's
//! (`cargo xtask vm`), or a cgroup namespace's, as a container has it.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use egress_tests::cgroup::mount_point;
use egress_tests::probe::{tcp, udp};
use egress_tests::skip::in_vm;
use egress_tests::world::POD_V4;
use egress_tests::{Cgroup, Daemon, Governed, Place, Service, World, skip};

const RULES: &str = "rules:
  - {name: echo, to: [203.0.113.10], ports: [7000/tcp, 7000/udp]}
  - {name: web, to: [www.example.com], ports: [443/tcp]}
";
const ALLOWED: &str = "203.0.113.10:7000";
const DENIED: &str = "198.51.100.77:7000";
const LIMIT: Duration = Duration::from_secs(10);

fn world() -> World {
    let world = World::new().unwrap();
    world.serve_echoes(&[ALLOWED, DENIED]).unwrap();
    world.serve_everywhere(Service::Https, 443).unwrap();
    world.dns.set_text("www.example.com", 60, &["203.0.113.80"]);
    world.dns.set_text("forbidden.example", 60, &["203.0.113.66"]);
    world
}

fn governed(place: Place, cgroup: Cgroup, world: World) -> Governed {
    let policy = format!("version: 1\n{RULES}");
    let daemon = Daemon::builder(&world).policy_text(&policy).default_cgroup().place(place).start().unwrap();
    let workload = cgroup.child("workload").unwrap();
    let (inside, beside) = (world.node().in_cgroup(&workload), world.node());
    Governed { daemon, inside, beside, cgroup, world }
}

/// What the rules say, seen from the world: of addresses, and of names that are learned.
fn assert_governed(test: &Governed, place: &Place) {
    test.world.sniffer.clear();
    assert!(tcp(place, ALLOWED).unwrap().echoed && udp(place, ALLOWED, 5).unwrap().echoed);
    for got in [tcp(place, DENIED), udp(place, DENIED, 5)] {
        assert!(got.as_ref().unwrap().refused(), "{got:?}");
    }
    let ca = test.world.ca_file().to_string_lossy().into_owned();
    let curl = |url: &str| {
        let args = ["-sS", "-4", "--noproxy", "*", "--max-time", "4", "--cacert", &ca, url];
        place.run("curl", &args, LIMIT).unwrap()
    };
    assert_eq!(curl("https://www.example.com/").stdout, "ok\n");
    assert!(!curl("https://forbidden.example/").ok());
    assert_eq!(test.world.dns.count("forbidden.example"), 0);
    let denied: SocketAddr = DENIED.parse().unwrap();
    test.world.sniffer.assert_none("a forbidden packet", |frame| frame.destination == Some(denied.ip()));
}

/// P1: in a container's cgroup namespace its own cgroup is the root: all in it is governed, by either hook; who reads
/// `status` is told that it is not the node.
#[test]
fn a_cgroup_namespace_is_governed_from_its_root() {
    let world = world();
    let cgroup = Cgroup::new("container").unwrap();
    let container = world.node().in_cgroup(&cgroup).in_cgroup_namespace().unwrap();
    let test = governed(container, cgroup, world);
    assert_governed(&test, &test.inside);
    // No process of the node's other cgroups is refused; what leaves by the uplink is judged.
    assert!(tcp(&test.beside, ALLOWED).unwrap().echoed);
    let got = tcp(&test.beside, DENIED).unwrap();
    assert!(!got.echoed && !got.refused(), "{got:?}");
    let status = test.daemon.status().unwrap();
    assert!(status["warnings"].to_string().contains("seen from a cgroup namespace"), "{status:#}");
    let root = mount_point().unwrap().display().to_string();
    let hooks = status["attach_points"].as_array().unwrap();
    assert!(hooks.iter().any(|hook| hook["target"] == root.as_str()), "{status:#}");
}

/// P1: the machine's whole tree in audit mode: everything passes, and what would be dropped is told, of every process.
#[test]
fn the_machines_root_is_audited() {
    let world = world();
    let policy = format!("version: 1\nmode: audit\n{RULES}");
    let daemon = Daemon::builder(&world).policy_text(&policy).default_cgroup().start().unwrap();
    let elsewhere = Cgroup::new("elsewhere").unwrap();
    let place = world.node().in_cgroup(&elsewhere);
    for to in [ALLOWED, DENIED] {
        assert!(tcp(&place, to).unwrap().echoed && udp(&place, to, 5).unwrap().echoed, "{to}");
    }
    let start = std::time::Instant::now();
    let name = elsewhere.path().file_name().unwrap().to_string_lossy().into_owned();
    let told = |event: &serde_json::Value| {
        event["destination"].as_str().or(event["to"].as_str()).is_some_and(|to| to.contains("198.51.100.77"))
            || event.to_string().contains("198.51.100.77") && event.to_string().contains(&name)
    };
    while !daemon.events(true).unwrap().iter().any(told) {
        assert!(start.elapsed() < LIMIT, "{:#?}", daemon.events(true).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    let status = daemon.status().unwrap();
    assert!(!status["warnings"].to_string().contains("cgroup namespace"), "{status:#}");
}

/// P8: with the root governed the kernel's own errors to a container are governed too. One that its packet is too large for the uplink
/// must reach it, or its uploads hang; in audit mode it is told of nothing.
#[test]
fn a_container_hears_that_its_packet_is_too_large() {
    let world = World::with_pod().unwrap();
    world.serve_echoes(&[ALLOWED]).unwrap();
    world.node_ns.ip("link set up0 mtu 1300").unwrap();
    let policy = format!("version: 1\nmode: audit\n{RULES}");
    let daemon = Daemon::builder(&world).policy_text(&policy).default_cgroup().start().unwrap();
    let elsewhere = Cgroup::new("elsewhere").unwrap();
    let send = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let always = libc::IP_PMTUDISC_DO;
        // SAFETY: the value is live for the call, and its size is given.
        let set = unsafe {
            let (value, size) = ((&raw const always).cast(), size_of_val(&always) as u32);
            libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value, size)
        };
        anyhow::ensure!(set == 0, "IP_MTU_DISCOVER: {}", std::io::Error::last_os_error());
        socket.connect(ALLOWED)?;
        let start = std::time::Instant::now();
        while start.elapsed() < LIMIT {
            if let Err(error) = socket.send(&[0; 1400]) {
                return Ok(error.raw_os_error());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(None)
    };
    let pod = world.pod().in_cgroup(&elsewhere);
    assert_eq!(pod.fork(2 * LIMIT, send).unwrap(), Some(libc::EMSGSIZE));
    // Events come in the order in which they were made: one of the pod's own ends the wait.
    assert!(udp(&pod, DENIED, 5).is_ok());
    let start = std::time::Instant::now();
    let events = loop {
        let events = daemon.events(true).unwrap();
        if events.iter().any(|event| event["destination"] == "198.51.100.77") {
            break events;
        }
        assert!(start.elapsed() < LIMIT, "{events:#?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let errors: Vec<_> = events.iter().filter(|event| event["destination"] == POD_V4).collect();
    assert!(errors.is_empty(), "{errors:#?}");
}

/// P1: the machine's root with the policy enforced: only where the machine is ours alone.
#[test]
fn the_machines_root_is_governed() {
    if !in_vm() {
        let why =
            "a policy on this machine's root cgroup would cut off whatever else runs here; `cargo xtask vm` runs it";
        return skip("the_machines_root_is_governed", why);
    }
    let world = world();
    let cgroup = Cgroup::new("some").unwrap();
    let test = governed(world.node(), cgroup, world);
    assert_governed(&test, &test.inside);
    assert_governed(&test, &test.beside);
}
