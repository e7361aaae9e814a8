//! `cargo xtask doctor`: what this machine has and lacks, each with its remedy.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::place::Place;
use crate::setup::{PACKAGES, has_nextest, installed, is_root};
use crate::{ebpf, run};

/// One line of the table.
struct Item {
    name: &'static str,
    state: State,
    found: String,
    /// What to do; empty where nothing is to be done.
    remedy: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Good,
    /// Something is weaker without it, or only a part of the tests needs it.
    Weaker,
    /// Egress, its build or its tests do not work without it.
    Missing,
    /// This machine does not say.
    Unknown,
}

/// Prints the table. Whether nothing that is required is missing.
pub fn run(place: &Place) -> Result<bool> {
    let mut items = toolchain(place);
    items.extend(privileges());
    items.extend(kernel());
    for item in &items {
        let state = match item.state {
            State::Good => "ok",
            State::Weaker => "weaker",
            State::Missing => "MISSING",
            State::Unknown => "unknown",
        };
        println!("{:<16} {state:<8} {}", item.name, item.found);
        if item.state != State::Good && !item.remedy.is_empty() {
            println!("{:<16}          -> {}", "", item.remedy);
        }
    }
    Ok(items.iter().all(|item| item.state != State::Missing))
}

fn item(name: &'static str, good: bool, otherwise: State, found: impl Into<String>, remedy: &'static str) -> Item {
    Item { name, state: if good { State::Good } else { otherwise }, found: found.into(), remedy }
}

fn toolchain(place: &Place) -> Vec<Item> {
    let mut items = Vec::new();
    let setup = "run `cargo xtask setup`";
    match ebpf::Compiler::detect() {
        Ok(compiler) => {
            let source = compiler.has_rust_src() || ebpf::has_shadow(&place.target, &compiler);
            items.push(item("rustc", true, State::Missing, compiler.release.clone(), ""));
            let how = if compiler.has_rust_src() { "in the toolchain" } else { "below target/" };
            items.push(item("rust-src", source, State::Missing, if source { how } else { "not found" }, setup));
        }
        Err(error) => {
            items.push(item("rustc", false, State::Missing, error.to_string(), "install Rust 1.95 by rustup"))
        }
    }
    let linker = ebpf::linker(&place.target);
    let found = linker.as_ref().map_or_else(|| "not found".to_owned(), |path| path.display().to_string());
    items.push(item("bpf-linker", linker.is_some(), State::Missing, found, setup));
    items.push(item("cargo-nextest", has_nextest(place), State::Weaker, "the test runner", setup));
    let missing: Vec<_> =
        PACKAGES.iter().map(|&(package, _)| package).filter(|package| installed(package) != Some(true)).collect();
    let found =
        if missing.is_empty() { format!("all {}", PACKAGES.len()) } else { format!("lacks {}", missing.join(" ")) };
    items.push(item("packages", missing.is_empty(), State::Weaker, found, setup));
    items
}

fn privileges() -> Vec<Item> {
    let root = is_root();
    let found = if root { "root" } else { "not root" };
    vec![item("privileges", root, State::Missing, found, "run egress and its tests as root")]
}

fn kernel() -> Vec<Item> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = version(&release);
    let mut items = vec![
        item(
            "kernel",
            version >= (5, 17),
            State::Missing,
            release.trim(),
            "egress needs Linux 5.17 (bpf_loop); it is tested on 6.18",
        ),
        item(
            "tcx",
            version >= (6, 6),
            State::Weaker,
            if version >= (6, 6) { "the uplinks are attached by tcx links" } else { "older than 6.6" },
            "the uplinks are attached by clsact, which is not replaced without a gap",
        ),
        item(
            "BTF",
            Path::new("/sys/kernel/btf/vmlinux").exists(),
            State::Weaker,
            "/sys/kernel/btf/vmlinux",
            "a kernel with CONFIG_DEBUG_INFO_BTF",
        ),
    ];
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounted = |kind: &str| {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let point = fields.nth(1)?;
            (fields.next() == Some(kind)).then(|| point.to_owned())
        })
    };
    let cgroup = mounted("cgroup2");
    let found = cgroup.clone().unwrap_or_else(|| "not mounted".to_owned());
    items.push(item("cgroup v2", cgroup.is_some(), State::Missing, found, "mount -t cgroup2 none /sys/fs/cgroup"));
    let bpffs = mounted("bpf");
    let found = bpffs.clone().unwrap_or_else(|| "not mounted".to_owned());
    items.push(item("bpffs", bpffs.is_some(), State::Weaker, found, "egress mounts it at /sys/fs/bpf when it starts"));
    items.extend(config());
    items.push(lsm());
    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    items.push(item(
        "BPF JIT",
        jit.trim() != "0",
        State::Weaker,
        format!("bpf_jit_enable={}", jit.trim()),
        "sysctl net.core.bpf_jit_enable=1",
    ));
    items.push(item(
        "/dev/kvm",
        Path::new("/dev/kvm").exists(),
        State::Weaker,
        "for tests in a virtual machine",
        "none needed for the tests of today",
    ));
    items
}

/// Major and minor.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn config() -> Vec<Item> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let text = run::output(Command::new("zcat").arg("/proc/config.gz"))
        .or_else(|| fs::read_to_string(format!("/boot/config-{}", release.trim())).ok());
    let Some(text) = text else {
        return vec![item("kernel config", false, State::Unknown, "neither /proc/config.gz nor /boot/config-*", "")];
    };
    let wanted = [
        "CONFIG_BPF_SYSCALL",
        "CONFIG_CGROUP_BPF",
        "CONFIG_NET_CLS_ACT",
        "CONFIG_BPF_JIT",
        "CONFIG_NET_NS",
        "CONFIG_VETH",
    ];
    let lacking: Vec<_> = wanted
        .into_iter()
        .filter(|option| !text.lines().any(|line| line == format!("{option}=y") || line == format!("{option}=m")))
        .collect();
    let found =
        if lacking.is_empty() { "has what egress uses".to_owned() } else { format!("lacks {}", lacking.join(" ")) };
    vec![item("kernel config", lacking.is_empty(), State::Missing, found, "a kernel with these options")]
}

fn lsm() -> Item {
    let path = Path::new("/sys/kernel/security/lsm");
    let remedy = "boot with `lsm=...,bpf`: without it AF_XDP and PACKET_QDISC_BYPASS sockets of the host's own network \
                  namespace cannot be refused";
    match fs::read_to_string(path) {
        Ok(names) => {
            item("BPF LSM", names.split(',').any(|name| name.trim() == "bpf"), State::Weaker, names.trim(), remedy)
        }
        Err(_) => item(
            "BPF LSM",
            false,
            State::Unknown,
            "securityfs is not mounted",
            "mount -t securityfs none /sys/kernel/security",
        ),
    }
}
