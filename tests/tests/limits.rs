//! P6: what happens when a table is full, as `docs/limits.md` says for each. The tables are made small, or filled by hand.

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use egress_ebpf::abi::{
    Address, AddressEntry, AddressKey4, Alias, AliasKey, Config, NAME_KEY, PendingKey, Slot, Stream,
};
use egress_tests::mntns::BPFFS;
use egress_tests::probe::{V4, datagram, ipv4, open, send, tcp, udp};
use egress_tests::world::{DNS_V4, NODE_V4};
use egress_tests::{Cgroup, Daemon, Fault, Governed, Held, Place, Service, World};
use egress_user::datapath::{Pins, Plain, Table, boot_ticks, sys};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);
const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: datagrams, to: [203.0.113.12], ports: [7000/udp]}
  - {name: exact, to: [www.example.com], ports: [7000/tcp]}
  - {name: wild, to: ['*.wild.example.com'], ports: [7000/tcp]}
";
const DENIED: &str = "198.51.100.77:7000";

fn world() -> World {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.serve(Service::UdpEcho, "203.0.113.12:7000").unwrap();
    world.dns.set_text("www.example.com", 600, &["203.0.113.80"]);
    world.dns.set_text("*.wild.example.com", 60, &["203.0.113.30"]);
    world
}

fn daemon(world: &World, cgroup: &Cgroup, policy: &str, args: &[&str]) -> Daemon {
    let builder = Daemon::builder(world).policy_text(policy).cgroup(cgroup);
    args.iter().fold(builder, |builder, arg| builder.arg(*arg)).start().unwrap()
}

fn governed(args: &[&str]) -> Governed {
    let (world, cgroup) = (world(), Cgroup::new("limits").unwrap());
    let daemon = daemon(&world, &cgroup, POLICY, args);
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    Governed { daemon, inside, beside, cgroup, world }
}

fn map<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["maps"].as_array().unwrap().iter().find(|map| map["name"] == name).unwrap()
}

/// Writes elements into a pinned table.
fn fill<K: Plain + Send + Sync, V: Plain + Send + Sync>(test: &Governed, name: &'static str, elements: &[(K, V)]) {
    test.world.mounts.run(|| {
        let map = sys::open_pin(&Pins::new(Path::new(BPFFS)).map(name)).unwrap();
        Table::<K, V>::new(name, map).unwrap().set_all(elements).unwrap();
    });
}

/// The live policy's epoch.
fn epoch(test: &Governed) -> u32 {
    let generation = test.daemon.status().unwrap()["generation"].as_u64().unwrap() as u32;
    test.world.mounts.run(|| {
        let map = sys::open_pin(&Pins::new(Path::new(BPFFS)).map("CONFIG")).unwrap();
        let config = Table::<u32, Config>::new("CONFIG", map).unwrap().get(&(generation & 1)).unwrap().unwrap();
        assert_eq!(config.generation, generation);
        config.epoch
    })
}

/// Nothing forbidden gets out by any way, and none did.
#[track_caller]
fn assert_closed(test: &Governed) {
    assert!(tcp(&test.inside, DENIED).unwrap().refused());
    assert!(!tcp(&test.beside, DENIED).unwrap().echoed);
    let denied: SocketAddr = DENIED.parse().unwrap();
    test.world.sniffer.assert_none("a forbidden packet", |frame| frame.destination == Some(denied.ip()));
}

/// Sends a datagram to `to` from each of `count` ports.
fn from_many_ports(place: &Place, to: &str, count: u16) {
    let to: SocketAddr = to.parse().unwrap();
    let sent = place.fork(LIMIT, || {
        for port in 0..count {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 20_000 + port))?.send_to(b"flow", to)?;
        }
        Ok(())
    });
    sent.unwrap();
}

/// Full flow tables give up the flow that was not seen for longest: it is judged anew, and passes where a rule has it.
#[test]
fn full_flow_tables_judge_anew() {
    let test = governed(&["--max-flows", "1024"]);
    let mut held = [&test.inside, &test.beside].map(|place| Held::connect(place, "203.0.113.10", 7000).unwrap());
    from_many_ports(&test.beside, "203.0.113.12:7000", 4000);
    let status = test.daemon.status().unwrap();
    let flows = map(&status, "FLOWS");
    assert_eq!((&flows["capacity"], &flows["evicts"]), (&Value::from(1024), &Value::Bool(true)));
    let entries = flows["entries"].as_u64().unwrap();
    assert!((512..=1024).contains(&entries), "{flows}");
    for held in &mut held {
        assert_eq!(held.say("still").unwrap(), "echo");
    }
    assert!(udp(&test.beside, "203.0.113.12:7000", 8).unwrap().echoed, "a new flow");
    assert!(tcp(&test.beside, "203.0.113.10:7000").unwrap().echoed, "a new connection");
    assert_eq!(status["health"]["healthy"], true);
    assert_closed(&test);
}

/// A connection that its socket resets was judged there to the last packet, though the socket has given its port back by then: the
/// uplink judges nothing anew, which could refuse it, and remembers nothing.
#[test]
fn resets_take_no_place_among_the_flows() {
    const CONNECTIONS: u64 = 100;
    let test = governed(&[]);
    let flows = || map(&test.daemon.status().unwrap(), "FLOWS")["entries"].as_u64().unwrap();
    let connect = |place: &Place| {
        let connected = place.fork(LIMIT, || {
            for _ in 0..CONNECTIONS {
                let stream = TcpStream::connect("203.0.113.10:7000")?;
                let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger)?;
            }
            Ok(())
        });
        connected.unwrap();
    };
    let before = flows();
    connect(&test.inside);
    let after = flows();
    assert!(after < before + CONNECTIONS / 10, "{before} flows, then {after}");
    // Sockets that are not governed are the uplink's to judge: so flows are seen here at all.
    connect(&test.beside);
    assert!(flows() >= after + CONNECTIONS, "{after} flows, then {}", flows());
}

/// A server that more clients ask than are remembered answers those that asked last; whoever was forgotten gets nothing, and what is
/// forbidden stays so.
#[test]
fn full_peer_table_answers_those_that_asked_last() {
    const CLIENTS: u16 = 2000;
    let test = governed(&["--max-flows", "1024"]);
    let answered: Vec<bool> = std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            test.inside.fork(LIMIT, || {
                let socket = UdpSocket::bind((NODE_V4, 9000))?;
                socket.set_read_timeout(Some(Duration::from_secs(8)))?;
                let (mut clients, mut bytes) = (Vec::new(), [0; 8]);
                loop {
                    let (len, from) = socket.recv_from(&mut bytes)?;
                    if &bytes[..len] == b"last" {
                        break;
                    }
                    clients.push(from);
                }
                Ok(clients.iter().rev().map(|client| socket.send_to(b"answer", client).is_ok()).collect())
            })
        });
        let sent = test.world.outside().fork(LIMIT, || {
            std::thread::sleep(Duration::from_millis(500));
            let to = (NODE_V4, 9000);
            for port in 0..CLIENTS {
                UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 20_000 + port))?.send_to(b"ask", to)?;
                // As fast as the server reads, or its socket drops some.
                if port % 32 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            let last = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 19_999))?;
            for _ in 0..5 {
                last.send_to(b"last", to)?;
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        sent.unwrap();
        server.join().unwrap().unwrap()
    });
    let peers = map(&test.daemon.status().unwrap(), "PEERS").clone();
    assert_eq!((&peers["capacity"], &peers["evicts"]), (&Value::from(512), &Value::Bool(true)));
    assert!(answered.len() > 1500 && answered[0] && !answered[answered.len() - 1], "{answered:?}");
    let count = answered.iter().filter(|answered| **answered).count();
    assert!((100..=512).contains(&count), "{count} of {} were answered", answered.len());
    assert!(udp(&test.inside, "203.0.113.12:7000", 8).unwrap().echoed, "a new flow");
    assert_closed(&test);
}

/// A flood to one destination, as fast as a process can send: each refusal is counted, and told by events that stand for many.
#[test]
fn a_flood_is_counted_and_told_to_the_last_refusal() {
    let test = governed(&[]);
    let denied: SocketAddr = DENIED.parse().unwrap();
    let (tried, seconds): (u64, f64) = test
        .inside
        .fork(LIMIT, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(denied)?;
            let (start, mut tried) = (std::time::Instant::now(), 0);
            while start.elapsed() < Duration::from_secs(1) {
                for _ in 0..64 {
                    anyhow::ensure!(socket.send(b"flood").is_err(), "a forbidden datagram was sent");
                }
                tried += 64;
            }
            Ok((tried, start.elapsed().as_secs_f64()))
        })
        .unwrap();
    println!("{:.0} refusals a second", tried as f64 / seconds);
    let refused = |status: &Value| {
        let counters = status["counters"].as_array().unwrap();
        counters.iter().find(|counter| counter["reason"] == "no-rule").map_or(0, |c| c["packets"].as_u64().unwrap())
    };
    assert_eq!(refused(&test.daemon.status().unwrap()), tried);
    let told = || -> u64 {
        let events = test.daemon.events(true).unwrap();
        let flood = events.iter().filter(|event| event["destination"] == denied.ip().to_string());
        flood.map(|event| event["count"].as_u64().unwrap()).sum()
    };
    let start = std::time::Instant::now();
    while told() < tried && start.elapsed() < LIMIT {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!((told(), test.daemon.status().unwrap()["events_lost"].as_u64()), (tried, Some(0)));
}

/// A million learned addresses: names are learned beside them, the rest stays closed, and the next daemon takes them up.
#[test]
fn a_million_addresses_are_held_and_taken_up() {
    const MANY: u32 = 1_000_000;
    let room = ["--max-addresses", "2097152"];
    let mut test = governed(&room);
    let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
    fill(&test, "ADDRESSES_4", &addresses(epoch(&test), 0, MANY));
    let entries = |test: &Governed| map(&test.daemon.status().unwrap(), "ADDRESSES_4")["entries"].as_u64().unwrap();
    assert!(entries(&test) > u64::from(MANY));
    assert!(test.inside.run("getent", &["ahosts", "new.wild.example.com"], LIMIT).unwrap().ok());
    assert!(tcp(&test.inside, "203.0.113.30:7000").unwrap().echoed, "learned beside them");
    assert_eq!(test.daemon.status().unwrap()["health"]["healthy"], true);
    assert_closed(&test);

    test.daemon.kill().unwrap();
    assert_closed(&test);
    let next = daemon(&test.world, &test.cgroup, POLICY, &room);
    test.follow(next);
    assert!(entries(&test) > u64::from(MANY), "taken up");
    assert_eq!(held.say("still").unwrap(), "echo");
    assert!(tcp(&test.inside, "203.0.113.30:7000").unwrap().echoed, "learned before");
    assert_closed(&test);
}

/// A million refusals, each to another destination: all counted, and the daemon's memory stays what it keeps of them.
#[test]
fn a_million_destinations_are_counted_and_not_kept() {
    const PORTS: u16 = 4000;
    let test = governed(&[]);
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", test.daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
    };
    let before = resident();
    let sent = test.beside.fork(Duration::from_secs(60), || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        for host in 1..=250 {
            for port in 1..=PORTS {
                // Dropped at the uplink, behind the system call's back; or told by an error.
                let _ = socket.send_to(b"one of a million", (Ipv4Addr::new(198, 51, 100, host), 10_000 + port));
            }
        }
        Ok(())
    });
    sent.unwrap();
    let status = test.daemon.status().unwrap();
    let counters = status["counters"].as_array().unwrap();
    let refused = counters.iter().find(|counter| counter["reason"] == "no-rule").unwrap();
    assert_eq!(refused["packets"], 250 * u64::from(PORTS));
    assert_eq!(status["health"]["healthy"], true, "{status:#}");
    let after = resident();
    println!("the daemon: {before} MiB before, {after} after");
    assert!(after < before + 64, "{before} MiB before, {after} after");
    assert_closed(&test);
}

/// More datagrams in fragments than are remembered: of the oldest later fragments are dropped, whole ones go on.
#[test]
fn full_fragment_table_drops_the_oldest_datagrams_rest() {
    let test = governed(&[]);
    // Or the far end's own memory of fragments is what fills up.
    test.world.world_ns.sysctl("ipv4/ipfrag_high_thresh", "268435456").unwrap();
    let (node, to): (Ipv4Addr, Ipv4Addr) = (NODE_V4.parse().unwrap(), "203.0.113.12".parse().unwrap());
    let packet = |id: u16, fragment: u16| {
        let header = V4 { protocol: 17, id, fragment, options: &[] };
        let part = if fragment & 0x1fff == 0 { datagram(9000, 7000, &[1; 24]) } else { vec![2; 32] };
        ipv4(node, to, &header, &part)
    };
    let sent = test.beside.fork(LIMIT, || {
        let socket = open(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        let first = (1..=20_000).map(|id| packet(id, 0x2000));
        // Of the last one no first fragment was sent.
        for packet in first.chain([1, 20_000, 30_000].map(|id| packet(id, 4))) {
            send(&socket, &packet, SocketAddr::new(to.into(), 0), 0)?;
        }
        Ok(())
    });
    sent.unwrap();
    let frames = test.world.sniffer.frames();
    let later: Vec<u16> = frames
        .iter()
        .filter(|frame| frame.destination == Some(to.into()) && frame.bytes[20..22] == [0, 4])
        .map(|frame| u16::from_be_bytes([frame.bytes[18], frame.bytes[19]]))
        .collect();
    assert_eq!(later, [20_000]);
    let status = test.daemon.status().unwrap();
    assert!(map(&status, "FRAGMENTS")["entries"].as_u64().unwrap() > 4096, "{status:#}");
    assert!(udp(&test.inside, "203.0.113.12:7000", 8000).unwrap().echoed, "in fragments, through a full table");
    assert_closed(&test);
}

/// Nobody reads the events, and more come than there is room for: packets are judged and names learned all the same, and the
/// next daemon tells how many events were lost.
#[test]
fn flooded_ring_loses_events_alone() {
    let mut test = governed(&[]);
    test.daemon.kill().unwrap();
    let denied: SocketAddr = DENIED.parse().unwrap();
    for (place, refused) in [(&test.inside, 60_000), (&test.beside, 0)] {
        let flood = place.fork(LIMIT, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            let refused = (1..=u16::MAX)
                .filter(|port| *port != 53)
                .filter(|port| socket.send_to(b"flood", (denied.ip(), *port)).is_err())
                .count();
            Ok(refused)
        });
        assert!(flood.unwrap() >= refused, "each is refused where it is sent");
    }
    let run = test.inside.run("getent", &["ahosts", "new.wild.example.com"], LIMIT).unwrap();
    assert!(run.ok(), "{run:?}");
    assert!(tcp(&test.inside, "203.0.113.30:7000").unwrap().echoed, "learned while events are lost");
    test.restart().unwrap();
    let status = test.daemon.status().unwrap();
    assert!(status["events_lost"].as_u64().unwrap() > 1000, "{}", status["events_lost"]);
    // The table of folded refusals is full too.
    let folds = map(&status, "DROP_FOLDS");
    assert!(folds["entries"].as_u64() > folds["capacity"].as_u64().map(|capacity| capacity / 2), "{folds}");
    assert_eq!(status["health"]["healthy"], true);
    assert_closed(&test);
}

/// More TCP connections to resolvers than are followed: the one that comes now is learned from.
#[test]
fn full_stream_table_follows_the_newest() {
    let test = governed(&[]);
    let streams: Vec<_> = (1..=5000)
        .map(|cookie| {
            let none = Address { high: 0, low: 0 };
            let (local, resolver, local_port, resolver_port) = (none, none, 0, 53);
            let key = PendingKey { cookie, local, resolver, local_port, resolver_port, id: 0, proto: 6, pad: 0 };
            (key, Stream { ticket: 0, base: 1, have: 0, want: 0, pad: 0 })
        })
        .collect();
    fill(&test, "STREAMS", &streams);
    let at = format!("@{DNS_V4}");
    let dig = ["+tcp", "+short", "+time=4", "+tries=1", &at, "b.wild.example.com", "A"];
    let run = test.inside.run("dig", &dig, LIMIT).unwrap();
    assert_eq!(run.stdout, "203.0.113.30\n", "{run:?}");
    assert!(tcp(&test.inside, "203.0.113.30:7000").unwrap().echoed, "learned over TCP");
    let streams = map(&test.daemon.status().unwrap(), "STREAMS").clone();
    assert!(streams["entries"].as_u64() > Some(2048), "{streams}");
    assert_closed(&test);
}

/// More CNAME targets than there is room for: the one that comes now may be asked for.
#[test]
fn full_alias_table_takes_the_newest() {
    let test = governed(&[]);
    test.world.dns.cname("alias.wild.example.com", 60, "target.elsewhere.test");
    test.world.dns.set_text("target.elsewhere.test", 60, &["198.51.100.90"]);
    test.world.dns.fault("alias.wild.example.com", Fault::NoChase);
    let epoch = epoch(&test) as u16;
    let expiry = boot_ticks() + 1000;
    let aliases: Vec<_> = (0..20_000_u32)
        .map(|number| {
            let mut key = AliasKey { epoch, name: [0; NAME_KEY] };
            let name = format!("tset.{number}n");
            key.name[..name.len()].copy_from_slice(name.as_bytes());
            let mut alias = Alias::default();
            alias.entry.slots[0] = Slot { class: 1, expiry }.pack();
            (key, alias)
        })
        .collect();
    fill(&test, "ALIASES", &aliases);
    let status = test.daemon.status().unwrap();
    assert!(map(&status, "ALIASES")["entries"].as_u64().unwrap() > 12_000, "{}", map(&status, "ALIASES"));
    let dig = |name: &str| test.inside.run("dig", &["+short", "+time=1", "+tries=1", name], LIMIT).unwrap().stdout;
    assert!(!dig("target.elsewhere.test").contains("198.51.100.90"), "asked for by nobody yet");
    assert!(dig("alias.wild.example.com").contains("target.elsewhere.test"));
    assert!(dig("target.elsewhere.test").contains("198.51.100.90"));
    assert!(tcp(&test.inside, "198.51.100.90:7000").unwrap().echoed);
    assert_closed(&test);
}

/// Learned addresses, as many as 10.0.0.0/8 has from `first` on.
fn addresses(epoch: u32, first: u32, count: u32) -> Vec<(AddressKey4, AddressEntry)> {
    let expiry = boot_ticks() + 1000;
    let mut entry = AddressEntry::default();
    entry.slots[0] = Slot { class: 1, expiry }.pack();
    (first..first + count)
        .map(|number| (AddressKey4 { address: (0x0a00_0000 + number).to_be_bytes(), epoch }, entry))
        .collect()
}

/// A full address table takes nothing new and says so; what is in it stays, exact names and flows go on, a policy that does
/// not fit beside it is refused and the old one stays; `--max-addresses` makes room without a gap.
#[test]
fn full_address_table_is_told_and_evicts_nothing() {
    let mut test = governed(&["--max-addresses", "1024"]);
    test.status_until(|status| map(status, "ADDRESSES_4")["entries"] == 3).unwrap();
    let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
    fill(&test, "ADDRESSES_4", &addresses(epoch(&test), 0, 1021));
    let status = test.daemon.status().unwrap();
    assert_eq!((&map(&status, "ADDRESSES_4")["entries"], &status["health"]["healthy"]), (&1024.into(), &false.into()));
    assert!(status["health"]["problems"].to_string().contains("ADDRESSES_4 is full"), "{status:#}");
    assert!(test.inside.run("getent", &["ahosts", "new.wild.example.com"], LIMIT).unwrap().ok());
    assert!(tcp(&test.inside, "203.0.113.30:7000").unwrap().refused(), "there is no room for it");
    let status = test.daemon.status().unwrap();
    assert!(status["learning"].to_string().contains("map-full"), "{status:#}");
    assert!(tcp(&test.inside, "203.0.113.80:7000").unwrap().echoed, "an exact name's");
    let more = test.world.dir().join("more.yaml");
    std::fs::write(&more, format!("{POLICY}  - {{name: more, to: [203.0.113.14], ports: [7000/tcp]}}\n")).unwrap();
    let run = test.daemon.egress(&["apply", &more.to_string_lossy()]).unwrap();
    assert!(!run.ok() && run.stderr.contains("--max-addresses"), "{run:?}");
    assert!(tcp(&test.inside, "203.0.113.14:7000").unwrap().refused());
    assert!(tcp(&test.inside, "203.0.113.80:7000").unwrap().echoed, "after the refusal");
    assert_closed(&test);

    test.daemon.stop().unwrap();
    let next = daemon(&test.world, &test.cgroup, POLICY, &["--max-addresses", "4096"]);
    test.follow(next);
    assert_eq!(held.say("still").unwrap(), "echo");
    let status = test.status_until(|status| map(status, "ADDRESSES_4")["entries"] == 3).unwrap();
    assert_eq!((&map(&status, "ADDRESSES_4")["capacity"], &status["health"]["healthy"]), (&4096.into(), &true.into()));
    assert!(test.inside.run("getent", &["ahosts", "new.wild.example.com"], LIMIT).unwrap().ok());
    assert!(tcp(&test.inside, "203.0.113.30:7000").unwrap().echoed);
    assert_closed(&test);
}

/// More was learned than fits twice: a policy that is changed in place keeps all of it; one that goes in beside it does so all the
/// same, exact names first, and the log says how many addresses it begins without.
#[test]
fn what_was_learned_does_not_keep_a_policy_out() {
    let test = governed(&["--max-addresses", "1024"]);
    test.status_until(|status| map(status, "ADDRESSES_4")["entries"] == 3).unwrap();
    let class = |test: &Governed| {
        test.world.mounts.run(|| {
            let map = sys::open_pin(&Pins::new(Path::new(BPFFS)).map("ADDRESSES_4")).unwrap();
            let table = Table::<AddressKey4, AddressEntry>::new("ADDRESSES_4", map).unwrap();
            let keys = table.keys().unwrap();
            let key = keys.iter().find(|key| key.address == [203, 0, 113, 80]).unwrap();
            Slot::unpack(table.get(key).unwrap().unwrap().slots[0]).class
        })
    };
    let class = class(&test);
    let mut learned = addresses(epoch(&test), 0, 900);
    for (_, entry) in &mut learned {
        entry.slots[0] = Slot { class, expiry: boot_ticks() + 1000 }.pack();
    }
    fill(&test, "ADDRESSES_4", &learned);
    let more = test.world.dir().join("more.yaml");
    let apply = |to: &str| {
        std::fs::write(&more, format!("{POLICY}  - {{name: more, to: [{to}], ports: [7000/tcp]}}\n")).unwrap();
        let run = test.daemon.egress(&["apply", &more.to_string_lossy()]).unwrap();
        assert!(run.ok(), "{run:?}");
        map(&test.daemon.status().unwrap(), "ADDRESSES_4")["entries"].as_u64().unwrap()
    };
    assert!(apply("203.0.113.14") > 900 && !test.daemon.output().contains("begins without"));
    apply("203.0.113.14, \"md-*.elsewhere.test\"");
    assert!(test.daemon.output().contains("begins without some learned addresses"), "{}", test.daemon.output());
    for to in ["203.0.113.14:7000", "203.0.113.80:7000", "203.0.113.10:7000"] {
        assert!(tcp(&test.inside, to).unwrap().echoed, "{to}");
    }
    let status = test.daemon.status().unwrap();
    let entries = map(&status, "ADDRESSES_4")["entries"].as_u64().unwrap();
    assert!((100..600).contains(&entries) && status["health"]["healthy"] == true, "{entries}");
    assert_closed(&test);
}
