//! The system packages that the tests and the demo use.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Outcome, begin};
use crate::place::Place;
use crate::run;

/// Debian's name of each package, and what it is for.
pub const PACKAGES: &[(&str, &str)] = &[
    ("bind9-dnsutils", "dig, as a client that asks a resolver of its own"),
    ("busybox-static", "the one program of the containers under test"),
    ("chromium-headless-shell", "a browser that reads the report"),
    ("crun", "makes a container by hand, as runc does"),
    ("curl", "the client of the demo's HTTP and HTTPS rows"),
    ("dnsmasq-base", "a resolver under test"),
    ("fonts-dejavu-core", "the letters in the bench's plots"),
    ("g++", "builds libFuzzer"),
    ("gcc", "builds the clients that use glibc's and c-ares' resolvers"),
    ("golang-go", "builds the client that uses Go's own resolver"),
    ("iperf3", "the bench's TCP stream"),
    ("iproute2", "ip: network namespaces and veth pairs; tc"),
    ("ipset", "what the bench compares with, with iptables"),
    ("iptables", "what the bench compares with"),
    ("iputils-ping", "ping: ICMP echo, which the policy judges too"),
    ("libc-ares-dev", "c-ares, a client's resolver library"),
    ("libc6-dev", "headers for the clients in C"),
    ("libfaketime", "steps the daemon's wall clock in the tests"),
    ("librsvg2-bin", "rsvg-convert: the bench's plots as PNG"),
    ("libsystemd-shared", "what systemd-resolved needs, which is unpacked and not installed"),
    ("musl-tools", "builds the client that uses musl's resolver"),
    ("nftables", "nft: service addresses, translated to a resolver's; what the bench compares with"),
    ("podman", "makes a container, as people do"),
    ("procps", "ps and sysctl in the tests"),
    ("prometheus", "a Prometheus that scrapes the metrics, and promtool"),
    ("python3", "a client with a resolver library of its own kind"),
    ("runc", "makes a container by hand"),
    ("systemd", "started as the first process of namespaces: the unit in deploy/"),
    ("tmux", "a terminal for the tests of interactive commands"),
    ("unbound", "a resolver under test"),
    ("util-linux", "nsenter, unshare and setpriv"),
];

/// What `cargo xtask vm` needs besides; installed when it is first called, since the emulator is large.
pub const VM_PACKAGES: &[(&str, &str)] = &[
    ("busybox-static", "the virtual machine's first programs"),
    ("cpio", "packs them"),
    ("kmod", "the kernel's modules and what each needs"),
    ("qemu-system-x86", "the emulator"),
    ("wireguard-tools", "wg: a tunnel as the uplink"),
    ("xz-utils", "unpacks the modules"),
];

/// Whether dpkg has it installed; `None` where there is no dpkg.
pub fn installed(package: &str) -> Option<bool> {
    let output =
        Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output().ok()?;
    Some(output.status.success() && output.stdout == b"installed")
}

pub fn ensure(place: &Place, packages: &[(&'static str, &str)]) -> Result<Outcome> {
    let mut missing = Vec::new();
    for &(package, _) in packages {
        match installed(package) {
            Some(true) => {}
            Some(false) => missing.push(package),
            None => bail!("there is no dpkg here; install what gives {} yourself", names(packages)),
        }
    }
    if missing.is_empty() {
        return Ok(Outcome::There(format!("all {}", packages.len())));
    }
    if !is_root() {
        bail!("needs root; run `apt-get install --no-install-recommends {}` as root", missing.join(" "));
    }
    begin("packages", &format!("installing {}", missing.join(" ")));
    let log = place.target.join("setup/packages.log");
    let _ = fs::remove_file(&log);
    let quiet = NoServices::begin()?;
    if install(&missing, &log).is_err() {
        // The lists may be empty, or older than the mirror.
        run::logged(Command::new("apt-get").args(["--quiet", "update"]), &log)?;
        install(&missing, &log)?;
    }
    quiet.end()?;
    if missing.contains(&"unbound") {
        // The tests start their own; the package would start one at every boot.
        let _ = run::output(Command::new("systemctl").args(["disable", "unbound.service"]));
    }
    if missing.contains(&"prometheus") {
        let units = ["prometheus.service", "prometheus-node-exporter.service"];
        let _ = run::output(Command::new("systemctl").arg("disable").args(units));
    }
    Ok(Outcome::Done(missing.join(" ")))
}

fn install(packages: &[&str], log: &Path) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--quiet", "--yes", "--no-install-recommends"]).args(packages);
    run::logged(apt.env("DEBIAN_FRONTEND", "noninteractive"), log)
}

fn names(packages: &[(&str, &str)]) -> String {
    packages.iter().map(|&(package, _)| package).collect::<Vec<_>>().join(", ")
}

/// By the effective user id of this process.
pub fn is_root() -> bool {
    run::output(Command::new("id").arg("-u")).is_some_and(|id| id.trim() == "0")
}

/// While it lives, packages that are installed start no service (Debian policy, `policy-rc.d`: 101 forbids).
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn begin() -> Result<Self> {
        if Path::new(POLICY).exists() {
            // The machine has a rule of its own, as container images do.
            return Ok(Self { ours: false });
        }
        let guard = Self { ours: true };
        fs::write(POLICY, "#!/bin/sh\nexit 101\n").with_context(|| format!("write {POLICY}"))?;
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(guard)
    }

    fn end(mut self) -> Result<()> {
        if std::mem::take(&mut self.ours) {
            fs::remove_file(POLICY).with_context(|| format!("remove {POLICY}"))?;
        }
        Ok(())
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}
