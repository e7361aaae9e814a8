//! The harness itself: what the kernel tests take for granted.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use egress_tests::resolvers::Resolver;
use egress_tests::stub::{self, Style};
use egress_tests::world::{DNS_V4, DNS_V6, NODE_V4, NODE_V6};
use egress_tests::{Cgroup, Fault, NetNs, Run, Service, World};

const LIMIT: Duration = Duration::from_secs(5);

/// What dig says, short form.
fn dig(world: &World, args: &[&str]) -> Run {
    let mut all = vec!["+short", "+time=1", "+tries=1"];
    all.extend(args);
    world.node().run("dig", &all, LIMIT).unwrap()
}

/// The port that an answer about `name` comes from.
fn answer_port(world: &World, name: &str) -> u16 {
    let query = egress_tests::model::dns_query(name);
    let from = world.node().fork(LIMIT, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        socket.send_to(&query, (DNS_V4, 53))?;
        Ok(socket.recv_from(&mut [0; 512])?.1.port())
    });
    from.unwrap()
}

#[test]
fn namespaces_and_cgroups_are_gone_after_a_panic() {
    let (paths, cgroup) = std::thread::spawn(|| {
        let world = World::with_pod().unwrap();
        let cgroup = Cgroup::new("panics").unwrap();
        let mut sleeper = world.node().in_cgroup(&cgroup).command("sleep").arg("60").spawn().unwrap();
        let paths =
            [world.node_ns.path(), world.world_ns.path(), world.pod_ns.as_ref().unwrap().path()].map(Path::to_owned);
        let cgroup_path = cgroup.path().to_owned();
        assert!(paths.iter().all(|path| path.exists()) && cgroup_path.exists());
        assert!(sleeper.try_wait().unwrap().is_none());
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = (world, cgroup);
            panic!("on purpose: the guards must clean up");
        }));
        assert!(panicked.is_err());
        sleeper.wait().unwrap();
        (paths, cgroup_path)
    })
    .join()
    .unwrap();
    for path in paths.iter().chain([&cgroup]) {
        assert!(!path.exists(), "{} is still there", path.display());
    }
}

#[test]
fn what_a_dead_process_left_is_swept() {
    // No process has a pid above the kernel's limit of 4,194,304.
    let left = egress_tests::cgroup::mount_point().unwrap().join("eg-99999999-0-dead");
    let files = std::env::temp_dir().join("eg-99999999-0-files-x");
    let namespace = Path::new("/run/netns/eg-99999999-0-node");
    for dir in [&left, &files] {
        std::fs::create_dir(dir).unwrap();
    }
    std::fs::create_dir_all("/run/netns").unwrap();
    std::fs::write(namespace, "").unwrap();
    let exe = std::env::current_exe().unwrap();
    // The sweep runs once per process, at the first guard: another process does it.
    let status = Command::new(exe).args(["--exact", "a_namespace_runs_what_it_is_given"]).status().unwrap();
    assert!(status.success());
    for path in [&left, &files, namespace] {
        assert!(!path.exists(), "{} is still there", path.display());
    }
}

#[test]
fn a_namespace_runs_what_it_is_given() {
    let ns = NetNs::new("alone").unwrap();
    assert!(ns.run(|| UdpSocket::bind("192.0.2.77:9")).is_err());
    ns.ip("addr add 192.0.2.77/24 dev lo").unwrap();
    assert!(ns.run(|| UdpSocket::bind("192.0.2.77:9")).is_ok());
    assert!(ns.ip("no such command").unwrap_err().to_string().contains("no such command"));
}

#[test]
fn a_fork_runs_in_the_cgroup_and_gives_its_result_back() {
    let world = World::new().unwrap();
    let (cgroup, place) = world.governed("fork").unwrap();
    let own = place.fork(LIMIT, || Ok(std::fs::read_to_string("/proc/self/cgroup")?)).unwrap();
    let name = cgroup.path().file_name().unwrap().to_string_lossy().into_owned();
    assert!(own.lines().any(|line| line.starts_with("0::") && line.ends_with(&name)), "{own}");
    let panicked = place.fork::<()>(LIMIT, || panic!("inside the child")).unwrap_err();
    assert!(panicked.to_string().contains("inside the child"), "{panicked}");
    let failed = place.fork::<()>(LIMIT, || anyhow::bail!("refused")).unwrap_err();
    assert_eq!(failed.to_string(), "refused");
    let slow = place.fork::<()>(Duration::from_millis(50), || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    assert!(slow.unwrap_err().to_string().contains("longer"));
}

#[test]
fn two_worlds_have_bpffs_of_their_own() {
    let (one, two) = (World::new().unwrap(), World::new().unwrap());
    let dir = "/sys/fs/bpf/egress";
    one.mounts.run(|| std::fs::create_dir(dir)).unwrap();
    assert!(one.mounts.run(|| Path::new(dir).exists()));
    assert!(!two.mounts.run(|| Path::new(dir).exists()));
    assert!(one.node().run("test", &["-d", dir], LIMIT).unwrap().ok());
}

#[test]
fn the_sniffer_sees_what_arrives_and_only_that() {
    let world = World::with_pod().unwrap();
    world.serve(Service::UdpEcho, "203.0.113.7:7000").unwrap();
    world.serve(Service::UdpEcho, "[2001:db8::7]:7000").unwrap();
    for (bind, to) in [("0.0.0.0:0", "203.0.113.7:7000"), ("[::]:0", "[2001:db8::7]:7000")] {
        let to: SocketAddr = to.parse().unwrap();
        for place in [world.node(), world.pod()] {
            world.sniffer.clear();
            world.sniffer.assert_none("nothing sent", |frame| frame.destination == Some(to.ip()));
            let answer = place.fork(LIMIT, || {
                let socket = UdpSocket::bind(bind)?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                socket.send_to(b"sesame", to)?;
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer)?;
                Ok(buffer[..length].to_vec())
            });
            assert_eq!(answer.unwrap(), b"sesame");
            let frames = world.sniffer.matching(Duration::ZERO, |frame| frame.goes_to(to.ip(), 17, Some(7000)));
            assert_eq!(frames.len(), 1, "{frames:?}");
            assert_eq!(frames[0].payload, b"sesame");
        }
    }
    assert_eq!(world.hits.all().len(), 4);
}

#[test]
#[should_panic(expected = "got out")]
fn assert_none_panics_when_a_packet_got_there() {
    let world = World::new().unwrap();
    let to: IpAddr = "203.0.113.9".parse().unwrap();
    let _ = world.node().run("ping", &["-c1", "-W1", "203.0.113.9"], LIMIT).unwrap();
    world.sniffer.assert_none("the ping", |frame| frame.goes_to(to, 1, None));
}

#[test]
fn a_second_uplink_carries_packets() {
    let world = World::new().unwrap();
    let name = world.add_uplink(1).unwrap();
    world.node_ns.ip(&format!("route add 203.0.113.44/32 via 198.18.1.1 dev {name}")).unwrap();
    let ping = world.node().run("ping", &["-c1", "-W1", "203.0.113.44"], LIMIT).unwrap();
    assert!(ping.ok(), "{ping:?}");
    let index = world.world_ns.ifindex("wup1").unwrap();
    let to = "203.0.113.44".parse().unwrap();
    let frames = world.sniffer.matching(Duration::ZERO, |frame| frame.goes_to(to, 1, None));
    assert_eq!(frames.iter().map(|frame| frame.ifindex).collect::<Vec<_>>(), [index]);
}

#[test]
fn curl_reaches_https_and_http_by_name() {
    let world = World::with_pod().unwrap();
    world.dns.cname("www.example.com", 20, "edge.example.net");
    world.dns.set_text("edge.example.net", 20, &["203.0.113.80", "2001:db8::80"]);
    world.serve_everywhere(Service::Https, 443).unwrap();
    world.serve_everywhere(Service::Http, 80).unwrap();
    let ca = world.ca_file();
    let ca = ca.to_str().unwrap();
    for place in [world.node(), world.pod()] {
        for family in ["-4", "-6"] {
            for url in ["https://www.example.com/", "http://www.example.com/"] {
                world.hits.clear();
                let run = place.run("curl", &["-sS", family, "--cacert", ca, url], LIMIT).unwrap();
                assert!(run.ok() && run.stdout == "ok\n", "{url} {family}: {run:?}");
                let hits = world.hits.all();
                assert_eq!(hits.len(), 1, "{hits:?}");
                assert_eq!(hits[0].name.as_deref(), Some("www.example.com"));
                assert_eq!(
                    hits[0].local.ip().to_string(),
                    if family == "-4" { "203.0.113.80" } else { "2001:db8::80" }
                );
            }
        }
    }
    // Without the authority curl refuses: the TLS is real.
    assert_eq!(world.node().run("curl", &["-sS", "https://www.example.com/"], LIMIT).unwrap().code(), Some(60));
}

#[test]
fn tcp_banner_and_ntp_answer() {
    let world = World::new().unwrap();
    world.serve(Service::TcpBanner, "203.0.113.90:9000").unwrap();
    world.serve(Service::Ntp, "203.0.113.123:123").unwrap();
    let banner = world.node().fork(LIMIT, || {
        let mut line = [0; 14];
        let mut stream = std::net::TcpStream::connect("203.0.113.90:9000")?;
        std::io::Read::read_exact(&mut stream, &mut line)?;
        Ok(String::from_utf8(line.to_vec())?)
    });
    assert_eq!(banner.unwrap(), egress_tests::servers::BANNER);
    let answer = world.node().fork(LIMIT, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("203.0.113.123:123")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut query = [0; 48];
        query[0] = 0x23;
        query[40..48].copy_from_slice(b"transmit");
        socket.send(&query)?;
        let mut answer = [0; 64];
        let length = socket.recv(&mut answer)?;
        Ok(answer[..length].to_vec())
    });
    let answer = answer.unwrap();
    assert_eq!((answer.len(), answer[0] & 7, &answer[24..32]), (48, 4, &b"transmit"[..]));
}

#[test]
fn dns_answers_what_it_was_told() {
    let world = World::new().unwrap();
    world.dns.cname("a.example.com", 5, "b.example.net");
    world.dns.set_text("b.example.net", 7, &["203.0.113.1", "203.0.113.2", "2001:db8::1"]);
    let chain = dig(&world, &["a.example.com"]);
    assert_eq!(chain.stdout, "b.example.net.\n203.0.113.1\n203.0.113.2\n");
    assert_eq!(dig(&world, &["+tcp", "AAAA", "b.example.net", &format!("@{DNS_V6}")]).stdout, "2001:db8::1\n");
    let full = world.node().run("dig", &["+noall", "+answer", "a.example.com"], LIMIT).unwrap().stdout;
    let ttls: Vec<&str> = full.lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(ttls, ["5", "7", "7"], "{full}");
    world.dns.fault("a.example.com", Fault::NoChase);
    assert_eq!(dig(&world, &["a.example.com"]).stdout, "b.example.net.\n");
    world.dns.fault("a.example.com", None);

    world.dns.set_text("*.wild.example.com", 5, &["203.0.113.3"]);
    assert_eq!(dig(&world, &["x.y.wild.example.com"]).stdout, "203.0.113.3\n");
    assert_eq!(dig(&world, &["wild.example.com"]).stdout, "");

    world.dns.rotate("b.example.net");
    let mut turns: Vec<String> = (0..2).map(|_| dig(&world, &["b.example.net"]).stdout).collect();
    turns.sort();
    assert_eq!(turns, ["203.0.113.1\n", "203.0.113.2\n"]);

    assert_eq!(world.dns.count("wild.example.com"), 1);
    assert!(world.dns.asked().iter().any(|asked| asked.tcp && asked.name == "b.example.net"));
    world.dns.remove("a.example.com");
    let status = world.node().run("dig", &["a.example.com"], LIMIT).unwrap().stdout;
    assert!(status.contains("NXDOMAIN"), "{status}");
}

#[test]
fn dns_fails_as_it_was_told() {
    let world = World::new().unwrap();
    world.dns.set_text("x.example.com", 5, &["203.0.113.1"]);
    let says = |fault: Fault, text: &str| {
        world.dns.fault("x.example.com", fault.clone());
        let run = world.node().run("dig", &["+time=1", "+tries=1", "x.example.com"], LIMIT).unwrap();
        let all = run.stdout + &run.stderr;
        assert!(all.contains(text), "{fault:?}: no `{text}` in {all}");
    };
    says(Fault::ServFail, "status: SERVFAIL");
    says(Fault::NxDomain, "status: NXDOMAIN");
    says(Fault::Refused, "status: REFUSED");
    says(Fault::Empty, "ANSWER: 0");
    says(Fault::Silent, "timed out");
    says(Fault::WrongId, "ID mismatch");
    says(Fault::WrongQuestion("y.example.com".into()), "Question section mismatch");
    // dig's socket is connected: the kernel keeps a wrong source from it. An unconnected one sees the answer.
    says(Fault::WrongPort, "timed out");
    assert_ne!(answer_port(&world, "x.example.com"), 53);
    says(Fault::Truncated, "retrying in TCP mode");
    let poison = egress_tests::dns::address_record("bank.example", 60, "203.0.113.66".parse().unwrap()).unwrap();
    says(Fault::Additional(vec![poison.clone()]), "ADDITIONAL SECTION:\nbank.example.");
    says(Fault::Appended(vec![poison]), "IN\tA\t203.0.113.66");
    world.dns.fault("x.example.com", None);
    assert_eq!(answer_port(&world, "x.example.com"), 53);
    world.dns.delay("x.example.com", Duration::from_millis(300));
    let run = dig(&world, &["x.example.com"]);
    assert!(run.took >= Duration::from_millis(300) && run.stdout == "203.0.113.1\n", "{run:?}");
    world.dns.fault_everywhere(Fault::Silent);
    assert!(!dig(&world, &["other.example.com"]).ok());
}

#[test]
fn a_thousand_addresses_come_over_tcp() {
    let world = World::new().unwrap();
    let many: Vec<IpAddr> = (0..1000_u32).map(|n| std::net::Ipv4Addr::from(0x1400_0001 + n).into()).collect();
    world.dns.set("many.example.com", 60, &many);
    let run = dig(&world, &["many.example.com"]);
    assert_eq!(run.stdout.lines().filter(|line| line.starts_with("20.")).count(), 1000, "{}", run.stderr);
    let ways: Vec<bool> = world.dns.asked().iter().map(|asked| asked.tcp).collect();
    assert_eq!(ways, [false, true]);
}

#[test]
fn real_resolvers_forward_to_it() {
    let world = World::new().unwrap();
    world.dns.cname("www.example.com", 20, "edge.example.net");
    world.dns.set_text("edge.example.net", 20, &["203.0.113.80"]);
    let _unbound = Resolver::unbound(&world, "203.0.113.54").unwrap();
    let _dnsmasq = Resolver::dnsmasq(&world, "203.0.113.55").unwrap();
    for address in ["203.0.113.54", "203.0.113.55"] {
        world.dns.forget();
        world.set_resolvers(&[address]).unwrap();
        let run = world.node().run("getent", &["ahostsv4", "www.example.com"], LIMIT).unwrap();
        assert!(run.stdout.starts_with("203.0.113.80 "), "{address}: {run:?}");
        assert!(world.dns.count("www.example.com") >= 1);
    }
}

#[test]
fn the_node_has_its_addresses_and_resolver() {
    let world = World::new().unwrap();
    let addresses = world.node().run("ip", &["-brief", "addr", "show", "up0"], LIMIT).unwrap().stdout;
    assert!(addresses.contains(NODE_V4) && addresses.contains(NODE_V6), "{addresses}");
    let conf = world.node().run("cat", &["/etc/resolv.conf"], LIMIT).unwrap().stdout;
    assert!(conf.contains(DNS_V4), "{conf}");
    assert!(!std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default().contains(DNS_V4));
}

#[test]
fn the_nodes_sysfs_shows_its_own_interfaces_and_the_cgroups() {
    let world = World::new().unwrap();
    let mac = world.node().run("cat", &["/sys/class/net/up0/address"], LIMIT).unwrap();
    let bytes: Vec<String> = world.node_ns.mac("up0").unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(mac.stdout.trim(), bytes.join(":"), "{mac:?}");
    let cgroups = egress_tests::cgroup::mount_point().unwrap().join("cgroup.controllers");
    assert!(world.node().run("test", &["-e", cgroups.to_str().unwrap()], LIMIT).unwrap().ok());
}

#[test]
fn stub_resolvers_ask_as_go_and_musl_do() {
    let world = World::new().unwrap();
    world.dns.cname("www.example.com", 20, "edge.example.net");
    world.dns.set_text("edge.example.net", 20, &["203.0.113.80", "2001:db8::80"]);
    let server: SocketAddr = SocketAddr::new(DNS_V4.parse().unwrap(), 53);
    for (style, sockets) in [(Style::Go, 2), (Style::Musl, 1)] {
        world.dns.forget();
        let found = world.node().fork(LIMIT, || stub::resolve(style, server, "www.example.com")).unwrap();
        assert_eq!(found, ["203.0.113.80", "2001:db8::80"].map(|a| a.parse::<IpAddr>().unwrap()));
        let mut ports: Vec<u16> = world.dns.asked().iter().map(|asked| asked.from.port()).collect();
        ports.dedup();
        assert_eq!((world.dns.asked().len(), ports.len()), (2, sockets), "{style:?}");
    }
    world.dns.fault("www.example.com", Fault::Truncated);
    let found = world.node().fork(LIMIT, || stub::resolve(Style::Go, server, "www.example.com")).unwrap();
    assert_eq!(found.len(), 2);
    world.dns.fault("www.example.com", Fault::WrongId);
    assert!(world.node().fork(LIMIT, || stub::resolve(Style::Go, server, "www.example.com")).is_err());
    world.dns.fault("www.example.com", Fault::NxDomain);
    let error = world.node().fork(LIMIT, || stub::resolve(Style::Musl, server, "www.example.com")).unwrap_err();
    assert!(error.to_string().contains("NXDomain"), "{error}");
}

/// A daemon that does not end is told of with where its threads are.
#[test]
fn a_daemon_that_does_not_end_is_told_of_by_its_threads() {
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    let start = std::time::Instant::now();
    let mut told = String::new();
    // Until the new program runs.
    while !told.starts_with("sleep: state S") && start.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(5));
        told = egress_tests::threads::threads(child.id());
    }
    drop((child.kill(), child.wait()));
    assert!(told.starts_with("sleep: state S") && told.contains("waits in "), "{told}");
}
