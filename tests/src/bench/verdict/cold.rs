//! First packets to addresses that no cache holds, and what verdicts are made of.

use std::{
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Result, ensure};
use egress_user::datapath::sys;

use super::{Options, Place, place, quantile};
use crate::bench::{
    raw,
    wire::{self, SYN, TCP},
};

/// First packets, and the bare parts that none of them can do without: nanoseconds over the empty program, run the same way.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Part {
    pub addresses: u32,
    /// Rules that the addresses are shared out among.
    pub rules: u32,
    pub what: &'static str,
    /// One packet many times in one run.
    pub hot: f64,
    /// One packet, run once at a time.
    pub once: f64,
    /// The same, to another address each time; `None` where no address counts.
    pub cold: Option<f64>,
}

const RUNS: u32 = 2000;
const HOT_RUNS: u32 = 9;

/// The part that tells whether the kernel guards returns.
pub const CALL: &str = "a call of a function";

/// What the bare tables hold: addresses, or prefixes.
const TO_ADDRESSES: [&str; 4] =
    ["first packet by name", "hash, 8-byte key", "hash, 24-byte key", "LRU hash, 40-byte key"];
const TO_PREFIXES: [&str; 2] = ["first packet by prefix", "trie of prefixes"];

/// First packets at `uplink_egress`, bare lookups in tables of as many elements, and bare calls.
pub fn parts(place: &mut Place, addresses: u32, options: &Options) -> Result<Vec<Part>> {
    let room = addresses.next_power_of_two() * 2;
    let tables = [(raw::hash(8, room)?, 8), (raw::hash(24, room)?, 24), (raw::lru_hash(40, room)?, 40)];
    for number in 0..addresses {
        for (table, size) in &tables {
            let mut key = [0; 40];
            key[..4].copy_from_slice(&octets(place::address(true, number)));
            sys::map_update(table.as_fd(), &key[..*size], &[0; 8], sys::ANY)?;
        }
    }
    let prefixes = place.prefixes();
    let trie = raw::trie(12, prefixes.next_power_of_two() * 2)?;
    for number in 0..prefixes {
        let mut key = [0; 12];
        key[..4].copy_from_slice(&(32_u32 + 24).to_ne_bytes());
        key[8..11].copy_from_slice(&octets(place::prefix(true, number))[..3]);
        sys::map_update(trie.as_fd(), &key, &[0; 8], sys::ANY)?;
    }
    let own = place.object.program("uplink_egress")?.try_clone_to_owned()?;
    let mut programs = vec![own.try_clone()?];
    for (table, size) in &tables {
        programs.push(raw::lookup(table.as_fd(), &[], *size as i16)?);
    }
    let mut parts = lookups(place, options, &TO_ADDRESSES, &programs, |number| {
        place::address(true, (number % u64::from(addresses)) as u32)
    })?;
    let programs = [own, raw::lookup(trie.as_fd(), &[64, 0], 12)?];
    place.configure(super::PREFIXES)?;
    let by_prefix = |number| place::prefix(true, (number % u64::from(prefixes)) as u32);
    parts.extend(lookups(place, options, &TO_PREFIXES, &programs, by_prefix)?);
    place.configure(0)?;
    // Helpers 160 and 46: bpf_ktime_get_coarse_ns and bpf_get_socket_cookie.
    let calls =
        [(CALL, raw::calls()?), ("the coarse clock", raw::helpers(160)?), ("a socket's cookie", raw::helpers(46)?)];
    for (what, program) in calls {
        let [hot, once] =
            [options.repeat, 1].map(|repeat| over_empty(place, &program, repeat, |_| place::address(true, 0)));
        let each = f64::from(raw::CALLS);
        parts.push(Part { addresses, rules: place.rules(), what, hot: hot? / each, once: once? / each, cold: None });
    }
    Ok(parts)
}

/// First packets to addresses of many rules.
pub fn by_rules(place: &mut Place, options: &Options) -> Result<Vec<Part>> {
    let own = place.object.program("uplink_egress")?.try_clone_to_owned()?;
    let addresses = u64::from(place.addresses());
    lookups(place, options, &TO_ADDRESSES[..1], &[own], |number| place::address(true, (number % addresses) as u32))
}

fn octets(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}

/// A row for each program, to one of the addresses and to very many.
fn lookups(
    place: &Place,
    options: &Options,
    names: &[&'static str],
    programs: &[OwnedFd],
    to: impl Fn(u64) -> IpAddr,
) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    for (what, program) in names.iter().zip(programs) {
        let one = |_| to(7);
        parts.push(Part {
            addresses: place.addresses(),
            rules: place.rules(),
            what,
            hot: over_empty(place, program, options.repeat, one)?,
            once: over_empty(place, program, 1, one)?,
            // A large odd step comes to every address before it comes to one again, and to none near the last.
            cold: Some(over_empty(place, program, 1, |run| to(run * 7_368_787))?),
        });
    }
    Ok(parts)
}

/// The median of a program's runs, each right after one of the empty program, over the median of these; the run's number gives the
/// destination.
fn over_empty(place: &Place, program: &OwnedFd, repeat: u32, to: impl Fn(u64) -> IpAddr) -> Result<f64> {
    let empty = raw::empty(raw::CLASSIFIER)?;
    let (mut own, mut base) = (Vec::new(), Vec::new());
    for run in 0..u64::from(if repeat == 1 { RUNS } else { HOT_RUNS }) {
        let frame = wire::frame(TCP, place::CLIENT, (to(run), 443).into(), SYN, &[]);
        let input = || sys::TestInput { packet: &frame, ifindex: place.ifindex, output: None, repeat };
        base.push(sys::test_run(empty.as_fd(), input())?.nanoseconds);
        let ran = sys::test_run(program.as_fd(), input())?;
        ensure!(ran.returned != 2, "a first packet was dropped");
        own.push(ran.nanoseconds);
    }
    Ok(quantile(&own, 0.5) - quantile(&base, 0.5))
}
