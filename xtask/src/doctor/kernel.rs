//! What the running kernel is and has.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Item, State, item};
use crate::run;

pub fn items() -> Vec<Item> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let config = read_config(release.trim());
    let mut items = versions(release.trim());
    items.push(item(
        "BTF",
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        State::Weaker,
        "/sys/kernel/btf/vmlinux",
        "a kernel with CONFIG_DEBUG_INFO_BTF",
    ));
    items.extend(mounts(&fs::read_to_string("/proc/self/mounts").unwrap_or_default()));
    items.push(options(config.as_deref(), version(&release)));
    items.push(lsm(
        fs::read_to_string("/sys/kernel/security/lsm").ok().as_deref(),
        &fs::read_to_string("/proc/cmdline").unwrap_or_default(),
        config.as_deref(),
    ));
    let jit = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default();
    items.push(item(
        "BPF JIT",
        jit.trim() != "0",
        State::Weaker,
        format!("bpf_jit_enable={}", jit.trim()),
        "sysctl net.core.bpf_jit_enable=1",
    ));
    items
}

/// Major and minor.
pub fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn versions(release: &str) -> Vec<Item> {
    let tcx = version(release) >= (6, 6);
    vec![
        item(
            "kernel",
            version(release) >= (5, 17),
            State::Missing,
            release,
            "egress needs Linux 5.17 (bpf_loop); it is tested on 6.18",
        ),
        item(
            "tcx",
            tcx,
            State::Weaker,
            if tcx { "the uplinks are attached by tcx links" } else { "older than 6.6" },
            "the uplinks are attached by clsact, whose filters outlive the pins: `egress detach` removes them, `rm` does not",
        ),
    ]
}

/// `mounts` is the text of `/proc/self/mounts`.
fn mounts(mounts: &str) -> [Item; 2] {
    let mounted = |kind: &str| {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ');
            let point = fields.nth(1)?;
            (fields.next() == Some(kind)).then(|| point.to_owned())
        })
    };
    let line = |name, kind, otherwise, remedy| {
        let point = mounted(kind);
        item(name, point.is_some(), otherwise, point.unwrap_or_else(|| "not mounted".to_owned()), remedy)
    };
    [
        line("cgroup v2", "cgroup2", State::Missing, "mount -t cgroup2 none /sys/fs/cgroup"),
        line("bpffs", "bpf", State::Weaker, "egress mounts it at /sys/fs/bpf when it starts"),
    ]
}

/// The running kernel's configuration, from where kernels and distributions keep it.
fn read_config(release: &str) -> Option<String> {
    run::output(Command::new("zcat").arg("/proc/config.gz")).or_else(|| {
        [format!("/boot/config-{release}"), format!("/lib/modules/{release}/config")]
            .iter()
            .find_map(|path| fs::read_to_string(path).ok())
    })
}

/// What egress cannot work without.
const REQUIRED: &[&str] = &["CONFIG_BPF_SYSCALL", "CONFIG_CGROUP_BPF", "CONFIG_NET_CLS_ACT"];
/// What makes something weaker by its absence: slower programs, no LSM programs, no test namespaces.
const USEFUL: &[&str] = &["CONFIG_BPF_JIT", "CONFIG_BPF_LSM", "CONFIG_DEBUG_INFO_BTF", "CONFIG_NET_NS", "CONFIG_VETH"];
/// How the uplinks are attached: by tcx from 6.6 on, before it by a filter on the clsact qdisc.
const TCX: &[&str] = &["CONFIG_NET_XGRESS"];
const CLSACT: &[&str] = &["CONFIG_NET_SCH_INGRESS", "CONFIG_NET_CLS_BPF"];

/// `config` is the kernel's `.config`; `version` its major and minor.
pub fn options(config: Option<&str>, version: (u32, u32)) -> Item {
    let Some(config) = config else {
        let looked_in = "neither /proc/config.gz nor /boot/config-* nor /lib/modules/*/config";
        return item("kernel config", false, State::Unknown, looked_in, "modprobe configs");
    };
    let lacking = |wanted: &[&'static str]| -> Vec<&'static str> {
        let has =
            |option: &str| config.lines().any(|line| line == format!("{option}=y") || line == format!("{option}=m"));
        wanted.iter().copied().filter(|option| !has(option)).collect()
    };
    let mut required = lacking(REQUIRED);
    required.extend(lacking(if version >= (6, 6) { TCX } else { CLSACT }));
    let useful = lacking(USEFUL);
    let state = if required.is_empty() { State::Weaker } else { State::Missing };
    let all: Vec<_> = required.into_iter().chain(useful).collect();
    let found = if all.is_empty() { "has what egress uses".to_owned() } else { format!("lacks {}", all.join(" ")) };
    item("kernel config", all.is_empty(), state, found, "a kernel with these options")
}

/// Whether LSM programs run. `active` is what securityfs lists; without it, `cmdline` (its last `lsm=` decides) and the
/// configuration's default say what was asked for at boot (`Documentation/admin-guide/LSM/index.rst`).
pub fn lsm(active: Option<&str>, cmdline: &str, config: Option<&str>) -> Item {
    let remedy = "boot with `lsm=...,bpf`: without it AF_XDP and PACKET_QDISC_BYPASS sockets of the host's own network \
                  namespace cannot be refused";
    let has_bpf = |names: &str| names.split(',').any(|name| name.trim() == "bpf");
    if let Some(names) = active {
        return item("BPF LSM", has_bpf(names), State::Weaker, names.trim(), remedy);
    }
    let asked = cmdline.split_whitespace().rev().find_map(|word| word.strip_prefix("lsm="));
    let default = || {
        let value = config?.lines().find_map(|line| line.strip_prefix("CONFIG_LSM="))?;
        Some(value.trim_matches('"'))
    };
    let (names, whence) = match (asked, default()) {
        (Some(names), _) => (names, "the boot line"),
        (None, Some(names)) => (names, "the kernel's configuration"),
        (None, None) => {
            let remedy = "mount -t securityfs none /sys/kernel/security";
            return item("BPF LSM", false, State::Unknown, "securityfs is not mounted", remedy);
        }
    };
    let found = format!("{names} (by {whence}; securityfs is not mounted)");
    item("BPF LSM", has_bpf(names), State::Weaker, found, remedy)
}
