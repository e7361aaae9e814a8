//! A world, a cgroup in it, and the daemon over both: what nearly every kernel test begins with.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::cgroup::Cgroup;
use crate::daemon::{Daemon, DaemonBuilder, patient};
use crate::place::Place;
use crate::world::World;

/// Dropped in this order: the daemon detaches before its cgroup and namespaces go.
#[derive(Debug)]
pub struct Governed {
    pub daemon: Daemon,
    /// The node, inside the governed cgroup.
    pub inside: Place,
    /// The node, outside of the governed cgroup: only the uplink's programs see its packets.
    pub beside: Place,
    pub cgroup: Cgroup,
    pub world: World,
}

impl Governed {
    /// A new world under `policy`.
    pub fn new(policy: &str) -> Result<Self> {
        Self::over(World::new()?, policy)
    }

    /// A world that is there already, under `policy`.
    pub fn over(world: World, policy: &str) -> Result<Self> {
        let cgroup = Cgroup::new("governed")?;
        Self::with(world, cgroup, policy)
    }

    /// A world and a cgroup that are there already, under `policy`.
    pub fn with(world: World, cgroup: Cgroup, policy: &str) -> Result<Self> {
        let daemon = Daemon::builder(&world).policy_text(policy).cgroup(&cgroup).start()?;
        let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
        Ok(Self { daemon, inside, beside, cgroup, world })
    }

    /// Starts the daemon again after it ended, with the policy text in its place.
    pub fn restart(&mut self) -> Result<()> {
        self.restart_with(|builder| builder)
    }

    /// The same with what `and` says besides.
    pub fn restart_with(&mut self, and: impl FnOnce(DaemonBuilder<'_>) -> DaemonBuilder<'_>) -> Result<()> {
        let builder = Daemon::builder(&self.world);
        let file = builder.policy_file(0);
        let next = and(builder.policy(file).cgroup(&self.cgroup)).start()?;
        self.follow(next);
        Ok(())
    }

    /// Has the next daemon in the place of one whose process has ended.
    pub fn follow(&mut self, next: Daemon) {
        // The old guard detaches when it is dropped: what is pinned is the new one's.
        std::mem::forget(std::mem::replace(&mut self.daemon, next));
    }

    /// Writes another policy text; nothing is told to the daemon.
    pub fn write_policy(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(Daemon::builder(&self.world).policy_file(0), text)?)
    }

    /// Asks the daemon to read its policy again, and waits until `done` holds of its status.
    pub fn reload(&self, text: &str, done: impl Fn(&Value) -> bool) -> Result<Value> {
        self.write_policy(text)?;
        self.daemon.signal(nix::sys::signal::Signal::SIGHUP)?;
        self.status_until(done)
    }

    /// The daemon's status as soon as `done` holds of it; an error with the last one after eight seconds.
    pub fn status_until(&self, done: impl Fn(&Value) -> bool) -> Result<Value> {
        let start = Instant::now();
        loop {
            let status = self.daemon.status()?;
            if done(&status) {
                return Ok(status);
            }
            if start.elapsed() > patient(Duration::from_secs(8)) {
                bail!("the status did not come to what was waited for: {status:#}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The first event for which `want` holds, waited for up to two seconds.
    pub fn event(&self, want: impl Fn(&Value) -> bool) -> Result<Option<Value>> {
        let start = Instant::now();
        loop {
            let found = self.daemon.events(false)?.into_iter().find(&want);
            if found.is_some() || start.elapsed() > patient(Duration::from_secs(2)) {
                return Ok(found);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Panics when a packet to `to` with this IP protocol arrived in the world.
    ///
    /// # Panics
    /// As said.
    #[track_caller]
    pub fn assert_nothing_arrived(&self, what: &str, to: SocketAddr, protocol: u8) {
        self.world.sniffer.assert_none(what, |frame| frame.goes_to(to.ip(), protocol, None));
    }
}
