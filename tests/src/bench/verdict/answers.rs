//! Answers, each of which counts once: so the query that one answers is made pending again before each run.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use egress_ebpf::abi::{ANSWER_FOLDS, AnswerFold, LearnCount, PROTO_UDP, Pending, PendingKey};
use egress_user::datapath::{Table, sys};
use zerocopy::{FromZeros as _, IntoBytes as _};

use super::{Figure, Options, Place, place, quantile};
use crate::bench::{
    raw,
    wire::{self, UDP},
};

/// Runs between two looks at the ring buffer, so that it does not fill: an event of 60 addresses has 2 KB of its megabyte.
const RUNS: u32 = 200;
/// Turns of each round.
const TURNS: u32 = 8;

const ID: u16 = 7;

/// Rows of answers with 1, 8 and 60 addresses at `uplink_ingress`, as they are when the daemon was told of the same in this tick, and
/// when it is told. A program makes the query pending again, and in the latter rows forgets what was told; it goes on to the one that is
/// measured, or to an empty one; the difference is the answer's.
pub fn measure(place: &mut Place, addresses: u32, options: &Options) -> Result<Vec<Figure>> {
    let ifindex = place.ifindex;
    let empty = raw::empty(raw::CLASSIFIER)?;
    let learning = place.object.program("uplink_ingress")?.try_clone_to_owned()?;
    let pending = pending(place)?;
    let mut events = place.object.events()?;
    let counters: Table<u32, u64> = place.object.table("LEARN_COUNTERS")?;
    let learned = |counters: &Table<u32, u64>| counters.sum(LearnCount::Answers as u32);
    let mut figures = Vec::new();
    for (count, what) in [(1, "answer with 1 address"), (8, "answer with 8"), (60, "answer with 60")] {
        let frame = wire::frame(UDP, place::RESOLVER, place::CLIENT, 0, &wire::answer(ID, place::NAME, count));
        let run = |program: &OwnedFd, repeat| {
            let input = sys::TestInput { packet: &frame, ifindex, output: None, repeat };
            anyhow::Ok(sys::test_run(program.as_fd(), input)?.nanoseconds)
        };
        let fold = fold(place, &again(place, &pending, None, &learning)?, &run)?;
        for (forget, what) in [(None, what.to_owned()), (Some(fold), format!("{what}, told"))] {
            let [learning, nothing] = [&learning, &empty].map(|goes_on| again(place, &pending, forget, goes_on));
            let (learning, nothing) = (learning?, nothing?);
            let (mut own, mut base) = (Vec::new(), Vec::new());
            for _ in 0..options.rounds * TURNS {
                base.push(run(&empty, RUNS * 10)?);
                drain(&mut events);
                let before = learned(&counters)?;
                let (all, less) = (run(&learning.program, RUNS)?, run(&nothing.program, RUNS)?);
                own.push(base.last().unwrap_or(&0) + all.saturating_sub(less));
                let (answers, told) = (learned(&counters)? - before, drain(&mut events));
                ensure!(answers == u64::from(RUNS), "of {RUNS} answers {answers} were learned from");
                ensure!(forget.is_none() || told == RUNS, "of {RUNS} answers {told} were told");
            }
            let ratio = super::ratio(&own, &base);
            let spread = quantile(&own, 0.75) - quantile(&own, 0.25);
            let program = "uplink_ingress".to_owned();
            let (nanoseconds, empty) = (quantile(&own, 0.5), quantile(&base, 0.5));
            figures.push(Figure { addresses, what, program, nanoseconds, empty, spread, ratio });
        }
    }
    Ok(figures)
}

/// What the map of queries on their way holds of one, after `uplink_egress` let it leave.
fn pending(place: &mut Place) -> Result<(PendingKey, Pending)> {
    let query = wire::frame(UDP, place::CLIENT, place::RESOLVER, 0, &wire::query(ID, place::NAME));
    let input = sys::TestInput { packet: &query, ifindex: place.ifindex, output: None, repeat: 1 };
    let asked = sys::test_run(place.object.program("uplink_egress")?, input)?;
    ensure!(asked.returned != 2, "the query was refused");
    let key = PendingKey {
        cookie: 0,
        local: place::CLIENT.ip().into(),
        resolver: place::RESOLVER.ip().into(),
        local_port: place::CLIENT.port(),
        resolver_port: place::RESOLVER.port(),
        id: ID,
        proto: PROTO_UDP,
        pad: 0,
    };
    let table: Table<PendingKey, Pending> = place.object.table("PENDING")?;
    Ok((key, table.get(&key)?.context("the query is not pending")?))
}

/// A program that makes the query pending again and goes on, and what it needs for that.
struct Again {
    program: OwnedFd,
    _needs: Vec<OwnedFd>,
}

/// A program that makes the query pending again, forgets that the daemon was told of answers in the place `forget`, and goes on to
/// another one.
fn again(
    place: &Place,
    (key, pending): &(PendingKey, Pending),
    forget: Option<u32>,
    goes_on: &OwnedFd,
) -> Result<Again> {
    let [map, folds] = [place.object.map_fd("PENDING")?, place.object.map_fd("ANSWER_FOLDS")?];
    let mut goes_on = goes_on.try_clone()?;
    let mut needs = Vec::new();
    if let Some(at) = forget {
        let none = AnswerFold::new_zeroed();
        let [forgets, table] = raw::update_and_go_on(folds.as_fd(), at.as_bytes(), none.as_bytes(), goes_on.as_fd())?;
        needs.extend([goes_on, table]);
        goes_on = forgets;
    }
    let [program, table] = raw::update_and_go_on(map.as_fd(), key.as_bytes(), pending.as_bytes(), goes_on.as_fd())?;
    needs.extend([goes_on, table]);
    Ok(Again { program, _needs: needs })
}

/// In which place the answer is folded that `run` brings to a program.
fn fold(place: &Place, again: &Again, run: &impl Fn(&OwnedFd, u32) -> Result<u32>) -> Result<u32> {
    let folds: Table<u32, AnswerFold> = place.object.table("ANSWER_FOLDS")?;
    for at in 0..ANSWER_FOLDS {
        folds.set(&at, &AnswerFold::new_zeroed(), sys::ANY)?;
    }
    run(&again.program, 1)?;
    let mut used = None;
    folds.each(|at, fold| {
        used = (fold.told != 0).then_some(*at);
        used.is_none()
    })?;
    used.context("it is not remembered that the daemon was told")
}

/// How many events there were.
fn drain(events: &mut RingBuf<MapData>) -> u32 {
    let mut count = 0;
    while events.next().is_some() {
        count += 1;
    }
    count
}
