//! What a verdict costs as the tables grow, as pictures.

use super::{Figure, cold::Part};
use crate::bench::lines::{Line, draw};

/// What a reader can tell apart: packets that go out, by IPv4 (IPv6 lies on it), run many times.
fn is_drawn(figure: &&Figure) -> bool {
    figure.program.ends_with("egress") && !figure.what.ends_with(" v6") && !figure.what.contains("run once")
}

/// A line for each such row: ratio to the empty program over addresses, by decades. `None` where there is but one size.
#[must_use]
pub fn growth(figures: &[Figure]) -> Option<String> {
    let points = figures
        .iter()
        .filter(is_drawn)
        .map(|figure| (format!("{}, {}", figure.what, figure.program), figure.addresses, figure.ratio.median));
    let says = "Ratio to the empty program in the same round, by addresses in the tables (a tenth as many names and prefixes).";
    draw("A verdict's cost as the tables grow", says, lines(points))
}

/// First packets to addresses of one rule each: nanoseconds over the empty program, by decades of rules.
#[must_use]
pub fn rules(parts: &[Part]) -> Option<String> {
    let points = parts.iter().flat_map(|part| {
        let cold = part.cold.map(|cold| (format!("{}, cold", part.what), part.rules, cold));
        [(format!("{}, hot", part.what), part.rules, part.hot)].into_iter().chain(cold)
    });
    let says = "Nanoseconds over the empty program at uplink_egress, by rules; the policy has 10,000 addresses.";
    draw("A verdict's cost as rules grow", says, lines(points))
}

fn lines(points: impl Iterator<Item = (String, u32, f64)>) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (label, size, value) in points {
        match lines.iter_mut().find(|line| line.label == label) {
            Some(line) => line.points.push((size, value)),
            None => lines.push(Line { label, points: vec![(size, value)] }),
        }
    }
    lines
}
