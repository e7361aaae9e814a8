//! Lines over a logarithmic scale, as a picture.

use std::fmt::Write as _;

use super::picture::{COLOURS, frame};

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
/// The plot's own edges.
const LEFT: f64 = 60.0;
const RIGHT: f64 = 560.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 470.0;

/// One line.
pub struct Line {
    pub label: String,
    /// Sizes, all the same in all lines, and what was measured at each.
    pub points: Vec<(u32, f64)>,
}

/// A line for each; `None` where there is but one size. The one that ends highest is named first.
#[must_use]
pub fn draw(title: &str, says: &str, mut lines: Vec<Line>) -> Option<String> {
    let mut sizes: Vec<u32> = lines.iter().flat_map(|line| &line.points).map(|(size, _)| *size).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let (first, last) = (f64::from(*sizes.first()?).log10(), f64::from(*sizes.last()?).log10());
    if sizes.len() < 2 {
        return None;
    }
    let most = lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value).fold(1.0, f64::max);
    let step = step(most);
    let most = (most / step).ceil() * step;
    let x = |size: u32| LEFT + (f64::from(size).log10() - first) / (last - first) * (RIGHT - LEFT);
    let y = |value: f64| BOTTOM - value / most * (BOTTOM - TOP);
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
    let mut tick = 0.0;
    while tick <= most {
        let at = y(tick);
        let _ = writeln!(
            body,
            "<line x1='{LEFT}' x2='{RIGHT}' y1='{at:.1}' y2='{at:.1}' stroke='#eee'/>\
             <text x='{:.0}' y='{:.1}' text-anchor='end'>{tick}</text>",
            LEFT - 8.0,
            at + 4.0
        );
        tick += step;
    }
    lines.retain(|line| line.points.len() == sizes.len());
    lines.sort_by(|a, b| end(b).total_cmp(&end(a)));
    let mut label = TOP;
    for (n, line) in lines.iter().enumerate() {
        let (colour, dashes) = (COLOURS[n % COLOURS.len()], ["", "5 3", "1 3"][n / COLOURS.len() % 3]);
        let points: Vec<_> =
            line.points.iter().map(|(size, value)| format!("{:.1},{:.1}", x(*size), y(*value))).collect();
        let at = y(end(line));
        label = at.max(label);
        let _ = writeln!(
            body,
            "<polyline points='{}' fill='none' stroke='{colour}' stroke-width='2' stroke-dasharray='{dashes}'/>\
             <line x1='{RIGHT}' x2='{:.0}' y1='{at:.1}' y2='{label:.1}' stroke='{colour}' stroke-width='0.5'/>\
             <text x='{:.0}' y='{:.1}' fill='{colour}'>{} {}</text>",
            points.join(" "),
            RIGHT + 20.0,
            RIGHT + 24.0,
            label + 4.0,
            short(end(line)),
            line.label
        );
        label += 14.0;
    }
    Some(frame(WIDTH, HEIGHT.max(label + 10.0), title, says, &body))
}

/// What was measured at the greatest size.
fn end(line: &Line) -> f64 {
    line.points.last().map_or(0.0, |(_, value)| *value)
}

fn short(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// Between two ticks: 1, 2 or 5 times a power of ten, so that there are at most ten.
fn step(most: f64) -> f64 {
    let power = 10_f64.powf((most / 10.0).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|times| times * power).find(|step| most / step <= 10.0).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        for (most, wanted) in [(1.0, 0.1), (12.2, 2.0), (30.0, 5.0), (95.0, 10.0), (161.0, 20.0)] {
            assert!((step(most) / wanted - 1.0).abs() < 1e-9, "{most}: {}", step(most));
        }
    }

    #[test]
    fn one_size_is_no_line() {
        let line = |points| vec![Line { label: "a".to_owned(), points }];
        assert!(draw("t", "s", line(vec![(10, 1.0)])).is_none());
        assert!(draw("t", "s", line(vec![(10, 1.0), (100, 2.0)])).is_some_and(|svg| svg.contains(">2.0 a<")));
    }
}
