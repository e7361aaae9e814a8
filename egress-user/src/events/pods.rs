//! Kubernetes pods by their uid: the kubelet makes a directory `/var/log/pods/NAMESPACE_NAME_UID` for each pod of the node
//! (kubernetes/pkg/kubelet/kuberuntime/helpers.go, `BuildPodLogsDirectory`). Its name is all that is read.

use std::{
    collections::HashMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

/// The directory is listed at most this often: a flood of uids that are not there costs no more.
const PAUSE: Duration = Duration::from_millis(500);
/// Pods that are kept, and entries that one listing reads; a node runs some hundreds.
const CAPACITY: usize = 16_384;
/// Bytes of a namespace (a DNS label), and of a name (a DNS subdomain).
const NAMESPACE_MAX: usize = 63;
const NAME_MAX: usize = 253;

/// A pod, as people call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Finds pods by their uid. What was found once stays known for a while after the pod is gone.
#[derive(Debug)]
pub struct Pods {
    root: PathBuf,
    known: HashMap<String, PodName>,
    listed: Option<Instant>,
    pause: Duration,
}

impl Pods {
    /// `root` is the kubelet's `/var/log/pods`. Where there is none, nothing is known and nothing is kept.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), known: HashMap::new(), listed: None, pause: PAUSE }
    }

    /// With another pause between listings.
    #[cfg(test)]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// The pod with this uid, as a cgroup's path has it: of a static pod, a hash.
    pub fn find(&mut self, uid: &str) -> Option<PodName> {
        if let Some(known) = self.known.get(uid) {
            return Some(known.clone());
        }
        if self.listed.is_none_or(|at| at.elapsed() >= self.pause) {
            self.list();
            self.listed = Some(Instant::now());
        }
        self.known.get(uid).cloned()
    }

    fn list(&mut self) {
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten().take(CAPACITY) {
            if let Some((pod, uid)) = entry.file_name().to_str().and_then(parse) {
                if self.known.len() >= CAPACITY && !self.known.contains_key(&uid) {
                    self.known.clear();
                }
                self.known.insert(uid, pod);
            }
        }
    }
}

/// `NAMESPACE_NAME_UID`: none of the three has an underscore, and what has other characters than theirs is no pod.
fn parse(directory: &str) -> Option<(PodName, String)> {
    let mut parts = directory.split('_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let plain = |text: &str, most: usize| {
        (1..=most).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte))
    };
    let whole = parts.next().is_none() && plain(namespace, NAMESPACE_MAX) && plain(name, NAME_MAX) && plain(uid, 64);
    whole.then(|| (PodName { namespace: namespace.to_owned(), name: name.to_owned() }, uid.to_owned()))
}
