//! What is broken, and when.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::random::Random;
use super::scene::Scene;
use crate::dns::Fault;
use crate::world::{GATEWAY_V4, GATEWAY_V6, NODE_V6, UPLINK};

/// What the daemon is doing when it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Up to 600 ms into its start over what is pinned: reading the policy, loading, adopting, replacing programs.
    Start,
    /// Up to 60 ms after it was told to read a changed policy.
    Reload,
    /// The same over another version's pins, which give way to its own.
    Upgrade,
    /// Any time while names are asked for, twenty a second by each of two askers.
    Learning,
}

/// Kills the daemon `times` times and starts it again each time; gives the longest start in milliseconds.
pub fn kills(scene: &mut Scene, moment: Moment, times: u32, random: &mut Random) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for _ in 0..times {
        match moment {
            Moment::Start | Moment::Upgrade => {
                scene.crash()?;
                if moment == Moment::Upgrade {
                    scene.make_old()?;
                }
                scene.begin_start()?;
                sleep(random.up_to(Duration::from_millis(600)));
            }
            Moment::Reload => {
                scene.swap_policy()?;
                scene.reload()?;
                sleep(random.up_to(Duration::from_millis(60)));
            }
            Moment::Learning => sleep(random.up_to(Duration::from_millis(200))),
        }
        scene.crash()?;
        // For a while there is none.
        sleep(random.up_to(Duration::from_millis(50)));
        longest = longest.max(scene.start()?);
    }
    Ok(longest)
}

/// Another policy by SIGHUP, `times` times, each as soon as the one before is in force.
pub fn swaps(scene: &mut Scene, times: u32) -> Result<()> {
    let mut generation = scene.daemon()?.status()?["generation"].clone();
    for _ in 0..times {
        scene.swap_policy()?;
        scene.reload()?;
        let limit = Instant::now() + Duration::from_secs(10);
        loop {
            let now = scene.daemon()?.status()?["generation"].clone();
            if now != generation {
                generation = now;
                break;
            }
            ensure!(Instant::now() < limit, "a reload did not come through: {}", scene.daemon()?.output());
            sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// What is under way when the daemon is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// `egress apply` of a policy for good.
    Apply,
    /// `egress apply --confirm 2s`.
    Trial,
    /// `egress confirm` of a policy on trial.
    Confirm,
    /// `egress rollback` of a policy on trial.
    RollBack,
}

/// A change of the policy is asked for by a command, and the daemon is killed up to 60 ms later, `times` times. Afterwards
/// the kernel, with no daemon, must judge by one whole policy, the old one or the new one, and by the one that the command
/// said; the next daemon must judge by the same.
pub fn changes(scene: &mut Scene, times: u32, random: &mut Random) -> Result<()> {
    for number in 0..times {
        let change = [Change::Apply, Change::Trial, Change::Confirm, Change::RollBack][number as usize % 4];
        let old = scene.daemon()?.status()?["policy"]["hash"].clone();
        let mut on_trial = None;
        if matches!(change, Change::Confirm | Change::RollBack) {
            ensure!(scene.begin_change(number, true)?.wait()?.success(), "apply failed: {}", scene.daemon()?.output());
            on_trial = Some(Instant::now());
        }
        let asked = Instant::now();
        let mut command = match change {
            Change::Apply => scene.begin_change(number, false)?,
            Change::Trial => scene.begin_change(number, true)?,
            Change::Confirm => scene.begin("confirm", &[])?,
            Change::RollBack => scene.begin("rollback", &[])?,
        };
        // The command itself takes some 20 ms before the daemon hears of it.
        sleep(random.up_to(Duration::from_millis(120)));
        scene.crash()?;
        let said = command.wait()?.success();
        // Where the deadline decides: two seconds, and a tick (1.07 s).
        let decides = change != Change::Apply;
        if decides {
            sleep(
                Duration::from_millis(3300)
                    .saturating_sub(on_trial.unwrap_or_else(|| asked + Duration::from_millis(150)).elapsed()),
            );
        }
        let (only_new, extra) = scene.reaches_change(number)?;
        ensure!(only_new == extra, "{change:?} {number}: half of a policy is in force without a daemon");
        scene.start()?;
        let now = scene.daemon()?.status()?["policy"]["hash"].clone();
        let is_new = now != old;
        let context = || {
            format!(
                "{change:?} {number}, the command said {said}, new in the kernel {only_new}, in the daemon {is_new}"
            )
        };
        ensure!(is_new == only_new, "the next daemon judges otherwise: {}", context());
        ensure!(scene.reaches_change(number)? == (is_new, is_new), "half of a policy is in force: {}", context());
        let right = match change {
            Change::Apply => is_new || !said,
            Change::Confirm => is_new || !said,
            Change::Trial | Change::RollBack => !is_new,
        };
        ensure!(right, "{}: {}", context(), scene.daemon()?.output());
    }
    Ok(())
}

/// A policy through the socket, `times` times, one as soon as the other is in force; gives how many a minute.
pub fn floods(scene: &mut Scene, times: u32) -> Result<f64> {
    let start = Instant::now();
    for number in 0..times {
        scene.post_policy(number % 2 == 0)?;
    }
    Ok(f64::from(times) * 60.0 / start.elapsed().as_secs_f64())
}

/// The resolver fails in each way it can, twice, a second each, and answers in between. New names cannot work meanwhile.
pub fn resolver_flaps(scene: &mut Scene) -> Result<()> {
    for _ in 0..2 {
        for fault in [Fault::Silent, Fault::ServFail, Fault::NxDomain, Fault::Refused, Fault::Empty] {
            scene.world.dns.fault_everywhere(fault);
            sleep(Duration::from_secs(1));
            scene.world.dns.fault_everywhere(None);
            sleep(Duration::from_millis(500));
        }
    }
    Ok(())
}

/// The uplink goes down and comes up `times` times, with the routes that fall with it set anew.
pub fn link_flaps(scene: &mut Scene, times: u32) -> Result<()> {
    for _ in 0..times {
        scene.world.node_ns.ip(&format!("link set {UPLINK} down"))?;
        sleep(Duration::from_millis(100));
        scene.world.node_ns.ip(&format!(
            "link set {UPLINK} up\naddress replace {NODE_V6}/64 dev {UPLINK} nodad\n\
             route replace default via {GATEWAY_V4} dev {UPLINK}\nroute replace default via {GATEWAY_V6} dev {UPLINK}"
        ))?;
        sleep(Duration::from_millis(400));
    }
    Ok(())
}

/// `egress detach` is killed up to 40 ms into its work, `times` times; each time the next start must take up or clear away
/// what it finds. What is forbidden gets out meanwhile, as it must, so this runs without traffic.
pub fn detach_kills(scene: &mut Scene, times: u32, random: &mut Random) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for _ in 0..times {
        scene.crash()?;
        let mut detach = scene.begin_detach()?;
        sleep(random.up_to(Duration::from_millis(40)));
        detach.kill()?;
        detach.wait()?;
        longest = longest.max(scene.start()?);
    }
    Ok(longest)
}
