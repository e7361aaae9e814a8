//! Which container a cgroup belongs to, by its path: every runtime writes the container's id there.

use serde::{Deserialize, Serialize};

/// A container.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Container {
    /// `docker`, `containerd`, `cri-o`, `podman`, `nerdctl`, `runc` or `crun`; absent where the path does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The id: 64 hex digits; of what was started by hand with runc or crun, the name that it was given.
    pub id: String,
}

/// What a cgroup's path tells of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The innermost container.
    pub container: Option<Container>,
    /// The Kubernetes pod's uid.
    pub pod_uid: Option<String>,
}

/// Prefixes of a cgroup's name (systemd driver: `PREFIX-ID.scope`; libpod, CRI-O: `PREFIX-ID` too).
const PREFIXES: [(&str, &str); 5] = [
    ("docker-", "docker"),
    ("cri-containerd-", "containerd"),
    ("crio-", "cri-o"),
    ("libpod-", "podman"),
    ("nerdctl-", "nerdctl"),
];

impl Workload {
    /// Reads a path below the cgroup v2 root. The innermost container counts: a node that is itself a container
    /// (kind) runs others.
    pub fn of_cgroup(path: &str) -> Self {
        let mut workload = Self::default();
        let mut parent = "";
        for segment in path.split('/').filter(|segment| !segment.is_empty()) {
            if let Some(uid) = pod_uid(segment) {
                workload.pod_uid = Some(uid);
            }
            if let Some(container) = container(segment, parent) {
                workload.container = Some(container);
            } else if workload.container.is_none() {
                workload.container = by_hand(segment);
            }
            parent = segment;
        }
        workload
    }
}

fn container(segment: &str, parent: &str) -> Option<Container> {
    let found = |runtime: Option<&str>, id: &str| Container { runtime: runtime.map(str::to_owned), id: id.to_owned() };
    let bare = segment.strip_suffix(".scope").unwrap_or(segment);
    for (prefix, runtime) in PREFIXES {
        // `libpod-conmon-ID` and `crio-conmon-ID` are the runtimes' own monitors, not containers.
        if let Some(id) = bare.strip_prefix(prefix).filter(|id| is_id(id)) {
            return Some(found(Some(runtime), id));
        }
    }
    // containerd whose driver does not fit the kubelet's: `kubepods-...slice:cri-containerd:ID`.
    if let Some((head, id)) = segment.rsplit_once(':').filter(|(_, id)| is_id(id)) {
        let runtime = match head.rsplit(':').next() {
            Some("cri-containerd") => Some("containerd"),
            Some("docker") => Some("docker"),
            Some("crio") => Some("cri-o"),
            _ => None,
        };
        return Some(found(runtime, id));
    }
    // The cgroupfs driver: `/docker/ID`, `/kubepods/burstable/podUID/ID`, and `/NAMESPACE/ID` of plain containerd.
    is_id(segment).then(|| found((parent == "docker").then_some("docker"), segment))
}

/// The systemd driver's scope of a container that somebody named: `runc-NAME.scope` (libcontainer's and crun's default
/// prefixes). Without systemd the cgroup is just `NAME`, which tells nothing.
fn by_hand(segment: &str) -> Option<Container> {
    let bare = segment.strip_suffix(".scope")?;
    let (runtime, id) = bare.split_once('-').filter(|(runtime, _)| matches!(*runtime, "runc" | "crun"))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    (!id.is_empty() && id.bytes().all(plain))
        .then(|| Container { runtime: Some(runtime.to_owned()), id: id.to_owned() })
}

fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// `podUID` (cgroupfs driver) or `kubepods-burstable-podUID.slice` (systemd, which writes `_` for `-`).
fn pod_uid(segment: &str) -> Option<String> {
    let bare = segment.split_once(".slice").map_or(segment, |(name, _)| name);
    let uid = bare
        .strip_prefix("pod")
        .or_else(|| bare.starts_with("kubepods").then(|| bare.rsplit_once("-pod").map(|(_, uid)| uid)).flatten())?;
    let uid = uid.replace('_', "-");
    // Static pods have an md5 hash in place of a UUID.
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    (digits == 32 && uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')).then_some(uid)
}
