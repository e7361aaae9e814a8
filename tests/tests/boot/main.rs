//! `deploy/systemd/egress.service` under a systemd that is the first process of namespaces of its own (P2, P8), and what the
//! daemon says to a service manager, without one.

mod machine;
mod manager;

use std::time::Duration;

use egress_tests::probe::tcp;

use machine::{Machine, ready};

/// What `systemctl is-active` says of a unit that ended as it should.
const DISABLED: &str = "inactive";
const ALLOWED: &str = "203.0.113.10:7000";
const DENIED: &str = "198.51.100.77:7000";
/// What a busy machine may take to start the daemon anew: the watchdog's 4 s, the pause of 1 s, and the start.
const PATIENCE: Duration = Duration::from_secs(30);

/// P2, P8: at boot the unit is in force before `network-pre.target`; a daemon that hangs or is killed is started again, a
/// reload takes the policy's word, `stop` leaves enforcement, and a disabled boot removes it and is not tried again. A
/// forbidden packet is looked for in the world from the boot on to the disabling.
#[test]
fn the_unit_holds_from_before_the_network_until_it_is_disabled() {
    let Some(world) = ready("the_unit_holds_from_before_the_network_until_it_is_disabled") else { return };
    let machine = Machine::boot(&world);
    machine.until("the unit is active", || machine.property("ActiveState") == "active");

    // Ordered before the network, by when each came to be.
    let at = |unit: &str| machine.of(unit, "ActiveEnterTimestampMonotonic").parse::<u64>().unwrap();
    assert!(0 < at("egress.service") && at("egress.service") <= at("network-pre.target"), "{}", machine.log());
    assert_eq!(machine.of("network-pre.target", "ActiveState"), "active");

    // A service's drop is told with its unit.
    assert!(!machine.systemctl(&["start", "foo.service"]).ok(), "foo.service fails: it is refused");
    let events = machine.egress(&["events", "--dropped", "--json"]).stdout;
    assert!(events.lines().any(|line| line.contains("system.slice/foo.service")), "{events}");
    let beside = world.node();
    assert!(tcp(&beside, ALLOWED).unwrap().echoed && !tcp(&beside, DENIED).unwrap().echoed);

    // Hung: the watchdog ends it. Killed: it is started again. Either way nothing passes meanwhile.
    for (signal, what) in [("STOP", "hung"), ("KILL", "killed")] {
        let before = machine.property("MainPID");
        assert!(machine.sh(&format!("kill -{signal} {before}")).ok());
        assert!(!tcp(&beside, DENIED).unwrap().echoed, "{what}");
        let again = |pid: String| pid != before && pid != "0";
        machine.until(what, || machine.property("ActiveState") == "active" && again(machine.property("MainPID")));
    }
    assert!(machine.property("NRestarts").parse::<u32>().unwrap() >= 2, "{}", machine.log());

    // Reload: SIGHUP, and the new policy is in force.
    let policy = machine::POLICY.replace("203.0.113.10", "203.0.113.11");
    machine.write("/etc/egress/policy.d/policy.yaml", &policy);
    assert!(machine.systemctl(&["reload", "egress.service"]).ok());
    machine.until("the reload", || tcp(&beside, "203.0.113.11:7000").unwrap().echoed);
    assert!(!tcp(&beside, ALLOWED).unwrap().echoed);

    assert!(!machine.log().contains("Read-only"), "it can keep its state: {}", machine.log());
    assert!(!machine.log().contains("cannot follow"), "it has the capabilities that a start takes: {}", machine.log());

    // Stopped: enforcement stays.
    assert!(machine.systemctl(&["stop", "egress.service"]).ok());
    assert_eq!(machine.property("Result"), "success", "{}", machine.log());
    assert!(!tcp(&beside, ALLOWED).unwrap().echoed && tcp(&beside, "203.0.113.11:7000").unwrap().echoed);
    // A wrong policy: a failure, not tried again, and what was in force stays.
    machine.write("/etc/egress/policy.d/policy.yaml", "version: 1\nrules: [{name: wrong}]\n");
    assert!(!machine.systemctl(&["start", "egress.service"]).ok());
    let seen = ["ExecMainStatus", "NRestarts", "ActiveState"].map(|name| machine.property(name));
    assert_eq!(seen, ["2", "0", "failed"], "{}", machine.log());
    assert!(!tcp(&beside, ALLOWED).unwrap().echoed && tcp(&beside, "203.0.113.11:7000").unwrap().echoed);
    machine.write("/etc/egress/policy.d/policy.yaml", &policy);
    let denied = "198.51.100.77".parse().ok();
    world.sniffer.assert_none("from boot to stop", |frame| frame.destination == denied);

    // Disabled by the kernel's command line, then by the file: nothing is enforced, and nothing is tried again.
    let assert_disabled = |how: &str| {
        let _ = machine.systemctl(&["start", "egress.service"]);
        // Longer than RestartSec.
        std::thread::sleep(Duration::from_millis(1500));
        let seen = ["ExecMainStatus", "NRestarts", "ActiveState"].map(|name| machine.property(name));
        assert_eq!(seen, ["1", "0", DISABLED], "{how}: {}", machine.log());
        assert!(tcp(&beside, DENIED).unwrap().echoed, "{how}: {}", machine.log());
    };
    machine.command_line("quiet egress=off");
    assert_disabled("egress=off");
    machine.command_line("quiet");
    assert!(machine.systemctl(&["start", "egress.service"]).ok(), "{}", machine.log());
    assert!(!tcp(&beside, DENIED).unwrap().echoed, "enforced again without the option");
    assert!(machine.systemctl(&["stop", "egress.service"]).ok());
    machine.write("/etc/egress/disabled", "");
    assert_disabled("the file");
}
