//! Resolvers on the node itself, as users have them: they ask the world's DNS server, and the node's processes ask them.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::daemon::profile_dir;
use crate::place::Place;
use crate::world::{DNS_V4, World};

/// A running resolver; ends when dropped.
#[derive(Debug)]
pub struct LocalStub {
    pub address: IpAddr,
    child: Child,
}

impl LocalStub {
    /// dnsmasq at an address that the node has, with its cache on.
    pub fn dnsmasq(world: &World, place: &Place, address: &str) -> Result<Self> {
        Self::dnsmasq_at_port(world, place, address, 53)
    }

    /// The same at another port.
    pub fn dnsmasq_at_port(world: &World, place: &Place, address: &str, port: u16) -> Result<Self> {
        let at = format!("--port={port}");
        let (listen, server) = (format!("--listen-address={address}"), format!("--server={DNS_V4}"));
        let args = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"];
        let rest = ["--user=root", "--pid-file=", "--log-facility=-", "--log-queries", &server, &listen, &at];
        Self::start(world, place, SocketAddr::new(address.parse()?, port), "dnsmasq", &[&args[..], &rest[..]].concat())
    }

    /// systemd-resolved at 127.0.0.53, without D-Bus and without the rest of systemd: with the configuration file, the
    /// user and the directory that it would find on its own system. It writes `/run/systemd/resolve/resolv.conf`.
    pub fn resolved(world: &World, place: &Place) -> Result<Self> {
        let dir = world.dir().join("resolved");
        std::fs::create_dir_all(&dir)?;
        let config = format!("[Resolve]\nDNS={DNS_V4}\nFallbackDNS=\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n");
        std::fs::write(dir.join("resolved.conf"), config)?;
        let script = r#"set -e
cd "$1"
if ! grep -q ^systemd-resolve: /etc/passwd; then
    cp /etc/passwd /etc/group .
    echo 'systemd-resolve:x:64123:64123::/:/usr/sbin/nologin' >> passwd
    echo 'systemd-resolve:x:64123:' >> group
    mount --bind passwd /etc/passwd
    mount --bind group /etc/group
fi
if ! [ -e /etc/systemd/resolved.conf ]; then
    [ -d /etc/systemd ] || { echo "there is no /etc/systemd" >&2; exit 1; }
    mount -t tmpfs none /etc/systemd
    touch /etc/systemd/resolved.conf
fi
mount --bind resolved.conf /etc/systemd/resolved.conf
mkdir -p /run/systemd/resolve
chown systemd-resolve:systemd-resolve /run/systemd/resolve
exec env SYSTEMD_LOG_TARGET=console "$2"
"#;
        let (dir, program) = (dir.to_string_lossy().into_owned(), resolved_binary()?.to_string_lossy().into_owned());
        Self::start(world, place, SocketAddr::from(([127, 0, 0, 53], 53)), "sh", &["-c", script, "sh", &dir, &program])
    }

    fn start(world: &World, place: &Place, at: SocketAddr, program: &str, args: &[&str]) -> Result<Self> {
        let address = at.ip();
        let mut command = place.command(program);
        let said = world.dir().join(format!("stub-{address}.log"));
        let log = std::fs::File::create(&said)?;
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().with_context(|| format!("start {program}: is its Debian package installed?"))?;
        let mut stub = Self { address, child };
        let start = Instant::now();
        let connect = || TcpStream::connect_timeout(&at, Duration::from_millis(200));
        while world.node_ns.run(connect).is_err() {
            let ended = stub.child.try_wait()?;
            if ended.is_some() || start.elapsed() > Duration::from_secs(10) {
                let text = std::fs::read_to_string(&said).unwrap_or_default();
                bail!("{program} at {at} does not answer on TCP ({ended:?}): {text}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(stub)
    }
}

/// Of the machine, or unpacked below the target directory: its package, installed, would take over the machine's
/// resolv.conf.
fn resolved_binary() -> Result<PathBuf> {
    let profile = profile_dir()?;
    let unpacked = profile.parent().map(|target| target.join("systemd-resolved"));
    let folders = unpacked.as_deref().into_iter().chain([Path::new("/usr"), Path::new("/")]);
    let found = folders.map(|folder| folder.join("lib/systemd/systemd-resolved")).find(|path| path.exists());
    found.context("there is no systemd-resolved: `cargo xtask setup` unpacks it below the target directory")
}

impl Drop for LocalStub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
