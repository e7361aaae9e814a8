//! The Debian package of `cargo xtask package`: what is in it, that dpkg takes it, and that its scripts keep enforcement (P2).

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use egress_tests::{
    Daemon, Governed, Held, Place, Run, Service, World, daemon,
    held::{FLOOD, python},
    mntns::BPFFS,
    probe::tcp,
};

const LIMIT: Duration = Duration::from_secs(60);
const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
";
/// Notes what it is asked, and says that the unit is active.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$@\" >> \"${0%/*}/asked\"\n";

/// Runs a command that must end well.
fn run(place: &Place, program: &str, args: &[&str]) -> Run {
    let run = place.run(program, args, LIMIT).unwrap();
    assert!(run.ok(), "{program} {args:?}: {run:?}");
    run
}

/// The package of the binary under test, under this version.
fn package(place: &Place, version: &str, out: &Path) -> PathBuf {
    let built = daemon::binary().unwrap();
    let xtask = built.with_file_name("xtask");
    assert!(xtask.exists(), "{} is not built: run `cargo xtask test`", xtask.display());
    let manifest = format!("CARGO_MANIFEST_DIR={}/../xtask", env!("CARGO_MANIFEST_DIR"));
    let xtask = xtask.to_string_lossy();
    let out = out.to_string_lossy();
    let args = [&manifest, &*xtask, "package", "--debug", "--no-build", "--version", version, "--out", &out];
    let said = run(place, "env", &args).stdout;
    PathBuf::from(said.lines().last().unwrap())
}

/// What is in it is what it should be, and works from where it is unpacked.
#[test]
fn the_package_holds_what_is_needed() {
    let world = World::new().unwrap();
    let (node, dir) = (world.node(), world.dir().to_owned());
    let package = package(&node, "1.2.3", &dir).to_string_lossy().into_owned();
    let field = |name: &str| run(&node, "dpkg-deb", &["--field", &package, name]).stdout.trim().to_owned();
    assert_eq!((field("Package"), field("Version")), ("egress".to_owned(), "1.2.3".to_owned()));
    assert!(field("Depends").contains("libc6 (>= 2."), "{}", field("Depends"));
    assert!(field("Installed-Size").parse::<u64>().unwrap() > 1000);

    let root = dir.join("unpacked");
    run(&node, "dpkg-deb", &["-R", &package, &root.to_string_lossy()]);
    let text = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(text("usr/lib/systemd/system/egress.service"), include_str!("../../deploy/systemd/egress.service"));
    assert!(text("usr/share/doc/egress/docs/operations.md").contains("egress detach"));
    assert!(text("usr/share/doc/egress/copyright").contains("Apache License"));
    assert!(text("usr/share/bash-completion/completions/egress").contains("detach"));
    assert!(text("usr/share/zsh/vendor-completions/_egress").starts_with("#compdef egress"));
    assert!(text("usr/share/fish/vendor_completions.d/egress.fish").contains("complete -c egress"));
    assert_eq!(fs::read_dir(root.join("etc/egress/policy.d")).unwrap().count(), 0);
    for page in ["egress.1", "egress-run.1", "egress-apply.1"] {
        let page = root.join(format!("usr/share/man/man1/{page}.gz"));
        assert!(run(&node, "gzip", &["-dc", &page.to_string_lossy()]).stdout.contains(".TH"), "{page:?}");
    }
    for script in ["postinst", "prerm", "postrm"] {
        let script = root.join("DEBIAN").join(script);
        assert_eq!(script.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        run(&node, "sh", &["-n", &script.to_string_lossy()]);
    }
    // All of root, nothing that others may write, whatever made it.
    let list = run(&node, "dpkg-deb", &["--contents", &package]).stdout;
    for line in list.lines() {
        let mode = line.split_whitespace().next().unwrap();
        assert!(line.contains(" root/root ") && matches!(mode, "drwxr-xr-x" | "-rwxr-xr-x" | "-rw-r--r--"), "{line}");
    }
    let policies = root.join("usr/share/egress/policies");
    let egress = root.join("usr/bin/egress").to_string_lossy().into_owned();
    run(&node, &egress, &["check", &policies.join("aks-required.yaml").to_string_lossy()]);
}

/// dpkg installs it, upgrades it, removes it and purges it, below a root of its own.
#[test]
fn dpkg_takes_it_through_its_life() {
    let world = World::new().unwrap();
    let (node, dir) = (world.node(), world.dir().to_owned());
    let root = dir.join("root");
    fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = |args: &[&str]| {
        let base = [&format!("--root={}", root.display()), "--force-script-chrootless", "--force-depends"];
        run(&node, "dpkg", &[&base[..], args].concat())
    };
    for version in ["1.0.0", "1.0.1"] {
        let package = package(&node, version, &dir);
        dpkg(&["--install", &package.to_string_lossy()]);
        fs::remove_file(package).unwrap();
        let status = dpkg(&["--status", "egress"]).stdout;
        assert!(status.contains("install ok installed") && status.contains(&format!("Version: {version}")), "{status}");
    }
    assert!(root.join("usr/bin/egress").exists());
    fs::write(root.join("etc/egress/policy.d/mine.yaml"), POLICY).unwrap();
    dpkg(&["--remove", "egress"]);
    assert!(!root.join("usr/bin/egress").exists());
    dpkg(&["--purge", "egress"]);
    // What the operator wrote is the operator's.
    assert!(root.join("etc/egress/policy.d/mine.yaml").exists());
}

/// P2: the scripts ask for nothing that opens a gap: an upgrade restarts, a removal stops and leaves enforcement on and says so,
/// a purge ends it. systemd is played by the test: what it does with the unit is in `boot`.
#[test]
fn its_scripts_keep_enforcement_until_it_is_purged() {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    let mut test = Governed::over(world, POLICY).unwrap();
    let stub = test.world.dir().join("stub");
    fs::create_dir(&stub).unwrap();
    fs::write(stub.join("systemctl"), SYSTEMCTL).unwrap();
    fs::set_permissions(stub.join("systemctl"), fs::Permissions::from_mode(0o755)).unwrap();
    run(&test.beside, "mkdir", &["-p", "/run/systemd/system"]);
    let state = test.world.dir().join("state");
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/debian");
    let node = test.world.node();
    let script = |name: &str, args: &[&str]| {
        let _ = fs::remove_file(stub.join("asked"));
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", stub.display());
        let (bpffs, state) = (format!("EGRESS_BPFFS={BPFFS}"), format!("EGRESS_STATE={}", state.display()));
        let file = scripts.join(name).to_string_lossy().into_owned();
        let run = run(&node, "env", &[&[&*path, &bpffs, &state, "sh", &file], args].concat());
        (fs::read_to_string(stub.join("asked")).unwrap_or_default(), run.stderr)
    };
    let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
    test.world.sniffer.clear();
    let mut pump = test.beside.command(python()).args(["-c", FLOOD]).stdin(Stdio::null()).spawn().unwrap();
    let denied = "198.51.100.77".parse().ok();

    // The first installation touches nothing that runs.
    assert_eq!(script("postinst", &["configure", ""]).0, "daemon-reload\n");
    // An upgrade: the old daemon goes on until the new files are there, then it is restarted.
    assert_eq!(script("prerm", &["upgrade", "1.0.1"]).0, "");
    let asked = script("postinst", &["configure", "1.0.0"]).0;
    assert_eq!(asked, "daemon-reload\n--quiet is-active egress.service\nrestart egress.service\n");
    test.daemon.stop().unwrap();
    test.restart().unwrap();
    assert_eq!(held.say("upgraded").unwrap(), "echo");
    // A removal.
    let (asked, said) = script("prerm", &["remove"]);
    assert_eq!(asked, "disable --now egress.service\n");
    assert!(said.contains("enforcement STAYS ON") && said.contains(&format!("rm -r {BPFFS}/egress")), "{said}");
    test.daemon.stop().unwrap();
    assert_eq!(script("postrm", &["remove"]).0, "daemon-reload\n");
    assert_eq!(held.say("removed").unwrap(), "echo");
    assert!(tcp(&test.inside, "203.0.113.11:7000").unwrap().refused());
    test.world.sniffer.assert_none("a packet under the package's scripts", |frame| frame.destination == denied);
    assert!(pump.try_wait().unwrap().is_none());
    drop((pump.kill(), pump.wait()));
    // A purge.
    let (_, said) = script("postrm", &["purge"]);
    assert!(said.contains("enforcement is off"), "{said}");
    assert!(tcp(&test.inside, "203.0.113.11:7000").unwrap().echoed);
    assert!(!state.exists() && Daemon::builder(&test.world).policy_file(0).exists());
}
