//! Broken on purpose: the daemon is killed, its policy swapped, its resolver and its uplink taken away, while traffic of
//! every kind flows. The world counts what arrives, the clients count what came back; the product is asked nothing.
//!
//! `cargo xtask chaos` runs all of it in under ten minutes; `tests/tests/chaos.rs` a share of it.

mod acts;
mod random;
mod scene;
mod traffic;
mod watch;

use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{ContentArrangement, Table, presets};

pub use acts::Moment;
pub use random::Random;
pub use scene::{Outcome, Scene};

/// How the run goes.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "chaos", about = "Breaks the daemon and what it needs, under traffic, and counts what gets out")]
pub struct Options {
    /// How often the daemon is killed in each of four moments; in a change of the policy, and `egress detach`, half as often.
    #[arg(long, default_value_t = 40)]
    pub kills: u32,
    /// How often the policy is swapped.
    #[arg(long, default_value_t = 300)]
    pub swaps: u32,
    /// How often the policy is swapped through the control socket, as fast as it goes.
    #[arg(long, default_value_t = 1000)]
    pub floods: u32,
    /// Picks the random moments; the same seed gives the same ones.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Only what has this in its name.
    #[arg(long)]
    pub only: Option<String>,
}

impl Options {
    /// A share of it that fits into the test suite.
    #[must_use]
    pub fn share() -> Self {
        Self { kills: 5, swaps: 25, floods: 100, seed: 1, only: None }
    }
}

/// One act and what it came to.
#[derive(Debug)]
pub struct Row {
    pub act: &'static str,
    pub times: u32,
    pub took: Duration,
    pub outcome: Outcome,
    /// Whether names asked for meanwhile must all work.
    pub names_must_work: bool,
}

impl Row {
    /// Nothing forbidden arrived though it was tried, no lasting connection broke, and names worked where they could.
    #[must_use]
    pub fn holds(&self) -> bool {
        let tried = self.outcome.attempts() > 0 && self.outcome.seen.frames > 0;
        let (connections, broken) = self.outcome.connections();
        let (names, failed) = self.outcome.names();
        tried
            && self.outcome.seen.forbidden == 0
            && connections > 0
            && broken == 0
            && names > 0
            && (failed == 0 || !self.names_must_work)
    }
}

/// Runs every act; a row each.
pub fn run(options: &Options) -> Result<Vec<Row>> {
    let mut random = Random(options.seed);
    let mut scene = Scene::new()?;
    scene.start()?;
    let mut rows = Vec::new();
    let wanted = |act: &str| options.only.as_deref().is_none_or(|only| act.contains(only));
    let mut act = |scene: &mut Scene,
                   act: &'static str,
                   times,
                   names_must_work,
                   run: &mut dyn FnMut(&mut Scene) -> Result<()>| {
        if !wanted(act) {
            return Ok(());
        }
        let start = Instant::now();
        let outcome = scene.under_traffic(|scene| run(scene))?;
        rows.push(Row { act, times, took: start.elapsed(), outcome, names_must_work });
        anyhow::Ok(())
    };
    for (what, moment) in [
        ("kill -9 while it starts", Moment::Start),
        ("kill -9 while it reloads", Moment::Reload),
        ("kill -9 while names are learned", Moment::Learning),
        ("kill -9 while it takes over from another version", Moment::Upgrade),
    ] {
        // While two versions' programs are attached a packet passes where both let it, and each has learned its own names.
        act(&mut scene, what, options.kills, moment != Moment::Upgrade, &mut |scene| {
            acts::kills(scene, moment, options.kills, &mut random).map(drop)
        })?;
    }
    act(&mut scene, "the policy swapped", options.swaps, true, &mut |scene| acts::swaps(scene, options.swaps))?;
    act(&mut scene, "the same through the socket, at once", options.floods, true, &mut |scene| {
        acts::floods(scene, options.floods).map(|rate| println!("{rate:.0} policies a minute"))
    })?;
    // Half as many: three of four wait for a deadline of three seconds.
    let changes = options.kills.div_ceil(2);
    act(&mut scene, "kill -9 in apply, confirm, rollback", changes, true, &mut |scene| {
        acts::changes(scene, changes, &mut random)
    })?;
    act(&mut scene, "the resolver fails, in five ways", 10, false, &mut acts::resolver_flaps)?;
    act(&mut scene, "the uplink goes down and up", 10, false, &mut |scene| acts::link_flaps(scene, 10))?;
    let (detach, times) = ("after kill -9 of `egress detach`", options.kills / 2);
    if wanted(detach) {
        acts::detach_kills(&mut scene, times, &mut random)?;
    }
    act(&mut scene, detach, times, true, &mut |_| {
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    Ok(rows)
}

/// The rows as a table in Markdown, for a terminal and for `docs/reliability.md` alike.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled).set_header([
        "what was broken",
        "times",
        "seconds",
        "forbidden tried",
        "arrived",
        "frames seen",
        "connections",
        "broken",
        "new names",
        "failed",
        "holds",
    ]);
    for row in rows {
        let ((connections, broken), (names, failed)) = (row.outcome.connections(), row.outcome.names());
        let failed = if row.names_must_work { failed.to_string() } else { format!("({failed})") };
        table.add_row([
            row.act.to_owned(),
            row.times.to_string(),
            row.took.as_secs().to_string(),
            row.outcome.attempts().to_string(),
            row.outcome.seen.forbidden.to_string(),
            row.outcome.seen.frames.to_string(),
            connections.to_string(),
            broken.to_string(),
            names.to_string(),
            failed,
            if row.holds() { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    table.to_string()
}

/// What to show of a row that does not hold.
#[must_use]
pub fn details(row: &Row) -> String {
    let frames: String = row.outcome.seen.shown.iter().map(|frame| format!("  arrived: {frame}\n")).collect();
    let told: String = row.outcome.told.iter().map(|told| format!("  {told:?}\n")).collect();
    format!("{}:\n{frames}{told}", row.act)
}
