//! The demo: a small internet in namespaces, the real daemon with the AKS policies, and real clients at every
//! destination of those policies and at many that they forbid.
//!
//! Each row is judged three times: by the client's own result, by what arrived in the world, and for what must be
//! blocked by the daemon's own events. Without enforcement the forbidden rows must succeed: that proves the table.

mod clients;
mod internet;
mod rows;
mod table;
#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::daemon::Daemon;
use crate::place::Place;
use crate::sniffer::{Frame, list};
use crate::world::{DNS_V4, World};

use clients::Told;
use rows::{From, Row, Watch};

/// How the demo runs.
#[derive(Debug, Clone, Copy, clap::Parser)]
#[command(name = "demo", about = "Runs the AKS policies against a small internet in network namespaces")]
pub struct Options {
    /// The same rows without the daemon: every forbidden destination must then be reached.
    #[arg(long)]
    pub without_enforcement: bool,
    /// Also show each client's own words, and the frames and events of each row.
    #[arg(long, short)]
    pub verbose: bool,
}

/// One row, done.
#[derive(Debug)]
struct Outcome {
    row: Row,
    told: Told,
    frames: Vec<Frame>,
    /// The daemon's events about this row; `None` without a daemon.
    events: Option<Vec<Value>>,
    expect_pass: bool,
}

impl Outcome {
    fn world_saw(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Client, world and daemon agree with what is expected. A daemon must have reported a blocked row, and must not
    /// have reported an allowed one.
    fn as_expected(&self) -> bool {
        let reported = self.events.as_ref().is_none_or(|events| events.is_empty() == self.expect_pass);
        self.told.pass == self.expect_pass && self.world_saw() == self.expect_pass && reported
    }
}

/// Runs the demo and prints its table; true when every row is as expected. Needs root.
pub fn run(options: Options) -> Result<bool> {
    let start = Instant::now();
    let world = internet::build()?;
    let cgroup = Cgroup::new("demo")?;
    let built = start.elapsed();
    let mut daemon = None;
    if !options.without_enforcement {
        let builder = Daemon::builder(&world).policy("aks-required").policy("aks-optional").cgroup(&cgroup);
        daemon = Some(builder.start().context("start the daemon of the demo")?);
    }
    table::heading(options, built, start.elapsed());
    let mut outcomes = Vec::new();
    let mut section = "";
    for row in rows::rows(&world)? {
        if row.section != section {
            section = row.section;
            table::section(section);
        }
        let outcome = run_row(row, &world, &cgroup, daemon.as_ref())?;
        table::row(&outcome);
        if options.verbose || !outcome.as_expected() {
            table::details(&outcome);
        }
        outcomes.push(outcome);
    }
    if let Some(daemon) = &mut daemon {
        let status = daemon.stop().context("stop the daemon")?;
        anyhow::ensure!(status.success(), "the daemon ended with {status}:\n{}", daemon.output());
    }
    let wrong = outcomes.iter().filter(|outcome| !outcome.as_expected()).count();
    table::summary(options, outcomes.len(), wrong, start.elapsed());
    Ok(wrong == 0)
}

/// The demo's internet and its rows as a load, for tests that start what they test themselves.
#[derive(Debug)]
pub struct Load {
    pub cgroup: Cgroup,
    pub world: World,
}

impl Load {
    /// The world, with nothing governed.
    pub fn new() -> Result<Self> {
        Ok(Self { cgroup: Cgroup::new("load")?, world: internet::build()? })
    }

    /// Drives every row that the AKS policies allow, or every one that they forbid; gives each row and whether its client
    /// got through and the world saw it.
    pub fn drive(&self, allowed: bool) -> Result<Vec<(String, bool)>> {
        let rows = rows::rows(&self.world)?.into_iter().filter(|row| row.allowed == allowed);
        rows.map(|row| {
            let name = format!("{} {}", row.destination, row.tried);
            let outcome = run_row(row, &self.world, &self.cgroup, None)?;
            Ok((name, outcome.told.pass && outcome.world_saw()))
        })
        .collect()
    }
}

fn run_row(row: Row, world: &World, cgroup: &Cgroup, daemon: Option<&Daemon>) -> Result<Outcome> {
    let place: Place = match row.from {
        From::Node => world.node().in_cgroup(cgroup),
        From::Pod => world.pod().in_cgroup(cgroup),
    };
    let expect_pass = row.allowed || daemon.is_none();
    let before = daemon.map(|daemon| daemon.events(true)).transpose()?.unwrap_or_default();
    world.sniffer.clear();
    let told = clients::drive(&row.client, &place, world).with_context(|| format!("row `{}`", row.destination))?;
    let settle = if expect_pass { Duration::ZERO } else { Duration::from_millis(60) };
    let frames = world.sniffer.matching(settle, |frame| row.watch.iter().any(|watch| watch.matches(frame)));
    let events = daemon.map(|daemon| new_events(daemon, &before, &row, told.pass)).transpose()?;
    Ok(Outcome { row, told, frames, events, expect_pass })
}

/// The drop events that came since `before` and speak of this row's destination. They may come a moment after the
/// packet; nothing is waited for where the client got through, since no event will come.
fn new_events(daemon: &Daemon, before: &[Value], row: &Row, passed: bool) -> Result<Vec<Value>> {
    let limit = if passed { Duration::ZERO } else { Duration::from_millis(1500) };
    let start = Instant::now();
    loop {
        let now = daemon.events(true)?;
        let new: Vec<Value> = now
            .into_iter()
            .filter(|event| !before.contains(event) && row.watch.iter().any(|w| w.named_in(event)))
            .collect();
        if !new.is_empty() || start.elapsed() >= limit {
            return Ok(new);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Watch {
    fn matches(&self, frame: &Frame) -> bool {
        match self {
            Watch::To { address, protocol, port } => frame.goes_to(*address, *protocol, *port),
            Watch::Question(name) => {
                let dns = frame.destination_port == Some(53) && matches!(frame.protocol, Some(6 | 17));
                dns && contains(&frame.payload, &wire_name(name))
            }
        }
    }

    /// Whether a drop event of the daemon is about this: it names the address, or for a question the name, or the
    /// resolver that the question was on its way to.
    fn named_in(&self, event: &Value) -> bool {
        let text = event.to_string().to_ascii_lowercase();
        match self {
            Watch::To { address, .. } => text.contains(&address.to_string()),
            Watch::Question(name) => text.contains(&name.to_ascii_lowercase()) || text.contains(DNS_V4),
        }
    }
}

/// A name as DNS carries it, without the root label, lower case.
fn wire_name(name: &str) -> Vec<u8> {
    name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle))
}

fn frames_text(frames: &[Frame]) -> String {
    list(frames)
}
