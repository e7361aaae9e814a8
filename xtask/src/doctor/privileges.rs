//! What this user may do: each capability by name, with what fails without it.

use std::fs;

use super::{Item, State, item};

/// Number and name (`include/uapi/linux/capability.h`), whether nothing works without it, and what needs it.
const CAPABILITIES: &[(u32, &str, State, &str)] = &[
    (12, "CAP_NET_ADMIN", State::Missing, "attaching to cgroups and interfaces"),
    (39, "CAP_BPF", State::Missing, "loading programs and making maps"),
    (
        38,
        "CAP_PERFMON",
        State::Missing,
        "programs that compare pointers and read kernel memory, as the verifier wants it",
    ),
    (21, "CAP_SYS_ADMIN", State::Missing, "mounting bpffs, entering network namespaces; every test"),
    (13, "CAP_NET_RAW", State::Weaker, "the tests' raw and packet sockets"),
    (11, "CAP_NET_BROADCAST", State::Weaker, "the addresses of containers, for the answer to their first refused name"),
    (19, "CAP_SYS_PTRACE", State::Weaker, "the executables and cgroups of other users' processes in events"),
    (2, "CAP_DAC_READ_SEARCH", State::Weaker, "the executables of other users' processes in events"),
];

pub fn items() -> Vec<Item> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut items = capabilities(&status);
    items.push(unprivileged_bpf(fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").ok().as_deref()));
    items
}

/// `status` is the text of `/proc/PID/status`.
pub fn capabilities(status: &str) -> Vec<Item> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(effective) = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()) else {
        return vec![item("capabilities", false, State::Unknown, "/proc/self/status does not say", "mount /proc")];
    };
    let lacking: Vec<_> = CAPABILITIES.iter().filter(|&&(number, ..)| effective & (1 << number) == 0).collect();
    if lacking.is_empty() {
        let found = format!("all {} that egress and its tests use", CAPABILITIES.len());
        return vec![item("capabilities", true, State::Missing, found, "")];
    }
    let remedy = "run egress and its tests as root; in a container, grant it (`--cap-add`)";
    lacking
        .into_iter()
        .map(|&(_, name, otherwise, what)| {
            item("capabilities", false, otherwise, format!("lacks {name}: {what}"), remedy)
        })
        .collect()
}

/// `value` is what the sysctl says (`Documentation/admin-guide/sysctl/kernel.rst`): 0 lets everyone, 1 and 2 only root.
pub fn unprivileged_bpf(value: Option<&str>) -> Item {
    let remedy = "sysctl kernel.unprivileged_bpf_disabled=1: no user but root has a use for eBPF on a locked-down node";
    match value.map(str::trim) {
        Some(value) => item(
            "unprivileged BPF",
            value != "0",
            State::Weaker,
            format!("kernel.unprivileged_bpf_disabled={value}"),
            remedy,
        ),
        None => item("unprivileged BPF", false, State::Unknown, "the kernel has no such sysctl", ""),
    }
}
