//! Which resolvers the system is set to ask: `/etc/resolv.conf`, and behind systemd-resolved's stub its upstreams.

use std::collections::HashSet;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};

use resolv_conf::ScopedIp;
use tracing::warn;

pub use super::system_watch::{Watcher, watch};

const PORT: u16 = 53;
/// systemd-resolved's stubs (systemd-resolved.service(8)): with its own features, and a plain proxy.
const STUBS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];
/// More than any sane file holds; the rest is not read.
const MAX_BYTES: u64 = 64 * 1024;

/// Where the configuration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub resolv_conf: PathBuf,
    /// Where systemd-resolved lists the servers that it asks itself (systemd-resolved.service(8)).
    pub resolved: PathBuf,
}

impl Default for Paths {
    fn default() -> Self {
        Self { resolv_conf: "/etc/resolv.conf".into(), resolved: "/run/systemd/resolve/resolv.conf".into() }
    }
}

/// The system's resolvers as of the last reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SystemResolvers {
    /// The addresses that processes on this node ask. Without a `nameserver` line this is 127.0.0.1, as resolv.conf(5)
    /// has it. A link-local address has its interface's index as the scope.
    pub asked: Vec<SocketAddr>,
    /// Who systemd-resolved's stub asks, when `asked` holds it; else empty.
    pub upstreams: Vec<SocketAddr>,
    /// Search domains, lower case, without the trailing dot.
    pub search: Vec<String>,
    /// Dots that make a name be tried as it is first.
    pub ndots: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}; give the resolvers with --resolver or dns.resolvers, or make the file readable")]
pub struct ReadError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// Reads the configuration once. Lines that cannot be parsed are skipped with a warning, as the C library skips them.
/// A missing upstream file of a configured stub gives no upstreams, and a warning.
///
/// # Errors
/// When `resolv_conf` cannot be read.
pub fn read(paths: &Paths) -> Result<SystemResolvers, ReadError> {
    let text = read_file(&paths.resolv_conf).map_err(|source| ReadError { path: paths.resolv_conf.clone(), source })?;
    let config = parse(&text, &paths.resolv_conf);
    let mut system = SystemResolvers {
        asked: nameservers(&config),
        upstreams: vec![],
        search: config
            .get_last_search_or_domain()
            .filter(|domain| *domain != "--")
            .map(|domain| domain.trim_end_matches('.').to_ascii_lowercase())
            .filter(|domain| !domain.is_empty())
            .collect(),
        ndots: config.ndots,
    };
    if system.asked.is_empty() {
        system.asked.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    if system.asked.iter().any(|asked| STUBS.contains(&asked.ip())) {
        match read_file(&paths.resolved) {
            Ok(text) => system.upstreams = nameservers(&parse(&text, &paths.resolved)),
            Err(error) => warn!(
                path = %paths.resolved.display(), %error,
                "the stub of systemd-resolved is configured, but its upstream resolvers cannot be read",
            ),
        }
        // Should both paths lead to the stub's file, the stub is no upstream of itself.
        system.upstreams.retain(|upstream| !STUBS.contains(&upstream.ip()));
    }
    Ok(system)
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = vec![];
    std::fs::File::open(path)?.take(MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

fn parse(text: &[u8], path: &Path) -> resolv_conf::Config {
    let (config, errors) = resolv_conf::Config::parse_with_errors(text);
    for error in errors {
        warn!(path = %path.display(), %error, "skipped a line");
    }
    config
}

fn nameservers(config: &resolv_conf::Config) -> Vec<SocketAddr> {
    let mut seen = HashSet::new();
    config.nameservers.iter().filter_map(socket_address).filter(|address| seen.insert(*address)).collect()
}

fn socket_address(nameserver: &ScopedIp) -> Option<SocketAddr> {
    let (address, scope) = match nameserver {
        ScopedIp::V4(address) => return Some(SocketAddr::new((*address).into(), PORT)),
        ScopedIp::V6(address, scope) => (*address, scope.as_deref()),
    };
    let scope_id = match scope {
        None => 0,
        Some(scope) => match scope.parse().or_else(|_| nix::net::if_::if_nametoindex(scope)) {
            Ok(index) => index,
            Err(error) => {
                warn!(%address, scope, %error, "skipped a nameserver whose interface is not there");
                return None;
            }
        },
    };
    Some(SocketAddrV6::new(address, PORT, 0, scope_id).into())
}
