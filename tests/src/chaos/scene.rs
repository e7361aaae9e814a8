//! The node, its traffic and its daemon, which the acts then break.

use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::traffic::{Told, Traffic};
use super::watch::{Seen, Watch, allowed};
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonBuilder, binary};
use crate::mntns::BPFFS;
use crate::place::Place;
use crate::probe::tcp;
use crate::servers::Service;
use crate::world::{NODE_V4, UPLINK, World};

/// Short lives, so that expiry and refresh happen during a run.
pub const POLICY: &str = "version: 1
dns: {minTtl: 5s, grace: 60s}
rules:
  - {name: steady, to: [203.0.113.10, '2001:db8::10'], ports: [7000/tcp]}
  - {name: datagrams, to: [203.0.113.12], ports: [7000/udp]}
  - {name: wild, to: ['*.wild.example.com'], ports: [7000/tcp]}
  - {name: api, to: [api.example.com], ports: [7000/tcp]}
";
/// A rule that comes and goes; nothing of the traffic needs it.
const EXTRA: &str = "  - {name: extra, to: [203.0.113.99, '*.extra.example.com'], ports: [7000/tcp]}\n";
/// Where nothing may arrive.
pub const FORBIDDEN: &str = "198.51.100.77";
/// Names that each asker may use up in one act (20 a second, so an act must end within five minutes); each has an address of
/// its own in 20.0.0.0/14.
const NAMES: u32 = 6_000;

/// What a run of traffic came to.
#[derive(Debug)]
pub struct Outcome {
    pub seen: Seen,
    pub told: Vec<Told>,
}

impl Outcome {
    /// Tries of what is forbidden.
    pub fn attempts(&self) -> u64 {
        self.told
            .iter()
            .filter(|told| matches!(told.kind.as_str(), "forbidden" | "frames"))
            .map(|told| told.tried)
            .sum()
    }

    /// Connections that were to last, and how many of them did not.
    pub fn connections(&self) -> (u64, u64) {
        let of = |told: &&Told| matches!(told.kind.as_str(), "conversation" | "accepted");
        let lasting = self.told.iter().filter(of);
        (lasting.clone().count() as u64, lasting.map(|told| told.broken).sum())
    }

    /// Connections to names asked for the first time, and how many of them failed.
    pub fn names(&self) -> (u64, u64) {
        let names = self.told.iter().filter(|told| told.kind == "names");
        names.fold((0, 0), |(tried, failed), told| (tried + told.tried, failed + told.tried - told.through))
    }
}

/// 203.0.113.128 and up: two for each number, of which a hundred are told apart.
fn change_addresses(number: u32) -> [IpAddr; 2] {
    [0, 1].map(|which| IpAddr::from([203, 0, 113, 128 + (number % 50 * 2 + which) as u8]))
}

/// Dropped in this order: the daemon detaches before its cgroup and namespaces go.
pub struct Scene {
    daemon: Option<Daemon>,
    pub cgroup: Cgroup,
    pub world: World,
    /// Numbers the acts, so that no name is asked for in two of them.
    act: u32,
    extra: bool,
}

impl Scene {
    pub fn new() -> Result<Self> {
        let world = World::with_pod()?;
        for at in ["0.0.0.0:7000", "[::]:7000"] {
            world.serve(Service::TcpEcho, at)?;
        }
        for at in ["203.0.113.12:7000", "198.51.100.77:7000"] {
            world.serve(Service::UdpEcho, at)?;
        }
        world.dns.set_text("api.example.com", 5, &["203.0.113.40"]);
        let cgroup = Cgroup::new("chaos")?;
        let scene = Self { daemon: None, cgroup, world, act: 0, extra: false };
        scene.write_policy(POLICY)?;
        Ok(scene)
    }

    fn policy_file(&self) -> PathBuf {
        self.world.dir().join("policy-0.yaml")
    }

    pub fn write_policy(&self, text: &str) -> Result<()> {
        std::fs::write(self.policy_file(), text).context("write the policy")
    }

    /// Changes the policy file: a rule comes or goes.
    pub fn swap_policy(&mut self) -> Result<()> {
        self.extra = !self.extra;
        self.write_policy(&format!("{POLICY}{}", if self.extra { EXTRA } else { "" }))
    }

    fn builder(&self) -> DaemonBuilder<'_> {
        Daemon::builder(&self.world).policy(self.policy_file()).cgroup(&self.cgroup)
    }

    /// Starts the daemon, waits until it says that enforcement is on, and looks whether it is well.
    pub fn start(&mut self) -> Result<Duration> {
        let start = Instant::now();
        let daemon = self.builder().start()?;
        let took = start.elapsed();
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            let health = daemon.status()?["health"].clone();
            if health["healthy"] == true {
                break;
            }
            if Instant::now() > limit {
                bail!("the daemon does not get well: {health}; its output:\n{}", daemon.output());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.daemon = Some(daemon);
        Ok(took)
    }

    /// Starts the daemon and does not wait.
    pub fn begin_start(&mut self) -> Result<()> {
        self.daemon = Some(self.builder().spawn()?);
        Ok(())
    }

    /// What is pinned becomes another version's. No daemon may run.
    pub fn make_old(&self) -> Result<()> {
        let script = format!("cd {BPFFS}/egress && mv v* v1");
        let run = self.world.node().run("sh", &["-c", &script], Duration::from_secs(5))?;
        ensure!(run.ok(), "{run:?}");
        Ok(())
    }

    pub fn daemon(&self) -> Result<&Daemon> {
        self.daemon.as_ref().context("no daemon runs")
    }

    pub fn reload(&self) -> Result<()> {
        self.daemon()?.signal(Signal::SIGHUP)
    }

    /// Starts `egress detach` and does not wait.
    pub fn begin_detach(&self) -> Result<Child> {
        let mut command = self.world.node().command(&binary()?.to_string_lossy());
        command.arg("detach").env("EGRESS_SOCKET", self.world.dir().join("egress.sock")).env("EGRESS_BPFFS", BPFFS);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("start `egress detach`")
    }

    /// Starts a command that talks to the daemon and does not wait.
    pub fn begin(&self, command: &str, args: &[&str]) -> Result<Child> {
        let mut child = self.world.node().command(&binary()?.to_string_lossy());
        child.arg(command).args(args).env("EGRESS_SOCKET", self.world.dir().join("egress.sock"));
        child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        child.spawn().with_context(|| format!("start `egress {command}`"))
    }

    /// Starts `egress apply` of a policy with two rules that no other change has, on trial for two seconds or for good,
    /// and does not wait.
    pub fn begin_change(&self, number: u32, on_trial: bool) -> Result<Child> {
        let file = self.world.dir().join("change.yaml");
        let [one, other] = change_addresses(number);
        std::fs::write(
            &file,
            format!(
                "{POLICY}  - {{name: one-{number}, to: [{one}], ports: [7000/tcp]}}
  - {{name: other-{number}, to: [{other}/32], ports: [7000/tcp]}}\n"
            ),
        )?;
        let args: &[&str] = if on_trial { &["--confirm", "2s"] } else { &[] };
        self.begin("apply", &[&[&*file.to_string_lossy()], args].concat())
    }

    /// Whether what that policy alone allows is reached: by its address, and by its prefix.
    pub fn reaches_change(&self, number: u32) -> Result<(bool, bool)> {
        let inside = self.world.node().in_cgroup(&self.cgroup);
        let [one, other] = change_addresses(number).map(|address| tcp(&inside, &format!("{address}:7000")));
        Ok((one?.echoed, other?.echoed))
    }

    /// Applies a policy by the control socket, without a process of its own, and waits until it is in force.
    pub fn post_policy(&self, extra: bool) -> Result<()> {
        let text = format!("{POLICY}{}", if extra { EXTRA } else { "" });
        let body = serde_json::json!({"texts": {"files": [["flood.yaml", text]]}}).to_string();
        let mut socket = UnixStream::connect(self.world.dir().join("egress.sock"))?;
        write!(
            socket,
            "POST /v1/policy HTTP/1.1\r\nhost: egress\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "the daemon said: {answer}");
        Ok(())
    }

    /// kill -9.
    pub fn crash(&mut self) -> Result<()> {
        self.daemon.take().context("no daemon runs")?.crash()
    }

    /// Names that were never asked for before: a pattern for each of two askers.
    fn fresh_names(&mut self) -> [String; 2] {
        self.act += 1;
        [0, 1].map(|asker| {
            for number in 0..NAMES {
                let host = (self.act * 2 + asker) * NAMES + number;
                let address = IpAddr::from([20, (host >> 16) as u8, (host >> 8) as u8, host as u8]);
                self.world.dns.set(&format!("a{}-{asker}-{number}.wild.example.com", self.act), 1, &[address]);
            }
            format!("a{}-{asker}-{{}}.wild.example.com", self.act)
        })
    }

    /// Lets the traffic flow while `acts` happen.
    pub fn under_traffic(&mut self, acts: impl FnOnce(&mut Self) -> Result<()>) -> Result<Outcome> {
        let (inside, beside) = (self.world.node().in_cgroup(&self.cgroup), self.world.node());
        let (pod, outside) = (self.world.pod(), self.world.outside());
        let names = self.fresh_names();
        let watch = Watch::begin(&self.world.world_ns, allowed)?;
        let mut traffic = vec![Traffic::start(&inside, "accepted", "0.0.0.0", 2200)?];
        let frames = format!("{UPLINK}/{NODE_V4}/{FORBIDDEN}");
        let kinds: [(&Place, &str, &str, u16); 13] = [
            (&outside, "conversation", NODE_V4, 2200),
            (&inside, "conversation", "203.0.113.10", 7000),
            (&inside, "conversation", "2001:db8::10", 7000),
            (&beside, "conversation", "203.0.113.10", 7000),
            (&pod, "conversation", "203.0.113.10", 7000),
            (&inside, "datagrams", "203.0.113.12", 7000),
            (&inside, "names", &names[0], 7000),
            (&pod, "names", &names[1], 7000),
            (&inside, "forbidden", FORBIDDEN, 7000),
            (&beside, "forbidden", FORBIDDEN, 7000),
            (&pod, "forbidden", FORBIDDEN, 7000),
            (&inside, "frames", &frames, 7000),
            (&beside, "frames", &frames, 7000),
        ];
        for (place, kind, address, port) in kinds {
            traffic.push(Traffic::start(place, kind, address, port)?);
        }
        let done = acts(self);
        // Its far side ends first, or the end of the accepted connection would look like a break.
        let accepted = traffic.remove(0);
        let mut told = traffic.into_iter().map(Traffic::end).collect::<Result<Vec<_>>>()?;
        told.push(accepted.end()?);
        let seen = watch.end()?;
        done?;
        Ok(Outcome { seen, told })
    }
}
