//! P5, P2: the cgroup's hook lets a refused query pass only where an uplink's program is sure to turn it round (decision
//! 0018). Here that program goes, or never was, or the way changes between the two: no refused question leaves.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use egress_tests::bench::raw;
use egress_tests::mntns::BPFFS;
use egress_tests::world::DNS_V4;
use egress_tests::{Cgroup, Daemon, Governed, NetNs, World};
use egress_user::datapath::{
    Pins,
    sys::{self, AttachType},
};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);
const POLICY: &str = "version: 1\nrules: [{name: web, to: [www.example.com], ports: [80/tcp]}]\n";
/// Nobody else asks for this, and no rule allows it.
const REFUSED: &[u8] = b"\x09forbidden\x07example\x03com\0\0\x01\0\x01";

/// What became of some queries.
#[derive(Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Asked {
    nxdomain: u32,
    eperm: u32,
    silence: u32,
    other: u32,
}

/// Asks for the refused name from within the governed cgroup: `count` times and for at least `time`.
fn ask(test: &Governed, count: u32, time: Duration) -> Asked {
    let ask = || {
        let resolver: SocketAddr = (DNS_V4.parse::<std::net::IpAddr>()?, 53).into();
        let mut asked = Asked::default();
        let start = Instant::now();
        for turn in 0_u32.. {
            let id = turn as u16;
            if turn >= count && start.elapsed() >= time {
                break;
            }
            // Bound to no interface and not connected: each query takes the route of its moment.
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_millis(30)))?;
            let query = [&id.to_be_bytes()[..], b"\x01\0\0\x01\0\0\0\0\0\0", REFUSED].concat();
            match socket.send_to(&query, resolver) {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => asked.eperm += 1,
                Err(_) => asked.other += 1,
                Ok(_) => {
                    let mut answer = [0; 512];
                    match socket.recv(&mut answer) {
                        Ok(len) if len > 3 && answer[..2] == id.to_be_bytes() && answer[3] & 15 == 3 => {
                            asked.nxdomain += 1;
                        }
                        Ok(_) => asked.other += 1,
                        Err(_) => asked.silence += 1,
                    }
                }
            }
        }
        Ok(asked)
    };
    test.inside.fork(LIMIT, ask).unwrap()
}

fn few(test: &Governed) -> Asked {
    ask(test, 5, Duration::ZERO)
}

#[track_caller]
fn assert_stayed(test: &Governed, when: &str) {
    let leaked = |frame: &egress_tests::Frame| frame.bytes.windows(9).any(|bytes| bytes == b"forbidden");
    test.world.sniffer.assert_none(when, leaked);
    assert_eq!(test.world.dns.count("forbidden.example.com"), 0, "{when}");
}

/// A daemon over `interfaces`; the resolver is reached by `up1`.
fn governed(interfaces: &[&str]) -> Governed {
    let world = World::new().unwrap();
    for n in [1, 2] {
        world.add_uplink(n).unwrap();
    }
    let cgroup = Cgroup::new("governed").unwrap();
    // The resolver is the policy's: here the node's own.
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).resolvers(&[]);
    let daemon = builder.interfaces(interfaces).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let test = Governed { daemon, inside, beside, cgroup, world };
    route(&test.world.node_ns, 1);
    test
}

fn route(node: &NetNs, n: u8) {
    node.ip(&format!("route replace {DNS_V4}/32 via 198.18.{n}.1 dev up{n}")).unwrap();
}

/// Deletes `up1` and makes another with the same index.
fn replace(test: &Governed) {
    let (node, world) = (&test.world.node_ns, &test.world.world_ns);
    let index = node.ifindex("up1").unwrap();
    node.ip("link del up1").unwrap();
    node.ip(&format!("link add up1 index {index} type veth peer name new1 netns {}", world.name())).unwrap();
    assert_eq!(node.ifindex("up1").unwrap(), index);
    world.ip("link set new1 up\naddr add 198.18.1.1/24 dev new1").unwrap();
    node.ip("link set up1 up\naddr add 198.18.1.10/24 dev up1").unwrap();
    route(node, 1);
}

/// Its index is given to another interface, and no daemon runs that could see it.
#[test]
fn refused_queries_stay_when_an_uplinks_index_is_given_to_another_interface() {
    let mut test = governed(&["up0", "up1"]);
    assert_eq!(few(&test), Asked { nxdomain: 5, ..Asked::default() });
    test.daemon.kill().unwrap();
    assert_eq!(few(&test), Asked { nxdomain: 5, ..Asked::default() }, "without a daemon");
    replace(&test);
    assert_eq!(few(&test), Asked { eperm: 5, ..Asked::default() }, "the index means another interface now");
    assert_stayed(&test, "the index means another interface now");
}

/// Deleted and made again, with and without its index, while the daemon follows; moved to another namespace and back.
#[test]
fn refused_queries_stay_while_an_uplink_is_made_anew() {
    let test = governed(&["up0", "up1"]);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&test, 0, Duration::from_secs(2)));
        for _ in 0..4 {
            std::thread::sleep(Duration::from_millis(120));
            replace(&test);
            std::thread::sleep(Duration::from_millis(120));
            let node = &test.world.node_ns;
            node.ip("link del up1").unwrap();
            test.world.add_uplink(1).unwrap();
            route(node, 1);
        }
        let asked = asking.join().unwrap();
        println!("{asked:?}");
        assert!(asked.nxdomain > 0, "{asked:?}");
    });
    assert_stayed(&test, "made anew");
    test.world.node_ns.ip(&format!("link set up1 netns {}", test.world.world_ns.name())).unwrap();
    test.world.world_ns.ip(&format!("link set up1 netns {}", test.world.node_ns.name())).unwrap();
    test.world.node_ns.ip("link set up1 up\naddr add 198.18.1.10/24 dev up1").unwrap();
    route(&test.world.node_ns, 1);
    few(&test);
    assert_stayed(&test, "moved away and back");
}

/// As many programs at an interface's egress as the kernel takes (one less than `BPF_MPROG_MAX`), none of which ends the chain of calls:
/// there is no room for ours.
fn crowd(test: &Governed, interface: &str) -> Vec<OwnedFd> {
    let index = test.world.node_ns.ifindex(interface).unwrap();
    let attach = || {
        let one = || {
            let program = raw::constant(raw::CLASSIFIER, -1).unwrap();
            sys::link_create(program.as_fd(), index, AttachType::TcxEgress)
        };
        let links: Vec<OwnedFd> = std::iter::repeat_with(one).map_while(Result::ok).take(100).collect();
        assert_eq!(links.len(), 63);
        links
    };
    test.world.node_ns.run(attach)
}

/// Its program was taken away, and the daemon cannot attach it again.
#[test]
fn refused_queries_stay_when_an_uplink_cannot_be_attached_again() {
    let test = governed(&["up0", "up1"]);
    assert_eq!(few(&test), Asked { nxdomain: 5, ..Asked::default() });
    let pin = format!("if{}-uplink_egress", test.world.node_ns.ifindex("up1").unwrap());
    let taken = || {
        let path = Pins::new(Path::new(BPFFS)).link(&pin);
        sys::link_detach(sys::open_pin(&path)?.as_fd())?;
        Ok(std::fs::remove_file(&path)?)
    };
    // A late change of the network must not have it attached again between the two.
    test.daemon.signal(Signal::SIGSTOP).unwrap();
    test.beside.fork(LIMIT, taken).unwrap();
    let _crowd = crowd(&test, "up1");
    test.daemon.signal(Signal::SIGCONT).unwrap();
    // Any change makes the daemon look.
    test.world.node_ns.ip("link set up2 mtu 1400").unwrap();
    let start = Instant::now();
    while !test.daemon.output().contains("cannot govern a new uplink") {
        assert!(start.elapsed() < LIMIT, "{}", test.daemon.output());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(few(&test), Asked { eperm: 5, ..Asked::default() });
    assert_stayed(&test, "not attached again");
}

/// An entry of an earlier daemon whose program went meanwhile is not believed by the next one, from its first moment on.
#[test]
fn refused_queries_stay_when_an_uplinks_program_went_between_two_daemons() {
    let mut test = governed(&["up0", "up1"]);
    test.daemon.kill().unwrap();
    let index = test.world.node_ns.ifindex("up1").unwrap();
    let went = || {
        let path = Pins::new(Path::new(BPFFS)).link(&format!("if{index}-uplink_egress"));
        sys::link_detach(sys::open_pin(&path)?.as_fd())?;
        Ok(std::fs::remove_file(&path)?)
    };
    test.beside.fork(LIMIT, went).unwrap();
    // So that the next one fails half way, when the cgroup's hooks are its own.
    let _crowd = crowd(&test, "up1");
    let builder = Daemon::builder(&test.world);
    let file = builder.policy_file(0);
    let run = builder.policy(file).cgroup(&test.cgroup).interfaces(&["up0", "up1"]).run_to_end(LIMIT).unwrap();
    assert!(!run.ok(), "{run:?}");
    assert_eq!(few(&test), Asked { eperm: 5, ..Asked::default() }, "{run:?}");
    assert_stayed(&test, "went between two daemons");
}

/// A resolver that is reached by no uplink, and a route that changes all the time.
#[test]
fn refused_queries_stay_whichever_way_the_route_goes() {
    let test = governed(&["up0", "up1"]);
    route(&test.world.node_ns, 2);
    assert_eq!(few(&test), Asked { eperm: 5, ..Asked::default() }, "up2 is no uplink");
    std::thread::scope(|scope| {
        // On a busy machine the route may not change once within the first second.
        let asking = scope.spawn(|| {
            let (start, mut all) = (Instant::now(), ask(&test, 0, Duration::from_secs(1)));
            while (all.nxdomain == 0 || all.eperm == 0) && start.elapsed() < Duration::from_secs(15) {
                let more = ask(&test, 0, Duration::from_secs(1));
                all.nxdomain += more.nxdomain;
                all.eperm += more.eperm;
            }
            all
        });
        let mut n = 1;
        while !asking.is_finished() {
            route(&test.world.node_ns, n);
            n = 3 - n;
        }
        let asked = asking.join().unwrap();
        println!("{asked:?}");
        assert!(asked.nxdomain > 0 && asked.eperm > 0, "{asked:?}");
    });
    assert_stayed(&test, "the route changes");
}

/// The resolver goes and comes with the policy, while refused names are asked for: what the cgroup's hook let pass under one
/// policy is not let pass by the uplink's under the next.
#[test]
fn refused_queries_stay_when_the_resolver_is_changed() {
    let test = governed(&["up0", "up1"]);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask(&test, 0, Duration::from_secs(2)));
        let mut other = false;
        while !asking.is_finished() {
            other = !other;
            let resolver = if other { "203.0.113.54" } else { DNS_V4 };
            let name = format!("r{}", u8::from(other));
            test.write_policy(
                &POLICY
                    .replace("web", &name)
                    .replace("version: 1", &format!("version: 1\ndns: {{resolvers: [{resolver}]}}")),
            )
            .unwrap();
            test.daemon.signal(nix::sys::signal::Signal::SIGHUP).unwrap();
            std::thread::sleep(Duration::from_millis(60));
        }
        let asked = asking.join().unwrap();
        println!("{asked:?}");
        assert!(asked.nxdomain > 0, "{asked:?}");
    });
    assert_stayed(&test, "the resolver changes");
}
