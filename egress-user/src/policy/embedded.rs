//! The policies that ship inside the binary, from `policies/`.

/// One embedded policy.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    /// What `--policy` takes.
    pub name: &'static str,
    /// One line for `egress policies`.
    pub about: &'static str,
    pub text: &'static str,
}

macro_rules! embed {
    ($($name:literal: $about:literal,)*) => {
        /// In the order in which `egress policies` lists them.
        pub const ALL: &[Embedded] = &[$(Embedded {
            name: $name,
            about: $about,
            text: include_str!(concat!("../../../policies/", $name, ".yaml")),
        }),*];
    };
}

embed! {
    "aks-required": "what an AKS node must reach, by Microsoft's list of 2019",
    "aks-optional": "what that list recommends besides: updates, monitoring, GPU drivers",
    "aks-current": "what an AKS node must reach today; --set region=... narrows it",
    "aks-current-optional": "what it may need today: patches, GPU, Azure Monitor, Azure Policy, disks",
    "deny-all": "nothing but loopback and the link's own protocols",
    "ubuntu-updates": "apt on Ubuntu: archive, security, changelogs, snap",
    "kubeadm": "a node made by kubeadm: images and packages of Kubernetes",
    "github-actions-runner": "a self-hosted runner of GitHub Actions",
}

pub fn find(name: &str) -> Option<&'static Embedded> {
    ALL.iter().find(|policy| policy.name == name)
}
