//! What the daemon holds and takes at the sizes that were promised: a million learned addresses beside 100,000 names, and a million
//! addresses in one policy.

use std::fmt::{self, Write as _};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;
use serde_json::Value;

use super::starts::{Policy, resident};
use crate::bench::network::peer;
use crate::bench::{processor, wire};
use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, READY};
use crate::world::World;

/// Where this part's own resolver listens: it makes its answers from the question.
const RESOLVER: &str = "203.0.113.54";
/// Addresses in an answer.
const EACH: u16 = 10;
/// Every so many names are asked for IPv6 addresses.
const SIX: u32 = 8;
/// Questions under way: the daemon is to hear of every answer.
const UNDER_WAY: usize = 16;
/// So many at once, and then a pause: four thousand answers a second.
const PAUSE: Duration = Duration::from_millis(4);
const LIMIT: Duration = Duration::from_secs(120);
/// What is done in the background after a start, or after a reload, is over by then.
const SETTLED: Duration = Duration::from_secs(6);

/// What was measured of a daemon.
#[derive(Debug, Serialize)]
pub struct Scale {
    what: String,
    /// Milliseconds from the start of `egress run` until enforcement is on.
    run: f64,
    /// Milliseconds from SIGHUP until a policy is in force that differs in one address.
    changed: f64,
    /// Seconds of a processor that a SIGHUP takes over files that say the same.
    unchanged: f64,
    /// MiB: as soon as enforcement is on, at most until then, and in the end.
    started: f64,
    start_peak: f64,
    resident: f64,
    /// At most, from the start to the end.
    peak: f64,
    /// MiB of the kernel's tables.
    kernel: f64,
    learned: Option<Learned>,
}

/// Of addresses that the kernel learned.
#[derive(Debug, Serialize)]
struct Learned {
    /// Names, and addresses of each.
    names: u32,
    each: u16,
    /// Per cent of these addresses that the daemon heard of: the rest found the ring buffer full, and is learned all the same.
    heard: f64,
    /// Microseconds of a processor that the daemon took for each answer.
    answer: f64,
    /// MiB, right behind the last answer.
    resident: f64,
    /// Milliseconds of `egress status --json`, and MiB of it.
    status: f64,
    status_size: f64,
    /// MiB of the file that keeps the names over a restart.
    file: f64,
    /// Milliseconds of a restart over them.
    restart: f64,
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: run {:.0} ms, a changed reload {:.0} ms, an unchanged one {:.2} s of a processor; resident {:.1} MiB once enforcement is on \
             ({:.1} at most until then), {:.1} in the end ({:.1} at most); kernel tables {:.0} MiB.",
            self.what,
            self.run,
            self.changed,
            self.unchanged,
            self.started,
            self.start_peak,
            self.resident,
            self.peak,
            self.kernel
        )?;
        let Some(learned) = &self.learned else { return Ok(()) };
        write!(
            f,
            " {} names learned with {} addresses each, of which the daemon heard {:.1} %: {:.1} MiB behind the last answer, {:.1} us of a processor for an answer; `status` \
             {:.0} ms ({:.1} MiB); the file of names {:.1} MiB; a restart {:.0} ms.",
            learned.names,
            learned.each,
            learned.heard,
            learned.resident,
            learned.answer,
            learned.status,
            learned.status_size,
            learned.file,
            learned.restart
        )
    }
}

/// A daemon under `names` wildcards, of each of which a name is learned with [`EACH`] addresses.
pub fn learned(names: u32) -> Result<Scale> {
    let room = (names * u32::from(EACH) * 2).next_power_of_two().max(131_072).to_string();
    let text = Policy::Names(names).text();
    let test = Test::new(&text, &["--max-addresses", &room])?;
    serve(&test.world)?;
    let before = processor::time(test.daemon.pid())?;
    test.ask(names)?;
    // The reader has what is left in the ring buffer by then.
    std::thread::sleep(Duration::from_millis(300));
    let answer = (processor::time(test.daemon.pid())? - before) * 1e6 / f64::from(names);
    let behind = resident(test.daemon.pid())?;
    let (status, status_took, status_size) = test.status()?;
    let known = status["names"].as_array().into_iter().flatten();
    let known: usize = known.map(|name| name["addresses"].as_array().map_or(0, Vec::len)).sum();
    let wanted = names as usize * usize::from(EACH);
    let heard = known as f64 / wanted as f64 * 100.0;
    drop(status);
    let file = test.world.dir().join("state/names.json");
    let (start, size) = (Instant::now(), || fs::metadata(&file).map_or(0, |file| file.len()));
    while size() < known as u64 * 16 {
        ensure!(start.elapsed() < LIMIT, "the names are not written down: {} bytes", size());
        std::thread::sleep(Duration::from_millis(200));
    }
    let mut scale = test.measure(format!("{names} wildcards"), &text)?;
    let file = mebibytes(size());
    scale.learned = Some(Learned {
        names,
        each: EACH,
        heard,
        answer,
        resident: behind,
        status: status_took,
        status_size,
        file,
        restart: test.restart(&["--max-addresses", &room])?,
    });
    Ok(scale)
}

/// A daemon under one policy of a million addresses, a tenth as many names and prefixes, and a hundredth as many rules.
pub fn whole(addresses: u32) -> Result<Scale> {
    let (names, prefixes, rules) = (addresses / 10, addresses / 10, addresses / 100);
    let mut text = peer::policy(addresses);
    for rule in 0..rules {
        let _ = writeln!(text, "  - name: rule-{rule}\n    ports: [{}/tcp]\n    to:", 1000 + rule);
        for n in (rule..names).step_by(rules as usize) {
            let _ = writeln!(text, "      - '*.n{n}.bench.example.com'");
        }
        for n in (rule..prefixes).step_by(rules as usize) {
            // Of 4 addresses each, apart from the single ones.
            let _ = writeln!(text, "      - {}/30", Ipv4Addr::from(0x6400_0000 + n * 8));
        }
    }
    let test = Test::new(&text, &[])?;
    test.measure(format!("{addresses} addresses, {names} wildcards, {prefixes} prefixes, {rules} more rules"), &text)
}

struct Test {
    daemon: Daemon,
    cgroup: Cgroup,
    world: World,
    run: f64,
    started: f64,
    start_peak: f64,
}

impl Test {
    fn new(text: &str, args: &[&str]) -> Result<Self> {
        let world = World::new()?;
        let cgroup = Cgroup::new("bench")?;
        let builder = Daemon::builder(&world).policy_text(text).cgroup(&cgroup).resolvers(&[RESOLVER]);
        let (daemon, run) = start(args.iter().fold(builder, |builder, arg| builder.arg(arg)).spawn()?)?;
        std::thread::sleep(SETTLED);
        let (started, start_peak) = (resident(daemon.pid())?, peak(daemon.pid())?);
        Ok(Self { daemon, cgroup, world, run, started, start_peak })
    }

    /// Reloads, and looks at what is held.
    fn measure(&self, what: String, text: &str) -> Result<Scale> {
        let pid = self.daemon.pid();
        let file = Daemon::builder(&self.world).policy_file(0);
        fs::write(&file, format!("{text}  - {{name: extra, to: [203.0.113.77], ports: [1/tcp]}}\n"))?;
        let (start, before) = (Instant::now(), self.applied());
        self.daemon.signal(Signal::SIGHUP)?;
        while self.applied() == before {
            ensure!(start.elapsed() < LIMIT, "the reload does not come through: {}", self.daemon.output());
            std::thread::sleep(Duration::from_millis(1));
        }
        let changed = milliseconds(start.elapsed());
        self.quiet()?;
        let before = processor::time(pid)?;
        self.daemon.signal(Signal::SIGHUP)?;
        std::thread::sleep(Duration::from_millis(500));
        self.quiet()?;
        let unchanged = processor::time(pid)? - before;
        std::thread::sleep(SETTLED);
        let kernel = tables(pid)?;
        Ok(Scale {
            what,
            run: self.run,
            changed,
            unchanged,
            started: self.started,
            start_peak: self.start_peak,
            resident: resident(pid)?,
            peak: peak(pid)?,
            kernel,
            learned: None,
        })
    }

    /// How often the daemon said that a policy was put in force.
    fn applied(&self) -> usize {
        self.daemon.output().matches("a policy was put in force").count()
    }

    /// Waits until the daemon has done nothing for a second.
    fn quiet(&self) -> Result<()> {
        let (start, mut before) = (Instant::now(), -1.0);
        loop {
            let now = processor::time(self.daemon.pid())?;
            if now - before < 0.02 {
                return Ok(());
            }
            ensure!(start.elapsed() < LIMIT, "the daemon does not come to rest");
            before = now;
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// `egress status --json`, its milliseconds and its size in MiB.
    fn status(&self) -> Result<(Value, f64, f64)> {
        let start = Instant::now();
        let run = self.daemon.egress(&["status", "--json"])?;
        let took = milliseconds(start.elapsed());
        let status = serde_json::from_str(&run.stdout)
            .with_context(|| format!("egress status failed after {took:.0} ms: {}", run.stderr))?;
        Ok((status, took, mebibytes(run.stdout.len() as u64)))
    }

    /// Asks for a name below each wildcard.
    fn ask(&self, names: u32) -> Result<()> {
        let inside = self.world.node().in_cgroup(&self.cgroup);
        inside.fork(LIMIT, || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((RESOLVER, 53))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut answer = [0; 1024];
            for first in (0..names).step_by(UNDER_WAY) {
                std::thread::sleep(PAUSE);
                let these = first..names.min(first + UNDER_WAY as u32);
                for n in these.clone() {
                    let mut query = wire::query(n as u16, &format!("a.n{n}.bench.example.com"));
                    if n % SIX == 0 {
                        let kind = question_end(&query)? - 4;
                        query[kind + 1] = 28;
                    }
                    socket.send(&query)?;
                }
                for n in these {
                    let length = socket.recv(&mut answer).with_context(|| format!("no answer for name {n}"))?;
                    ensure!(length > 12 && answer[7] as u16 == EACH, "name {n} has no addresses");
                }
            }
            Ok(())
        })
    }

    /// Milliseconds of a start over what is there.
    fn restart(mut self, args: &[&str]) -> Result<f64> {
        self.daemon.stop()?;
        let builder = Daemon::builder(&self.world);
        let file = builder.policy_file(0);
        let builder = builder.policy(file).cgroup(&self.cgroup).resolvers(&[RESOLVER]);
        let (next, took) = start(args.iter().fold(builder, |builder, arg| builder.arg(arg)).spawn()?)?;
        // The old guard detaches when it is dropped.
        std::mem::forget(std::mem::replace(&mut self.daemon, next));
        let (status, ..) = self.status()?;
        let known = status["names"].as_array().into_iter().flatten();
        let known = known.filter(|name| name["addresses"].as_array().is_some_and(|known| !known.is_empty())).count();
        ensure!(known != 0, "the restarted daemon knows no names");
        Ok(took)
    }
}

/// Waits until enforcement is on, for longer than a test would.
fn start(daemon: Daemon) -> Result<(Daemon, f64)> {
    let start = Instant::now();
    while !daemon.output().contains(READY) {
        if start.elapsed() > LIMIT || fs::metadata(format!("/proc/{}/exe", daemon.pid())).is_err() {
            bail!("the daemon does not start: {}", daemon.output());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok((daemon, milliseconds(start.elapsed())))
}

/// A resolver whose answers follow from the question: `a.nNUMBER.…` has addresses of its own, of the family that is asked for.
fn serve(world: &World) -> Result<()> {
    let at: SocketAddr = SocketAddr::new(RESOLVER.parse()?, 53);
    let socket = world.world_ns.run(|| UdpSocket::bind(at))?;
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            if let Ok(answer) = answer(&query[..length]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Ok(())
}

fn answer(query: &[u8]) -> Result<Vec<u8>> {
    let end = question_end(query)?;
    let label = &query[12 + 2 + 1..];
    let digits: String = label[1..].iter().take_while(|byte| byte.is_ascii_digit()).map(|&b| char::from(b)).collect();
    let number: u32 = digits.parse()?;
    let six = query[end - 3] == 28;
    let mut message = query[..end].to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[6..8].copy_from_slice(&EACH.to_be_bytes());
    message[8..12].fill(0);
    for n in 0..u32::from(EACH) {
        let host = number * u32::from(EACH) + n;
        let address = match six {
            false => IpAddr::V4(Ipv4Addr::from(0x2800_0000 + host)),
            true => IpAddr::V6(Ipv6Addr::from_bits(0x2603_1000 << 96 | u128::from(host))),
        };
        // A compressed name, the type, IN, an hour, the address.
        message.extend([0xc0, 12, 0, if six { 28 } else { 1 }, 0, 1, 0, 0, 14, 16]);
        match address {
            IpAddr::V4(address) => message.extend([0, 4].into_iter().chain(address.octets())),
            IpAddr::V6(address) => message.extend([0, 16].into_iter().chain(address.octets())),
        }
    }
    Ok(message)
}

/// Where the question of a message ends: behind its name, type and class.
fn question_end(message: &[u8]) -> Result<usize> {
    let mut at = 12;
    while let Some(&length) = message.get(at) {
        at += 1 + usize::from(length);
        if length == 0 {
            ensure!(at + 4 <= message.len(), "a short question");
            return Ok(at + 4);
        }
    }
    bail!("a question without an end")
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// MiB of all the kernel's tables that a process has open, each once.
fn tables(pid: u32) -> Result<f64> {
    let mut bytes = std::collections::BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        // One that was closed meanwhile is no table.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
        if let (Some(map), Some(memory)) = (field("map_id:"), field("memlock:")) {
            bytes.insert(map, memory);
        }
    }
    Ok(mebibytes(bytes.values().sum()))
}

/// The most that was resident so far, MiB.
fn peak(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
