//! Real resolvers in front of the harness's DNS server: unbound and dnsmasq, as users have them.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::netns::NetNs;
use crate::place::Place;
use crate::world::World;

/// A running resolver; ends when dropped.
#[derive(Debug)]
pub struct Resolver {
    pub address: IpAddr,
    child: Child,
}

impl Resolver {
    /// unbound (Debian package `unbound`) in the world, at `address`, forwarding to the world's DNS server.
    pub fn unbound(world: &World, address: &str) -> Result<Self> {
        let dir = world.dir().join(format!("unbound-{address}").replace(':', "_"));
        std::fs::create_dir_all(&dir)?;
        let config = format!(
            "server:\n interface: {address}\n ip-freebind: yes\n access-control: 0.0.0.0/0 allow\n \
             access-control: ::/0 allow\n do-daemonize: no\n use-syslog: no\n username: \"\"\n chroot: \"\"\n \
             directory: \"{dir}\"\n pidfile: \"\"\n module-config: \"iterator\"\n unblock-lan-zones: yes\n \
             insecure-lan-zones: yes\n qname-minimisation: no\n num-threads: 1\n so-reuseport: no\n\
             remote-control:\n control-enable: no\n\
             forward-zone:\n name: \".\"\n forward-addr: {upstream}\n",
            dir = dir.display(),
            upstream = crate::world::DNS_V4,
        );
        let file = dir.join("unbound.conf");
        std::fs::write(&file, config)?;
        let file = file.to_string_lossy().into_owned();
        Self::start(&world.world_ns, &world.outside(), address, "unbound", &["-d", "-c", &file])
    }

    /// dnsmasq (Debian package `dnsmasq-base`) in the world, at `address`, forwarding to the world's DNS server.
    pub fn dnsmasq(world: &World, address: &str) -> Result<Self> {
        let (listen, server) = (format!("--listen-address={address}"), format!("--server={}", crate::world::DNS_V4));
        let args = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"];
        let rest = ["--user=root", "--pid-file=", "--log-facility=-", &server, &listen];
        Self::start(&world.world_ns, &world.outside(), address, "dnsmasq", &[&args[..], &rest[..]].concat())
    }

    fn start(ns: &NetNs, place: &Place, address: &str, program: &str, args: &[&str]) -> Result<Self> {
        let ip: IpAddr = address.parse()?;
        let length = if ip.is_ipv4() { 32 } else { 128 };
        ns.ip(&format!("addr replace {address}/{length} dev lo"))?;
        let mut command = place.command(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("start {program}: is its Debian package installed?"))?;
        let mut resolver = Self { address: ip, child };
        let start = Instant::now();
        while ns.run(|| TcpStream::connect_timeout(&SocketAddr::new(ip, 53), Duration::from_millis(200))).is_err() {
            let ended = resolver.child.try_wait()?;
            if ended.is_some() || start.elapsed() > Duration::from_secs(10) {
                let _ = resolver.child.kill();
                let mut text = String::new();
                if let Some(mut stderr) = resolver.child.stderr.take() {
                    let _ = std::io::Read::read_to_string(&mut stderr, &mut text);
                }
                bail!("{program} at {address} does not answer on TCP 53 ({ended:?}): {text}");
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(resolver)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
