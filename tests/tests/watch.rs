//! Policy files that change by themselves: in force without a word, or refused whole (P2, P7).

use std::{
    fs,
    io::Write as _,
    os::{fd::AsRawFd as _, unix::fs::symlink},
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use egress_tests::{
    Cgroup, Daemon, Governed, Held, Service, World,
    daemon::patient,
    probe::tcp,
    skip::skip,
    world::{DNS_V4, DNS_V6},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use serde_json::Value;

const OLD: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: two, to: [203.0.113.11], ports: [7000/tcp]}
";
/// Without `two`, with `three`.
const NEW: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: three, to: [203.0.113.12], ports: [7000/tcp]}
";
const ADDRESSES: [&str; 3] = ["203.0.113.10:7000", "203.0.113.11:7000", "203.0.113.12:7000"];
/// More than the daemon waits for silence.
const A_WHILE: Duration = Duration::from_millis(900);

fn world() -> World {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world
}

fn reached(test: &Governed) -> [bool; 3] {
    let inside = ADDRESSES.map(|to| tcp(&test.inside, to).unwrap().echoed);
    assert_eq!(inside, ADDRESSES.map(|to| tcp(&test.beside, to).unwrap().echoed));
    inside
}

fn problems(status: &Value) -> String {
    status["health"]["problems"].to_string()
}

/// Waits for the policy that `hash` is not.
fn changed(test: &Governed, hash: &Value) -> Value {
    test.status_until(|status| status["policy"]["hash"] != *hash).unwrap()["policy"]["hash"].clone()
}

/// Waits until the daemon has said so often that changed files wait for the end of a trial.
fn waits(test: &Governed, often: usize) {
    const WAIT: &str = "the policy files changed while a policy is on trial";
    let start = Instant::now();
    while test.daemon.output().matches(WAIT).count() < often {
        assert!(start.elapsed() < Duration::from_secs(8), "{}", test.daemon.output());
        sleep(Duration::from_millis(10));
    }
}

/// P7: written in place, renamed over, half written, wrong, removed: in force when it is whole and right, and else the old one.
#[test]
fn a_file_is_followed_whatever_happens_to_it() {
    let test = Governed::over(world(), OLD).unwrap();
    let file = test.world.dir().join("policy-0.yaml");
    let old = test.daemon.status().unwrap();
    let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();

    test.write_policy(NEW).unwrap();
    let new = changed(&test, &old["policy"]["hash"]);
    assert_eq!(reached(&test), [true, false, true]);
    let beside = test.world.dir().join("next");
    fs::write(&beside, OLD).unwrap();
    fs::rename(&beside, &file).unwrap();
    assert_eq!(changed(&test, &new), old["policy"]["hash"]);
    assert_eq!(reached(&test), [true, true, false]);

    // Half of it would be a policy too, without `three`.
    let before = test.daemon.status().unwrap();
    let mut writer = fs::File::create(&file).unwrap();
    let (first, rest) = NEW.split_at(NEW.find("  - {name: three").unwrap());
    writer.write_all(first.as_bytes()).unwrap();
    sleep(A_WHILE);
    let during = test.daemon.status().unwrap();
    assert_eq!((&during["generation"], &during["health"]), (&before["generation"], &before["health"]));
    writer.write_all(rest.as_bytes()).unwrap();
    drop(writer);
    assert_eq!(changed(&test, &old["policy"]["hash"]), new);

    let unhealthy = |status: &Value| status["health"]["healthy"] == false;
    test.write_policy(&NEW.replace("ports", "prots")).unwrap();
    let status = test.status_until(unhealthy).unwrap();
    assert!(problems(&status).contains("policy-0.yaml:3"), "{status}");
    assert!(test.daemon.output().contains("refused"), "{}", test.daemon.output());
    let told = test.event(|event| event.to_string().contains("policy-0.yaml:3")).unwrap();
    assert!(told.is_some_and(|event| event["applied"] == false));
    assert_eq!(reached(&test), [true, false, true]);

    fs::remove_file(&file).unwrap();
    let gone = |status: &Value| problems(status).contains("cannot read the policy");
    test.status_until(gone).unwrap();
    assert_eq!(reached(&test), [true, false, true]);
    // What is in force already is not written again, and ends the trouble.
    let generation = test.daemon.status().unwrap()["generation"].clone();
    test.write_policy(&format!("# the same\n{NEW}")).unwrap();
    let status = test.status_until(|status| !unhealthy(status)).unwrap();
    assert_eq!((&status["generation"], &status["policy"]["hash"]), (&generation, &new));
    assert_eq!(status["rules"][1]["source"].as_str().unwrap().rsplit(':').next(), Some("5"));
    assert_eq!(held.say("still").unwrap(), "echo");
}

/// As the kubelet changes a volume: a new folder, and `..data` renamed over to it (pkg/volume/util/atomic_writer.go).
fn publish(volume: &Path, number: u32, text: &str) {
    let folder = format!("..{number}");
    fs::create_dir(volume.join(&folder)).unwrap();
    fs::write(volume.join(&folder).join("policy.yaml"), text).unwrap();
    let _ = fs::remove_file(volume.join("..data_tmp"));
    symlink(&folder, volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if !volume.join("policy.yaml").is_symlink() {
        symlink("..data/policy.yaml", volume.join("policy.yaml")).unwrap();
    }
    if number > 0 {
        fs::remove_dir_all(volume.join(format!("..{}", number - 1))).unwrap();
    }
}

/// P2, P7: a Kubernetes ConfigMap, as a directory and as a file in it.
#[test]
fn a_config_map_is_followed() {
    for whole in [true, false] {
        let world = world();
        let volume = world.dir().join("volume");
        fs::create_dir(&volume).unwrap();
        publish(&volume, 0, OLD);
        let cgroup = Cgroup::new("governed").unwrap();
        let policy = if whole { volume.clone() } else { volume.join("policy.yaml") };
        let daemon = Daemon::builder(&world).policy(policy).cgroup(&cgroup).start().unwrap();
        let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
        let test = Governed { daemon, inside, beside, cgroup, world };
        let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
        let mut hash = test.daemon.status().unwrap()["policy"]["hash"].clone();
        for number in 1..5 {
            let new = number % 2 == 1;
            publish(&volume, number, if new { NEW } else { OLD });
            hash = changed(&test, &hash);
            assert_eq!(reached(&test), [true, !new, new], "swap {number}, as a directory: {whole}");
            assert_eq!(held.say("still").unwrap(), "echo");
        }
        publish(&volume, 5, "version: 1\nrules: [");
        test.status_until(|status| problems(status).contains("policy.yaml")).unwrap();
        assert_eq!(reached(&test), [true, true, false]);
    }
}

/// A file that changes while a policy is on trial is read if that goes, and is the older word if it is confirmed.
#[test]
fn a_file_waits_for_the_end_of_a_trial() {
    let test = Governed::over(world(), OLD).unwrap();
    let trial = test.world.dir().join("trial.yaml");
    fs::write(&trial, OLD.replace("203.0.113.11", "203.0.113.13")).unwrap();
    let trial = trial.to_string_lossy().into_owned();
    let run = test.daemon.egress(&["apply", &trial, "--confirm", "60s"]).unwrap();
    assert!(run.ok(), "{run:?}");
    let hash = test.daemon.status().unwrap()["policy"]["hash"].clone();
    test.write_policy(NEW).unwrap();
    waits(&test, 1);
    assert_eq!(test.daemon.status().unwrap()["policy"]["hash"], hash);
    assert!(test.daemon.egress(&["rollback"]).unwrap().ok());
    assert_eq!(reached(&test), [true, false, true]);

    assert!(test.daemon.egress(&["apply", &trial, "--confirm", "60s"]).unwrap().ok());
    test.write_policy(OLD).unwrap();
    waits(&test, 2);
    assert!(test.daemon.egress(&["confirm"]).unwrap().ok());
    sleep(A_WHILE);
    assert_eq!(test.daemon.status().unwrap()["policy"]["hash"], hash);
}

/// P7, P8: a file that nobody can read to its end is refused as any other, and holds up nothing.
#[test]
fn a_pipe_among_the_files_is_refused_and_waited_for_by_nobody() {
    let world = world();
    let directory = world.dir().join("policies");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("a.yaml"), OLD).unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let start = |policy: &Path| Daemon::builder(&world).policy(policy).cgroup(&cgroup);
    let daemon = start(&directory).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let pipe = directory.join("z.yaml");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    sleep(A_WHILE);
    let status = daemon.status().unwrap();
    assert!(problems(&status).contains("z.yaml`: it is no regular file"), "{status}");
    daemon.signal(Signal::SIGHUP).unwrap();
    let other = world.dir().join("other.yaml");
    fs::write(&other, NEW).unwrap();
    let run = daemon.egress(&["apply", &other.to_string_lossy()]).unwrap();
    assert!(run.ok(), "{run:?}");
    let refused = start(&directory).run_to_end(Duration::from_secs(10)).unwrap();
    assert!(refused.code() == Some(2) && refused.stderr.contains("it is no regular file"), "{refused:?}");
    let mut test = Governed { daemon, inside, beside, cgroup, world };
    assert_eq!(reached(&test), [true, false, true]);
    assert!(test.daemon.stop().unwrap().success(), "{}", test.daemon.output());
}

/// A policy from a pipe is read at the start, and not followed.
#[test]
fn a_policy_from_a_pipe_stays() {
    let world = world();
    let pipe = world.dir().join("pipe");
    mkfifo(&pipe, Mode::S_IRWXU).unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let to = pipe.clone();
    let writer = std::thread::spawn(move || fs::write(to, OLD).unwrap());
    let daemon = Daemon::builder(&world).policy(&pipe).cgroup(&cgroup).start().unwrap();
    writer.join().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let mut test = Governed { daemon, inside, beside, cgroup, world };
    sleep(A_WHILE);
    assert_eq!(test.daemon.status().unwrap()["health"]["healthy"], true);
    test.daemon.signal(Signal::SIGHUP).unwrap();
    test.status_until(|status| problems(status).contains("it is no regular file")).unwrap();
    assert_eq!(reached(&test), [true, true, false]);
    assert!(test.daemon.stop().unwrap().success(), "{}", test.daemon.output());
}

/// The system's resolvers count though there were none at the start, as early at boot; SIGHUP reads them too.
#[test]
fn a_resolv_conf_that_comes_later_counts() {
    let world = world();
    let sh = |script: &str| {
        let run = world.node().run("sh", &["-c", script], Duration::from_secs(5)).unwrap();
        assert!(run.ok(), "{run:?}");
    };
    // Nothing is left of /etc, for this world.
    sh("mount -t tmpfs tmpfs /etc");
    let cgroup = Cgroup::new("governed").unwrap();
    let own = OLD.replace("rules:", &format!("dns: {{resolvers: [{DNS_V4}]}}\nrules:"));
    let daemon = Daemon::builder(&world).policy_text(&own).resolvers(&[]).cgroup(&cgroup).start().unwrap();
    assert_eq!(daemon.status().unwrap()["health"]["healthy"], true);
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    sh(&format!("echo nameserver {DNS_V4} > /etc/resolv.conf"));
    let test = Governed { daemon, inside, beside, cgroup, world };
    test.reload(NEW, |status| status["health"]["healthy"] == true && status["rules"][1]["name"] == "three").unwrap();
    assert_eq!(reached(&test), [true, false, true]);
}

/// Resolvers that change while a policy is on trial count as soon as it is confirmed.
#[test]
fn resolvers_that_change_during_a_trial_count_afterwards() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let daemon = Daemon::builder(&world).policy_text(OLD).resolvers(&[]).cgroup(&cgroup).start().unwrap();
    let other = world.dir().join("other.yaml");
    fs::write(&other, NEW).unwrap();
    assert!(daemon.egress(&["apply", &other.to_string_lossy(), "--confirm", "60s"]).unwrap().ok());
    let trial = daemon.status().unwrap()["generation"].as_u64().unwrap();
    world.set_resolvers(&[DNS_V6]).unwrap();
    sleep(A_WHILE);
    assert_eq!(daemon.status().unwrap()["generation"], trial);
    assert!(daemon.egress(&["confirm"]).unwrap().ok());
    assert!(daemon.status().unwrap()["generation"].as_u64().unwrap() > trial);
}

/// P2, P6: a file system that answers nobody, as NFS without its server, holds up neither the daemon nor its end, and is told; what it
/// says counts when it answers.
#[test]
fn a_file_system_that_hangs_holds_up_nobody() {
    let fuse = match fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(fuse) => fuse,
        Err(error) => return skip("a_file_system_that_hangs_holds_up_nobody", &format!("/dev/fuse: {error}")),
    };
    let world = world();
    let directory = world.dir().join("policies");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("a.yaml"), OLD).unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let daemon = Daemon::builder(&world).policy(directory.join("a.yaml")).cgroup(&cgroup).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let mut test = Governed { daemon, inside, beside, cgroup, world };
    let hang = |fuse: &fs::File| {
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
        let flags = MsFlags::empty();
        test.world.mounts.run(|| mount(Some("hangs"), &directory, Some("fuse"), flags, Some(&*options)).unwrap());
    };
    let warned = |status: &Value| status["warnings"].to_string().contains("their file system may not answer");
    hang(&fuse);
    test.daemon.signal(Signal::SIGHUP).unwrap();
    sleep(A_WHILE);
    let other = test.world.dir().join("other.yaml");
    fs::write(&other, NEW).unwrap();
    let run = test.daemon.egress(&["apply", &other.to_string_lossy()]).unwrap();
    assert!(run.ok(), "{run:?}");
    assert_eq!(reached(&test), [true, false, true]);
    let until = Instant::now() + patient(Duration::from_secs(20));
    while !warned(&test.daemon.status().unwrap()) {
        assert!(Instant::now() < until, "{}", test.daemon.output());
        sleep(A_WHILE);
    }
    // Its end is an error of every call that waits; then the directory is there again.
    drop(fuse);
    test.world.mounts.run(|| umount2(&directory, MntFlags::MNT_DETACH).unwrap());
    test.daemon.signal(Signal::SIGHUP).unwrap();
    test.status_until(|status| !warned(status) && status["policy"]["applied"] == false).unwrap();
    assert_eq!(reached(&test), [true, true, false]);
    let fuse = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    hang(&fuse);
    test.daemon.signal(Signal::SIGHUP).unwrap();
    sleep(A_WHILE);
    assert!(test.daemon.stop().unwrap().success(), "{}", test.daemon.output());
}
