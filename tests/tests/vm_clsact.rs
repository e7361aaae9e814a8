//! Kernels before 6.6, which have no tcx: clsact filters at the uplink (P1, P2). Run by `cargo xtask vm`.

use std::collections::HashSet;
use std::time::Duration;

use egress_tests::skip::kernel;
use egress_tests::{Governed, Place, skip};

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
    ["ingress", "egress"]
        .map(|way| place.run("tc", &["filter", "show", "dev", "up0", way], LIMIT).unwrap().stdout)
        .concat()
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
