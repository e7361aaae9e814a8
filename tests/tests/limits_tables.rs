//! P6: tables that cannot be made small, when they are full or cannot be written: the scratch buffers, the sockets' memory, the
//! tables of interfaces. `limits.rs` has the others.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, MapInfo, PerCpuArray, PerCpuValues};
use egress_ebpf::{abi::SocketState, dns::Work};
use egress_tests::mntns::BPFFS;
use egress_tests::probe::{tcp, udp};
use egress_tests::{Cgroup, Daemon, Governed, Held, Service, World};
use egress_user::datapath::{Pins, Table, sys};

const LIMIT: Duration = Duration::from_secs(20);
const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: datagrams, to: [203.0.113.12], ports: [7000/udp]}
  - {name: wild, to: ['*.wild.example.com'], ports: [7000/tcp]}
";
const DENIED: &str = "198.51.100.77:7000";

fn world() -> World {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.serve(Service::UdpEcho, "203.0.113.12:7000").unwrap();
    world.dns.set_text("*.wild.example.com", 60, &["203.0.113.30"]);
    world
}

/// Nothing forbidden gets out by any way, and none did.
#[track_caller]
fn assert_closed(test: &Governed) {
    assert!(tcp(&test.inside, DENIED).unwrap().refused());
    assert!(!udp(&test.beside, DENIED, 8).unwrap().echoed);
    let denied: SocketAddr = DENIED.parse().unwrap();
    test.world.sniffer.assert_none("a forbidden packet", |frame| frame.destination == Some(denied.ip()));
}

fn pinned(test: &Governed, name: &'static str) -> OwnedFd {
    test.world.mounts.run(|| sys::open_pin(&Pins::new(Path::new(BPFFS)).map(name)).unwrap())
}

/// The scratch buffers of the daemon's programs, which are pinned nowhere.
struct Scratch(PerCpuArray<MapData, [u8; size_of::<Work>()]>);

impl Scratch {
    fn of(test: &Governed) -> Self {
        let status = test.daemon.status().unwrap();
        let points = status["attach_points"].as_array().unwrap();
        let link = points.iter().find(|point| point["hook"] == "socket_egress").unwrap()["link_id"].as_u64().unwrap();
        let links = aya::programs::loaded_links().filter_map(Result::ok);
        let program = links.into_iter().find(|info| u64::from(info.id()) == link).unwrap().program_id();
        let program =
            aya::programs::loaded_programs().filter_map(Result::ok).find(|info| info.id() == program).unwrap();
        let maps = program.map_ids().unwrap().unwrap();
        let is_work = |id: &u32| MapInfo::from_id(*id).is_ok_and(|info| info.name_as_str() == Some("WORK"));
        let id = maps.into_iter().find(is_work).unwrap();
        Self(PerCpuArray::try_from(Map::PerCpuArray(MapData::from_id(id).unwrap())).unwrap())
    }

    /// Takes every buffer of every processor, or gives all back.
    fn take(&mut self, taken: bool) {
        for index in 0..self.0.len() {
            let mut values = self.0.get(&index, 0).unwrap().to_vec();
            for value in &mut values {
                let at = std::mem::offset_of!(Work, busy);
                value[at..at + 8].copy_from_slice(&u64::from(taken).to_ne_bytes());
            }
            self.0.set(index, PerCpuValues::try_from(values).unwrap(), 0).unwrap();
        }
    }
}

fn busy(test: &Governed) -> u64 {
    let status = test.daemon.status().unwrap();
    let learning = status["learning"].as_array().unwrap();
    learning.iter().find(|count| count["what"] == "busy").map_or(0, |count| count["count"].as_u64().unwrap())
}

/// No scratch buffer is free: queries are refused and answers not read, counted as `busy`; what is open or known goes on; and all is
/// as before once there is one.
#[test]
fn without_a_scratch_buffer_queries_are_refused_and_answers_not_read() {
    let test = Governed::over(world(), POLICY).unwrap();
    let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
    let dig = |name: &str| test.inside.run("dig", &["+short", "+time=4", "+tries=1", name, "A"], LIMIT).unwrap().stdout;
    test.world.dns.delay("slow.wild.example.com", Duration::from_secs(1));
    let mut scratch = Scratch::of(&test);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| dig("slow.wild.example.com"));
        let start = Instant::now();
        while test.world.dns.count("slow.wild.example.com") == 0 {
            assert!(start.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(5));
        }
        scratch.take(true);
        assert_eq!(asking.join().unwrap(), "203.0.113.30\n", "an answer is not held up");
    });
    let unread = busy(&test);
    assert!(unread > 0, "{:#}", test.daemon.status().unwrap()["learning"]);
    assert!(tcp(&test.inside, "203.0.113.30:7000").unwrap().refused(), "its answer was not read");
    assert!(!dig("other.wild.example.com").contains("203.0.113.30"));
    assert_eq!(test.world.dns.count("other.wild.example.com"), 0, "its query was refused");
    assert!(busy(&test) > unread);
    assert_eq!(held.say("still").unwrap(), "echo");
    assert!(udp(&test.inside, "203.0.113.12:7000", 8).unwrap().echoed, "a new flow");
    assert!(tcp(&test.inside, "203.0.113.10:7000").unwrap().echoed, "a new connection");
    assert_closed(&test);

    scratch.take(false);
    assert_eq!(dig("other.wild.example.com"), "203.0.113.30\n");
    assert!(tcp(&test.inside, "203.0.113.30:7000").unwrap().echoed, "learned again");
}

/// The kernel has no memory for what is remembered of a socket: each of its packets is judged anew, and names are learned.
#[test]
fn sockets_without_memory_are_judged_packet_by_packet() {
    let test = Governed::over(world(), POLICY).unwrap();
    let sockets = || pinned(&test, "SOCKETS");
    let remembered = || {
        let sockets = sockets();
        let remembered = test.inside.fork(LIMIT, || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let table = Table::<u32, SocketState>::new("SOCKETS", sockets.try_clone()?)?;
            Ok(table.get(&(socket.as_raw_fd() as u32))?.is_some())
        });
        remembered.unwrap()
    };
    assert!(remembered());
    // The bound of a socket's storage (`sk_storage_charge` in net/core/bpf_sk_storage.c); the node's alone since 6.8.
    test.world.node_ns.sysctl("core/optmem_max", "1").unwrap();
    assert!(!remembered());
    for place in [&test.inside, &test.beside] {
        let mut held = Held::connect(place, "203.0.113.10", 7000).unwrap();
        assert_eq!(held.say("still").unwrap(), "echo");
        assert!(udp(place, "203.0.113.12:7000", 8).unwrap().echoed);
    }
    assert!(test.inside.run("getent", &["ahosts", "new.wild.example.com"], LIMIT).unwrap().ok());
    assert!(tcp(&test.inside, "203.0.113.30:7000").unwrap().echoed, "learned");
    assert_closed(&test);
}

/// More interfaces than the table of uplinks holds: the next one is governed all the same, and the log says what failed.
#[test]
fn an_uplink_beyond_the_table_is_governed() {
    const MANY: u32 = 256;
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let daemon = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).default_routes().start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let test = Governed { daemon, inside, beside, cgroup, world };
    let lines = (0..MANY / 2).map(|n| format!("link add many{n} type veth peer name more{n}\n"));
    test.world.node_ns.ip(&lines.collect::<String>()).unwrap();
    let first = test.world.node_ns.ifindex("many0").unwrap().min(test.world.node_ns.ifindex("more0").unwrap());
    let map = pinned(&test, "UPLINKS");
    // The kernel takes interfaces that are there, in the namespace of who writes.
    let room = test.world.node_ns.run(|| {
        let put = |index: u32| {
            sys::map_update(map.as_fd(), &index.to_ne_bytes(), &[index.to_ne_bytes(), [0; 4]].concat(), sys::ANY)
        };
        (first..first + MANY).take_while(|index| put(*index).is_ok()).count()
    });
    assert!(room < MANY as usize, "{room}");
    test.world.add_uplink(1).unwrap();
    test.world.node_ns.ip("route replace default via 198.18.1.1 dev up1").unwrap();
    let start = Instant::now();
    while !test.daemon.output().contains("cannot govern a new uplink") {
        assert!(start.elapsed() < LIMIT, "{}", test.daemon.output());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(tcp(&test.beside, "203.0.113.10:7000").unwrap().echoed);
    assert_closed(&test);
}

/// The table of workloads cannot be written: a new pod's veth is governed all the same, and the log says so.
#[test]
fn a_workload_beyond_the_table_is_governed() {
    let test = Governed::over(world(), POLICY).unwrap();
    freeze(&pinned(&test, "WORKLOADS"));
    let pod = egress_tests::NetNs::new("pod").unwrap();
    test.world.node_ns.veth("vpod", &["10.244.0.1/24"], &pod, "eth0", &["10.244.0.2/24"]).unwrap();
    let start = Instant::now();
    while !test.daemon.output().contains("cannot govern a workload's veth") {
        assert!(start.elapsed() < LIMIT, "{}", test.daemon.output());
        std::thread::sleep(Duration::from_millis(20));
    }
    let governed = |status: &serde_json::Value| {
        let mut points = status["attach_points"].as_array().unwrap().iter();
        points.any(|point| point["target"] == "vpod" && point["present"] == true)
    };
    test.status_until(governed).unwrap();
    assert_closed(&test);
}

/// From here on no system call writes to the map (`BPF_MAP_FREEZE`, `include/uapi/linux/bpf.h`).
fn freeze(map: &OwnedFd) {
    const BPF_MAP_FREEZE: libc::c_long = 22;
    let attr = u64::from(map.as_raw_fd() as u32);
    // SAFETY: the kernel reads the first four bytes of what is given, and no more than the eight that it is told of.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_FREEZE, &raw const attr, size_of_val(&attr)) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}
