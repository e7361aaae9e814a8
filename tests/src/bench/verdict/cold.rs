//! What cannot be repeated on one packet: answers, each of which counts once, and addresses that no cache holds.

use std::os::fd::AsFd as _;

use anyhow::{Result, ensure};
use egress_user::datapath::sys;

use super::{Figure, Place, place, quantile};
use crate::bench::{
    raw,
    wire::{self, SYN, TCP, UDP},
};

/// The first packet to one of very many addresses, run once each; nanoseconds over the empty program run the same way.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Cold {
    pub addresses: u32,
    /// `uplink_egress`, to the same address each time.
    pub hot: f64,
    /// The same, to another address each time.
    pub cold: f64,
    /// A hash lookup with a 24-byte key and as many elements, the same address each time.
    pub key_24_hot: f64,
    /// The same, another address each time.
    pub key_24_cold: f64,
}

const RUNS: u32 = 2000;

/// Pairs of a query and its answer, each run once.
pub fn answers(place: &mut Place, addresses: u32) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    let ifindex = place.ifindex;
    let empty = raw::empty(raw::CLASSIFIER)?;
    for (count, what) in [(1, "answer with 1 address"), (8, "answer with 8"), (60, "answer with 60")] {
        let (mut own, mut base) = (Vec::new(), Vec::new());
        for id in 0..RUNS as u16 {
            let query = wire::frame(UDP, place::CLIENT, place::RESOLVER, 0, &wire::query(id, place::NAME));
            let answer = wire::frame(UDP, place::RESOLVER, place::CLIENT, 0, &wire::answer(id, place::NAME, count));
            let once = |packet| sys::TestInput { packet, ifindex, output: None, repeat: 1 };
            let asked = sys::test_run(place.object.program("uplink_egress")?, once(&query))?;
            ensure!(asked.returned != 2, "the query was refused");
            base.push(sys::test_run(empty.as_fd(), once(&answer))?.nanoseconds);
            own.push(sys::test_run(place.object.program("uplink_ingress")?, once(&answer))?.nanoseconds);
        }
        let (median, spread) = (quantile(&own, 0.5), quantile(&own, 0.75) - quantile(&own, 0.25));
        let (what, program) = (format!("{what}, run once"), "uplink_ingress".to_owned());
        let empty = quantile(&base, 0.5);
        let ratio = super::ratio(&own, &base);
        figures.push(Figure { addresses, what, program, nanoseconds: median, empty, spread, ratio });
    }
    Ok(figures)
}

/// First packets, hot and cold.
pub fn first_packets(place: &mut Place, addresses: u32) -> Result<Cold> {
    let table = raw::hash(24, addresses.next_power_of_two() * 2)?;
    for number in 0..addresses {
        let mut key = [0; 24];
        if let std::net::IpAddr::V4(address) = place::address(true, number) {
            key[..4].copy_from_slice(&address.octets());
        }
        sys::map_update(table.as_fd(), &key, &[0; 8], sys::ANY)?;
    }
    let lookup = raw::lookup_24(table.as_fd())?;
    let empty = raw::empty(raw::CLASSIFIER)?;
    let ifindex = place.ifindex;
    let mut medians = [0.0; 6];
    for (step, slot) in [(0, 0), (1, 3)] {
        let mut taken = [Vec::new(), Vec::new(), Vec::new()];
        for run in 0..RUNS {
            // A large odd step comes to every address before it comes to one again, and to none near the last.
            let number = if step == 0 { 50 } else { (u64::from(run) * 7_368_787 % u64::from(addresses)) as u32 };
            let frame = wire::frame(TCP, place::CLIENT, (place::address(true, number), 443).into(), SYN, &[]);
            let once = || sys::TestInput { packet: &frame, ifindex, output: None, repeat: 1 };
            taken[0].push(sys::test_run(empty.as_fd(), once())?.nanoseconds);
            let ran = sys::test_run(place.object.program("uplink_egress")?, once())?;
            ensure!(ran.returned != 2, "a first packet was dropped");
            taken[1].push(ran.nanoseconds);
            taken[2].push(sys::test_run(lookup.as_fd(), once())?.nanoseconds);
        }
        for (number, values) in taken.iter_mut().enumerate() {
            medians[slot + number] = quantile(values, 0.5);
        }
    }
    let [hot_empty, hot, hot_24, cold_empty, cold, cold_24] = medians;
    Ok(Cold {
        addresses,
        hot: hot - hot_empty,
        cold: cold - cold_empty,
        key_24_hot: hot_24 - hot_empty,
        key_24_cold: cold_24 - cold_empty,
    })
}
