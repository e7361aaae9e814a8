//! The policy: YAML files in, one checked and compiled set of tables out.

mod compiled;
mod name;

pub use compiled::*;
pub use name::{DomainName, NameError, NamePattern};

use std::{net::SocketAddr, path::PathBuf};

/// Where a policy comes from, and what the command line adds to it.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Files, directories and names of embedded policies, as `--policy` takes them.
    pub policies: Vec<PathBuf>,
    /// `--allow DEST`, in order.
    pub allow: Vec<String>,
    /// `--set KEY=VALUE`.
    pub set: Vec<(String, String)>,
    /// `--mode`: wins over what the files say.
    pub mode: Option<Mode>,
    /// `--resolver`: where not empty, wins over what the files say.
    pub resolvers: Vec<SocketAddr>,
    /// More names for `dns.internal`: the host's search domains.
    pub internal: Vec<DomainName>,
}
// load(&Sources) -> Result<Loaded { compiled, warnings, files }, PolicyError>
