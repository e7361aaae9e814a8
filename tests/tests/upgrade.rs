//! Another version of egress takes over: what it finds gives way after its own programs are in force (P2).

use std::{process::Stdio, time::Duration};

use egress_tests::{
    Governed, Held, Service, World,
    held::{FLOOD, python},
    mntns::BPFFS,
    probe::tcp,
};
use serde_json::Value;

const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
";
const LIMIT: Duration = Duration::from_secs(5);

fn links(status: &Value) -> Vec<Value> {
    let points = status["attach_points"].as_array().unwrap().iter();
    // A clsact filter (before 6.6) is replaced in its place, and is no link. An LSM link takes no other program: a new one is pinned
    // over it.
    let points = points.filter(|point| !point["hook"].as_str().unwrap().starts_with("lsm_"));
    points.map(|point| point["link_id"].clone()).filter(|link| !link.is_null()).collect()
}

fn versions(test: &Governed) -> String {
    test.beside.run("ls", &[&format!("{BPFFS}/egress")], LIMIT).unwrap().stdout
}

/// P2: over an older version's and a newer one's pins, and over a start that is killed on the way, nothing forbidden
/// leaves and an allowed connection goes on; then the links of the other version are gone, and the log says what stayed behind.
/// The same version's links are kept: their programs are replaced in place.
#[test]
fn another_versions_programs_give_way_after_the_new_ones_are_in_force() {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let mut test = Governed::over(world, POLICY).unwrap();
    let ours = versions(&test).trim().to_owned();
    let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
    test.world.sniffer.clear();
    let mut pumps: Vec<_> = [&test.inside, &test.beside]
        .iter()
        .map(|place| place.command(python()).args(["-c", FLOOD]).stdin(Stdio::null()).spawn().unwrap())
        .collect();
    let denied = "198.51.100.77".parse().ok();
    for (other, crashes) in [("v1", 0), ("v999", 0), ("v1", 3)] {
        let before = test.daemon.status().unwrap();
        test.daemon.kill().unwrap();
        // The links go on under another version's name.
        let run =
            test.beside.run("mv", &[&format!("{BPFFS}/egress/{ours}"), &format!("{BPFFS}/egress/{other}")], LIMIT);
        assert!(run.as_ref().unwrap().ok(), "{run:?}");
        for crash in 0..crashes {
            let builder = egress_tests::Daemon::builder(&test.world);
            let file = builder.policy_file(0);
            let daemon = builder.policy(file).cgroup(&test.cgroup).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(120 + 150 * crash));
            daemon.crash().unwrap();
        }
        test.restart().unwrap();
        assert_eq!(held.say("still").unwrap(), "echo", "{other}");
        test.world.sniffer.assert_none("a packet while versions change", |frame| frame.destination == denied);
        let after = test.daemon.status().unwrap();
        assert!(links(&after).iter().all(|link| !links(&before).contains(link)), "{after}");
        assert_eq!((versions(&test).trim(), &after["health"]["healthy"]), (ours.as_str(), &Value::Bool(true)));
        if crashes == 0 {
            let output = test.daemon.output();
            assert!(output.contains("gave way") && output.contains("names, flows and counters"), "{output}");
            // A downgrade says that it is one, and what it will not do.
            let downgrade = output.contains("this is a downgrade") && output.contains("takes nothing over");
            assert_eq!(downgrade, other == "v999", "{output}");
        }
    }
    let before = test.daemon.status().unwrap();
    test.daemon.kill().unwrap();
    test.restart().unwrap();
    assert_eq!(links(&test.daemon.status().unwrap()), links(&before));
    assert!(pumps.iter_mut().all(|pump| pump.try_wait().unwrap().is_none()), "a pump ended early");
    pumps.iter_mut().for_each(|pump| drop((pump.kill(), pump.wait())));
    test.world.sniffer.assert_none("a packet while versions change", |frame| frame.destination == denied);
    // Nothing of the others judges any more: what the policy allows from now on passes.
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().refused());
    test.reload(&POLICY.replace("203.0.113.10", "203.0.113.12"), |status| status["generation"] != before["generation"])
        .unwrap();
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().echoed);
    assert!(tcp(&test.beside, "203.0.113.12:7000").unwrap().echoed);
}
