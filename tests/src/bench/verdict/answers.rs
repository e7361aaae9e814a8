//! Answers, each of which counts once: so the query that one answers is made pending again before each run.

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapData, RingBuf};
use egress_ebpf::abi::{PROTO_UDP, Pending, PendingKey};
use egress_user::datapath::{Table, sys};
use zerocopy::IntoBytes as _;

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

/// Rows of answers with 1, 8 and 60 addresses at `uplink_ingress`. A program makes the query pending again and goes on to the one that
/// is measured, or to an empty one; the difference is the answer's.
pub fn measure(place: &mut Place, addresses: u32, options: &Options) -> Result<Vec<Figure>> {
    let ifindex = place.ifindex;
    let empty = raw::empty(raw::CLASSIFIER)?;
    let pending = pending(place)?;
    let [learning, nothing] = [place.object.program("uplink_ingress")?.try_clone_to_owned()?, empty.try_clone()?]
        .map(|goes_on| again(place, &pending, &goes_on));
    let ([learning, _to], [nothing, _to_nothing]) = (learning?, nothing?);
    let mut events = place.object.events()?;
    // What the rows before this one told of.
    drain(&mut events);
    let mut figures = Vec::new();
    for (count, what) in [(1, "answer with 1 address"), (8, "answer with 8"), (60, "answer with 60")] {
        let frame = wire::frame(UDP, place::RESOLVER, place::CLIENT, 0, &wire::answer(ID, place::NAME, count));
        let (mut own, mut base) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds * TURNS {
            let run = |program: &OwnedFd, repeat| {
                let input = sys::TestInput { packet: &frame, ifindex, output: None, repeat };
                anyhow::Ok(sys::test_run(program.as_fd(), input)?.nanoseconds)
            };
            base.push(run(&empty, RUNS * 10)?);
            let (all, less) = (run(&learning, RUNS)?, run(&nothing, RUNS)?);
            own.push(base.last().unwrap_or(&0) + all.saturating_sub(less));
            let learned = drain(&mut events);
            ensure!(learned == RUNS, "of {RUNS} answers {learned} were learned from");
        }
        let ratio = super::ratio(&own, &base);
        let spread = quantile(&own, 0.75) - quantile(&own, 0.25);
        let (what, program) = (what.to_owned(), "uplink_ingress".to_owned());
        let (nanoseconds, empty) = (quantile(&own, 0.5), quantile(&base, 0.5));
        figures.push(Figure { addresses, what, program, nanoseconds, empty, spread, ratio });
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

/// A program that makes the query pending again and goes on to another one, and its table.
fn again(place: &Place, (key, pending): &(PendingKey, Pending), goes_on: &OwnedFd) -> Result<[OwnedFd; 2]> {
    let map = place.object.map_fd("PENDING")?;
    Ok(raw::update_and_go_on(map.as_fd(), key.as_bytes(), pending.as_bytes(), goes_on.as_fd())?)
}

/// How many events there were.
fn drain(events: &mut RingBuf<MapData>) -> u32 {
    let mut count = 0;
    while events.next().is_some() {
        count += 1;
    }
    count
}
