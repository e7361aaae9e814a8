//! Kernels before 6.6, which have no tcx: clsact filters at the uplink (P1, P2). Run by `cargo xtask vm`.

use std::collections::HashSet;
use std::time::Duration;

use egress_tests::local_stubs::LocalStub;
use egress_tests::skip::kernel;
use egress_tests::{Cgroup, Daemon, Governed, Place, World, skip};

const LIMIT: Duration = Duration::from_secs(5);
const ALLOW: &str = "version: 1\nrules:\n  - name: open\n    to: [203.0.113.80]\n    ports: [443/tcp]\n";

/// Whether this kernel attaches by tcx; then the test is skipped.
fn has_tcx(test: &str) -> bool {
    let tcx = kernel() >= (6, 6);
    if tcx {
        skip(test, "this kernel has tcx; `cargo xtask vm --kernel 6.1` runs it");
    }
    tcx
}

fn filters(place: &Place) -> String {
    ["ingress", "egress"].map(|way| filters_of(place, "up0", way)).concat()
}

fn filters_of(place: &Place, interface: &str, way: &str) -> String {
    place.run("tc", &["filter", "show", "dev", interface, way], LIMIT).unwrap().stdout
}

fn at_uplink(governed: &Governed) -> Vec<bool> {
    let status = governed.daemon.status().unwrap();
    let points = status["attach_points"].as_array().unwrap_or_else(|| panic!("{status:#}"));
    points.iter().filter(|point| point["target"] == "up0").map(|point| point["present"].as_bool().unwrap()).collect()
}

#[test]
fn clsact_filters_are_replaced_in_place_seen_by_status_and_removed() {
    if has_tcx("clsact_filters_are_replaced_in_place_seen_by_status_and_removed") {
        return;
    }
    let mut governed = Governed::new(ALLOW).unwrap();
    let before = filters(&governed.beside);
    assert_eq!(before.matches("direct-action").count(), 2, "{before}");
    assert_eq!(at_uplink(&governed), [true, true]);

    // P2: datagrams of a process beside the cgroup meet the uplink's program alone; none leaves while daemons change.
    const FLOOD: &str = "import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try: s.sendto(b'x', ('198.51.100.9', 9))
    except OSError: pass
    time.sleep(0.0005)
";
    let mut flood = governed.beside.command(egress_tests::held::python());
    let mut flood = flood.args(["-c", FLOOD]).spawn().unwrap();
    governed.daemon.kill().unwrap();
    for _ in 0..2 {
        governed.restart().unwrap();
        governed.daemon.kill().unwrap();
    }
    governed.restart().unwrap();
    flood.kill().unwrap();
    flood.wait().unwrap();
    governed.assert_nothing_arrived("while daemons change", "198.51.100.9:9".parse().unwrap(), 17);
    let after = filters(&governed.beside);
    assert_eq!(after.matches("direct-action").count(), 2, "{after}");
    // Another program, in the same place.
    let ids = |text: &str| -> HashSet<String> {
        let words: Vec<_> = text.split_whitespace().collect();
        words.windows(2).filter(|pair| pair[0] == "id").map(|pair| pair[1].to_owned()).collect()
    };
    assert!(ids(&before).is_disjoint(&ids(&after)), "{before}\n{after}");

    // Somebody takes a filter away: status says so.
    let gone = governed.beside.run("tc", &["filter", "del", "dev", "up0", "egress"], LIMIT).unwrap();
    assert!(gone.ok(), "{gone:?}");
    let mut seen = at_uplink(&governed);
    seen.sort_unstable();
    assert_eq!(seen, [false, true]);

    assert!(governed.daemon.detach().unwrap().ok());
    let left = filters(&governed.beside);
    assert_eq!(left.matches("direct-action").count(), 0, "{left}");
}

/// P5: a query to a stub on the node is judged at loopback by the cgroup's hook, and refused ones are answered by the filter there: as
/// long as it stands, with and without a daemon.
#[test]
fn loopbacks_filter_answers_refused_queries_to_a_stub() {
    if has_tcx("loopbacks_filter_answers_refused_queries_to_a_stub") {
        return;
    }
    let world = World::new().unwrap();
    world.dns.set_text("www.example.com", 600, &["203.0.113.80"]);
    let cgroup = Cgroup::new("governed").unwrap();
    let _stub = LocalStub::dnsmasq(&world, &world.node().in_cgroup(&cgroup), "127.0.0.1").unwrap();
    let policy = "version: 1
dns: {resolvers: [127.0.0.1, 203.0.113.53]}
rules: [{name: web, to: [www.example.com], ports: [443/tcp]}]
";
    let daemon = Daemon::builder(&world).policy_text(policy).cgroup(&cgroup).resolvers(&[]).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let mut test = Governed { daemon, inside, beside, cgroup, world };
    // One line a filter has both.
    let ours = |test: &Governed| {
        let filters = filters_of(&test.beside, "lo", "egress");
        filters.lines().filter(|line| line.contains("denial_egress") && line.contains("direct-action")).count()
    };
    let ask = |test: &Governed, name: &str| {
        let args = ["@127.0.0.1", "+tries=1", "+time=20", "+noedns", name, "A"];
        test.inside.run("dig", &args, LIMIT * 10).unwrap().stdout
    };
    let answered = |test: &Governed, when: &str| {
        assert_eq!(ours(test), 1, "{when}");
        let (refused, allowed) = (ask(test, "forbidden.example.com"), ask(test, "www.example.com"));
        assert!(refused.contains("status: NXDOMAIN"), "{when}: {refused}");
        assert!(allowed.contains("203.0.113.80"), "{when}: {allowed}");
    };
    let again = |test: &mut Governed| {
        test.restart_with(|builder| builder.resolvers(&[])).unwrap();
    };
    answered(&test, "at first");
    test.daemon.kill().unwrap();
    answered(&test, "without a daemon");
    again(&mut test);
    answered(&test, "after a restart");
    let gone = test.beside.run("tc", &["filter", "del", "dev", "lo", "egress"], LIMIT).unwrap();
    assert!(gone.ok(), "{gone:?}");
    let status = test.daemon.status().unwrap();
    let points = status["attach_points"].as_array().unwrap();
    assert_eq!(points.iter().find(|point| point["target"] == "lo").unwrap()["present"], false, "{status:#}");
    test.daemon.kill().unwrap();
    again(&mut test);
    answered(&test, "put back by a start");
    test.world
        .sniffer
        .assert_none("a refused question", |frame| frame.bytes.windows(9).any(|bytes| bytes == b"forbidden"));
    assert_eq!(test.world.dns.count("forbidden.example.com"), 0);
    assert!(test.daemon.detach().unwrap().ok());
    assert_eq!(ours(&test), 0);
}
