//! What a verdict costs as the tables grow, as a picture.

use std::fmt::Write as _;

use super::Figure;
use crate::bench::picture::{COLOURS, frame};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
/// The plot's own edges.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 560.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 470.0;

/// What a reader can tell apart: packets that go out, by IPv4 (IPv6 lies on it), run many times.
fn is_drawn(figure: &&Figure) -> bool {
    figure.program.ends_with("egress") && !figure.what.ends_with(" v6") && !figure.what.contains("run once")
}

/// A line for each such row: ratio to the empty program over addresses, by decades. `None` where there is but one size.
#[must_use]
pub fn growth(figures: &[Figure]) -> Option<String> {
    let figures: Vec<&Figure> = figures.iter().filter(is_drawn).collect();
    let mut sizes: Vec<u32> = figures.iter().map(|figure| figure.addresses).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let (first, last) = (f64::from(*sizes.first()?).log10(), f64::from(*sizes.last()?).log10());
    if sizes.len() < 2 {
        return None;
    }
    let most = figures.iter().map(|figure| figure.ratio.median).fold(1.0, f64::max).ceil();
    let x = |addresses: u32| LEFT + (f64::from(addresses).log10() - first) / (last - first) * (RIGHT - LEFT);
    let y = |ratio: f64| BOTTOM - ratio / most * (BOTTOM - TOP);
    let mut body = String::new();
    for size in &sizes {
        let at = x(*size);
        let _ = writeln!(
            body,
            "<line x1='{at:.1}' x2='{at:.1}' y1='{TOP}' y2='{BOTTOM}' stroke='#eee'/>\
             <text x='{at:.1}' y='{:.0}' text-anchor='middle'>{size}</text>",
            BOTTOM + 18.0
        );
    }
    for ratio in (0..=most as u32).step_by((most as usize / 8).max(1)) {
        let at = y(f64::from(ratio));
        let _ = writeln!(
            body,
            "<line x1='{LEFT}' x2='{RIGHT}' y1='{at:.1}' y2='{at:.1}' stroke='#eee'/>\
             <text x='{:.0}' y='{:.1}' text-anchor='end'>{ratio}</text>",
            LEFT - 8.0,
            at + 4.0
        );
    }
    let mut rows: Vec<Vec<&Figure>> = Vec::new();
    for &figure in &figures {
        match rows.iter_mut().find(|row| row[0].what == figure.what && row[0].program == figure.program) {
            Some(row) => row.push(figure),
            None => rows.push(vec![figure]),
        }
    }
    rows.retain(|row| row.len() == sizes.len());
    rows.sort_by(|a, b| b[b.len() - 1].ratio.median.total_cmp(&a[a.len() - 1].ratio.median));
    let mut label = TOP;
    for (n, row) in rows.iter().enumerate() {
        let (colour, dashes) = (COLOURS[n % COLOURS.len()], ["", "5 3", "1 3"][n / COLOURS.len() % 3]);
        let points: Vec<_> =
            row.iter().map(|figure| format!("{:.1},{:.1}", x(figure.addresses), y(figure.ratio.median))).collect();
        let end = row[row.len() - 1];
        let at = y(end.ratio.median);
        label = at.max(label);
        let _ = writeln!(
            body,
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2' stroke-dasharray='{dashes}'/>\
             <line x1='{RIGHT}' x2='{:.0}' y1='{at:.1}' y2='{label:.1}' stroke='{colour}' stroke-width='0.5'/>\
             <text x='{:.0}' y='{:.1}' fill='{colour}'>{:.1} {}, {}</text>",
            points.join(" "),
            RIGHT + 20.0,
            RIGHT + 24.0,
            label + 4.0,
            end.ratio.median,
            end.what,
            end.program
        );
        label += 14.0;
    }
    let says = "Ratio to the empty program in the same round, by addresses in the tables (a tenth as many names and prefixes).";
    Some(frame(WIDTH, HEIGHT.max(label + 10.0), "A verdict's cost as the tables grow", says, &body))
}
