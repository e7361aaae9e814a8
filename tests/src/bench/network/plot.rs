//! The figures as a picture: for each metric, how each peer compares with no enforcement.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;

use super::Figure;
use super::load::Metric;
use crate::bench::picture::{self, COLOURS};

const WIDTH: f64 = 900.0;
/// Where the bars begin, and where the longest ends.
const LEFT: f64 = 215.0;
const RIGHT: f64 = 800.0;
const BAR: f64 = 13.0;
/// Ratios beyond this are cut, with their number told.
const MOST: f64 = 4.0;
/// Writes `NAME.svg` and `NAME.png` into `out`.
pub fn write(out: &Path, name: &str, title: &str, figures: &[&Figure]) -> Result<()> {
    picture::write(out, name, &draw(title, figures))
}

fn draw(title: &str, figures: &[&Figure]) -> String {
    let mut metrics: Vec<Metric> = figures.iter().map(|figure| figure.metric).collect();
    metrics.dedup();
    let mut body = String::new();
    let x = |ratio: f64| LEFT + (RIGHT - LEFT) * ratio.min(MOST) / MOST;
    let mut y = 70.0;
    for metric in metrics {
        let of_metric = figures.iter().filter(|figure| figure.metric == metric);
        let better = if metric.more_is_better() { "more is better" } else { "less is better" };
        let _ = writeln!(body, "<text x='10' y='{:.0}' font-weight='bold'>{}</text>", y + 11.0, metric.title());
        let _ = writeln!(body, "<text x='10' y='{:.0}' fill='#666'>{better}</text>", y + 26.0);
        for (row, figure) in of_metric.enumerate() {
            let (top, ratio) = (y + row as f64 * (BAR + 2.0), figure.ratio);
            let colour = COLOURS[row % COLOURS.len()];
            let _ = writeln!(
                body,
                "<rect x='{LEFT}' y='{top:.1}' width='{:.1}' height='{BAR}' fill='{colour}'/>\
                 <line x1='{:.1}' x2='{:.1}' y1='{mid:.1}' y2='{mid:.1}' stroke='#222'/>\
                 <text x='{:.1}' y='{:.1}'>{} {:.2}</text>",
                x(ratio.median) - LEFT,
                x((ratio.median - ratio.spread).max(0.0)),
                x(ratio.median + ratio.spread),
                x(ratio.median + ratio.spread) + 6.0,
                top + 11.0,
                figure.peer,
                ratio.median,
                mid = top + BAR / 2.0,
            );
        }
        y += figures.iter().filter(|figure| figure.metric == metric).count() as f64 * (BAR + 2.0) + 18.0;
    }
    let one = x(1.0);
    let line = format!("<line x1='{one}' x2='{one}' y1='60' y2='{y:.0}' stroke='#bbb' stroke-dasharray='3 3'/>\n");
    let says = "Ratio to no enforcement in the same round; the line is the spread.";
    picture::frame(WIDTH, y, title, says, &(line + &body))
}
