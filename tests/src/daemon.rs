//! The real `egress` binary as a guard: started, waited for until enforcement is on, and detached at the end.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::mntns::BPFFS;
use crate::place::{Place, Run};
use crate::skip::in_vm;
use crate::threads::threads;
use crate::world::{DNS_V4, UPLINK, World};

/// What the daemon says, once, when every attach point is in.
pub const READY: &str = "enforcement is on";
const START_LIMIT: Duration = Duration::from_secs(20);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// A killed process runs no code of its own any more; what is left is the kernel's, whose programs' verification and grace periods
/// of RCU have taken more than ten seconds on a machine that others load. It is told as soon as it takes longer than [`STOP_LIMIT`].
const KILL_LIMIT: Duration = Duration::from_secs(120);

/// A time limit of a quick machine, as it is here: ten times as long in an emulated one (`cargo xtask vm`).
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    if in_vm() { limit * 10 } else { limit }
}

/// The `egress` binary that was built with these tests: `EGRESS_BIN`, or `egress` in the profile directory of this
/// executable (`target/debug/egress` for `target/debug/deps/dns-…`).
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EGRESS_BIN") {
        return Ok(PathBuf::from(path));
    }
    let dir = profile_dir()?;
    let path = dir.join("egress");
    if !path.exists() {
        bail!("{} is not built: run `cargo xtask test`, or set EGRESS_BIN to the binary", path.display());
    }
    Ok(path)
}

/// The profile directory of this executable: `target/debug` for `target/debug/deps/dns-…`.
pub(crate) fn profile_dir() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this executable")?;
    let mut dir = own.parent().ok_or_else(|| anyhow!("{} has no directory", own.display()))?;
    if dir.ends_with("deps") {
        dir = dir.parent().ok_or_else(|| anyhow!("{} has no directory", dir.display()))?;
    }
    Ok(dir.to_owned())
}

/// Runs `egress ARGS` in a place, with no daemon needed: `exec`, `check`, `explain`.
pub fn egress(place: &Place, args: &[&str], limit: Duration) -> Result<Run> {
    let mut command = place.command(&binary()?.to_string_lossy());
    command.args(args).env("EGRESS_BPFFS", BPFFS);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    crate::place::wait_limited(command.spawn()?, limit)
}

/// What to start; see [`Daemon::builder`].
#[derive(Debug)]
pub struct DaemonBuilder<'w> {
    world: &'w World,
    place: Place,
    binary: Option<PathBuf>,
    policies: Vec<OsString>,
    cgroup: Option<PathBuf>,
    default_cgroup: bool,
    /// Whether every policy so far is one of audit mode; `None` without any.
    audits: Option<bool>,
    interfaces: Vec<String>,
    default_routes: bool,
    resolvers: Vec<String>,
    args: Vec<OsString>,
    envs: Vec<(String, OsString)>,
}

impl DaemonBuilder<'_> {
    /// A policy file, a directory, or the name of an embedded policy.
    #[must_use]
    pub fn policy(mut self, policy: impl Into<OsString>) -> Self {
        self.audits = Some(false);
        self.policies.push(policy.into());
        self
    }

    /// A policy given as text; it is written to [`policy_file`](Self::policy_file) number n.
    ///
    /// # Panics
    /// When the world's directory cannot be written.
    #[must_use]
    pub fn policy_text(mut self, text: &str) -> Self {
        let audits = self.audits != Some(false) && text.lines().any(|line| line == "mode: audit");
        let path = self.policy_file(self.policies.len());
        std::fs::write(&path, text).expect("write the policy into the world's directory");
        self = self.policy(path);
        self.audits = Some(audits);
        self
    }

    /// Where the n-th policy text goes, for tests that change it.
    #[must_use]
    pub fn policy_file(&self, n: usize) -> PathBuf {
        self.world.dir().join(format!("policy-{n}.yaml"))
    }

    /// No `--cgroup`: the root of what the daemon's place sees, which must not be this machine's, but in audit mode.
    #[must_use]
    pub fn default_cgroup(mut self) -> Self {
        self.default_cgroup = true;
        self
    }

    /// The governed cgroup. Without one the daemon is refused: a test must never govern the machine's root cgroup.
    #[must_use]
    pub fn cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.cgroup = Some(cgroup.path().to_owned());
        self
    }

    /// The interfaces, instead of [`UPLINK`]; empty means `none`.
    #[must_use]
    pub fn interfaces(mut self, names: &[&str]) -> Self {
        self.interfaces = names.iter().map(ToString::to_string).collect();
        self
    }

    /// The interfaces of the default routes, as without `--interface`.
    #[must_use]
    pub fn default_routes(mut self) -> Self {
        self.default_routes = true;
        self
    }

    /// The trusted resolvers (`ADDR` or `ADDR:PORT`), instead of the world's DNS server; empty leaves the option out.
    #[must_use]
    pub fn resolvers(mut self, addresses: &[&str]) -> Self {
        self.resolvers = addresses.iter().map(ToString::to_string).collect();
        self
    }

    /// Any further argument of `egress run`.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.envs.push((name.to_owned(), value.into()));
        self
    }

    /// Another build of `egress`, instead of [`binary`].
    #[must_use]
    pub fn binary(mut self, binary: &Path) -> Self {
        self.binary = Some(binary.to_owned());
        self
    }

    /// Where the daemon itself runs, instead of the node outside the governed cgroup.
    #[must_use]
    pub fn place(mut self, place: Place) -> Self {
        self.place = place;
        self
    }

    fn command(&self) -> Result<(std::process::Command, PathBuf)> {
        let harmless = self.audits == Some(true) || self.place.has_cgroup_namespace() || in_vm();
        if self.cgroup.is_none() && !(self.default_cgroup && harmless) {
            bail!("name the governed cgroup: .cgroup(&cgroup)");
        }
        let socket = self.world.dir().join("egress.sock");
        let binary = self.binary.clone().map_or_else(binary, Ok)?;
        let mut command = self.place.command(&binary.to_string_lossy());
        command.arg("run").arg("--socket").arg(&socket);
        if let Some(cgroup) = &self.cgroup {
            command.arg("--cgroup").arg(cgroup);
        }
        for policy in &self.policies {
            command.arg("--policy").arg(policy);
        }
        let none = vec!["none".to_owned()];
        let interfaces = if self.interfaces.is_empty() { &none } else { &self.interfaces };
        for interface in interfaces.iter().filter(|_| !self.default_routes) {
            command.args(["--interface", interface]);
        }
        for resolver in &self.resolvers {
            command.args(["--resolver", resolver]);
        }
        command.env("EGRESS_STATE", self.world.dir().join("state"));
        command.args(&self.args).env("EGRESS_BPFFS", BPFFS).envs(self.envs.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok((command, socket))
    }

    /// Starts the daemon and waits until it says that enforcement is on.
    pub fn start(self) -> Result<Daemon> {
        let mut daemon = self.spawn()?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Starts the daemon and does not wait for anything.
    pub fn spawn(self) -> Result<Daemon> {
        let (mut command, socket) = self.command()?;
        let mut child = command.spawn().context("start `egress run`")?;
        let output = Output::default();
        let readers = vec![output.follow(child.stdout.take()), output.follow(child.stderr.take())];
        let place = self.world.node();
        Ok(Daemon { child: Some(child), output, readers, place, socket, leaves: false })
    }

    /// Starts the daemon with a standard output that nobody reads, and waits for nothing.
    pub fn spawn_unread(self) -> Result<Daemon> {
        let (mut command, socket) = self.command()?;
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut child = command.stdout(writer).spawn().context("start `egress run`")?;
        let output = Output::default();
        let readers = vec![output.follow(child.stderr.take())];
        let place = self.world.node();
        Ok(Daemon { child: Some(child), output, readers, place, socket, leaves: false })
    }

    /// Runs the daemon to its end: for what it must refuse.
    pub fn run_to_end(self, limit: Duration) -> Result<Run> {
        let (mut command, _) = self.command()?;
        crate::place::wait_limited(command.spawn().context("start `egress run`")?, limit)
    }
}

/// A running daemon. Dropping it kills the daemon and detaches everything.
#[derive(Debug)]
pub struct Daemon {
    child: Option<Child>,
    output: Output,
    readers: Vec<std::thread::JoinHandle<()>>,
    place: Place,
    socket: PathBuf,
    /// What it pinned is left to its successor.
    leaves: bool,
}

impl Daemon {
    /// A daemon on the world's node: interface [`UPLINK`], resolver [`DNS_V4`], socket and bpffs of the world's own.
    #[must_use]
    pub fn builder(world: &World) -> DaemonBuilder<'_> {
        DaemonBuilder {
            world,
            place: world.node(),
            binary: None,
            policies: Vec::new(),
            cgroup: None,
            default_cgroup: false,
            audits: None,
            interfaces: vec![UPLINK.to_owned()],
            default_routes: false,
            resolvers: vec![DNS_V4.to_owned()],
            args: Vec::new(),
            envs: Vec::new(),
        }
    }

    fn wait_ready(&mut self) -> Result<()> {
        let start = Instant::now();
        while !self.output.text().contains(READY) {
            let ended = self.child.as_mut().map(Child::try_wait).transpose()?.flatten();
            if ended.is_some() || start.elapsed() > patient(START_LIMIT) {
                std::thread::sleep(Duration::from_millis(50));
                if self.output.text().contains(READY) && ended.is_none() {
                    break;
                }
                let how =
                    ended.map_or_else(|| format!("said nothing for {START_LIMIT:?}"), |status| status.to_string());
                bail!("`egress run` did not say \"{READY}\" ({how}); its output:\n{}", self.output.text());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// The daemon's process id; 0 after it ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Standard output and error so far, mixed.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.text()
    }

    /// Sends SIGTERM and waits. Enforcement stays on (P2).
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// Sends SIGKILL and waits. Enforcement stays on (P2).
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGKILL)
    }

    /// Sends SIGKILL, waits, and leaves all that it pinned to the next one.
    pub fn crash(mut self) -> Result<()> {
        self.leaves = true;
        self.kill().map(drop)
    }

    /// Sends a signal and does not wait.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.child.as_ref().ok_or_else(|| anyhow!("the daemon ended before"))?.id();
        Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        self.signal(signal)?;
        let mut child = self.child.take().expect("signal() found the child");
        let (start, mut told) = (Instant::now(), false);
        let limit = patient(if signal == Signal::SIGKILL { KILL_LIMIT } else { STOP_LIMIT });
        loop {
            if let Some(status) = child.try_wait()? {
                self.readers.drain(..).for_each(|reader| drop(reader.join()));
                return Ok(status);
            }
            if !told && start.elapsed() > patient(STOP_LIMIT) {
                told = true;
                eprintln!("the daemon is there {STOP_LIMIT:?} after {signal}:\n{}", threads(child.id()));
            }
            if start.elapsed() > limit {
                let (left, said) = (threads(child.id()), self.output.text());
                // Not waited for: what holds it may hold it for ever.
                child.kill()?;
                bail!("the daemon did not end {limit:?} after {signal}; its threads:\n{left}its output:\n{said}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Runs `egress ARGS` on the node against this daemon's socket and bpffs.
    pub fn egress(&self, args: &[&str]) -> Result<Run> {
        let mut command = self.place.command(&binary()?.to_string_lossy());
        command.args(args).env("EGRESS_SOCKET", &self.socket).env("EGRESS_BPFFS", BPFFS);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        crate::place::wait_limited(command.spawn()?, patient(STOP_LIMIT))
    }

    /// `egress status --json`.
    pub fn status(&self) -> Result<Value> {
        let run = self.egress(&["status", "--json"])?;
        serde_json::from_str(&run.stdout).with_context(|| format!("egress status --json said: {run:?}"))
    }

    /// `egress events --dropped --json` (or all events): one object a line, oldest first.
    pub fn events(&self, dropped_only: bool) -> Result<Vec<Value>> {
        let args: &[&str] = if dropped_only { &["events", "--dropped", "--json"] } else { &["events", "--json"] };
        let run = self.egress(args)?;
        if !run.ok() {
            bail!("egress events failed: {run:?}");
        }
        let lines = run.stdout.lines().filter(|line| !line.trim().is_empty());
        lines.map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
    }

    /// `egress detach`: every program, pin and cgroup that the tool made goes.
    pub fn detach(&self) -> Result<Run> {
        self.egress(&["detach"])
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.end(Signal::SIGKILL);
        }
        if !self.leaves {
            // The world's bpffs is its own, so pins go with it in any case; this is the tool's own way out.
            let _ = self.detach();
        }
        if std::thread::panicking() {
            eprintln!("--- egress run said:\n{}---", self.output.text());
        }
    }
}

#[derive(Debug, Clone, Default)]
struct Output(Arc<Mutex<String>>);

impl Output {
    fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn follow(&self, pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<()> {
        let output = self.0.clone();
        std::thread::spawn(move || {
            let Some(pipe) = pipe else { return };
            let mut reader = BufReader::new(pipe);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                output.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&line));
                line.clear();
            }
        })
    }
}
