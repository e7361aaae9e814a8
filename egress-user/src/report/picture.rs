//! The pictures, as inline SVG that takes its colours from the page.

use std::{collections::BTreeMap, fmt::Write as _};

use super::{Run, page::text};

/// Sources and destinations that the flow picture names; the rest is one band.
const SOURCES: usize = 10;
const DESTINATIONS: usize = 18;
/// Height of a label's row.
const ROW: f64 = 26.0;
/// Between a label and its bands.
const GAP: f64 = 8.0;
/// How much wider the labels of what was blocked are.
const BOLD: f64 = 1.13;

/// A band between a source and a destination.
struct Band {
    from: usize,
    to: usize,
    count: u64,
    blocked: bool,
}

/// Who talked to whom, `width` units wide: as wide on the screen, so that text has its size.
pub(super) fn flows(run: &Run, width: f64, id: &str) -> String {
    let weigh = |index: fn(&(String, String)) -> &String| {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for (key, pair) in &run.pairs {
            *sums.entry(index(key)).or_default() += pair.blocked + pair.passed;
        }
        let mut sums: Vec<(&str, u64)> = sums.into_iter().collect();
        sums.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        sums
    };
    let (sources, destinations) = (weigh(|key| &key.0), weigh(|key| &key.1));
    let place = |list: &[(&str, u64)], most: usize, name: &str| {
        list.iter().take(most).position(|(known, _)| *known == name).unwrap_or(most)
    };
    let mut sums: BTreeMap<(usize, usize, bool), u64> = BTreeMap::new();
    for ((source, destination), pair) in &run.pairs {
        let (from, to) = (place(&sources, SOURCES, source), place(&destinations, DESTINATIONS, destination));
        for (blocked, count) in [(false, pair.passed), (true, pair.blocked)] {
            if count > 0 {
                *sums.entry((from, to, blocked)).or_default() += count;
            }
        }
    }
    let bands: Vec<Band> =
        sums.into_iter().map(|((from, to, blocked), count)| Band { from, to, count, blocked }).collect();
    let labels = |list: &[(&str, u64)], most: usize, what: &str| {
        let mut labels: Vec<String> = list.iter().take(most).map(|(name, _)| (*name).to_owned()).collect();
        if list.len() > most {
            labels.push(format!("{} more {what}", list.len() - most));
        }
        labels
    };
    let left = labels(&sources, SOURCES, "sources");
    let right = labels(&destinations, DESTINATIONS, "destinations");
    draw(&bands, &left, &right, width, id)
}

fn draw(bands: &[Band], left: &[String], right: &[String], width: f64, id: &str) -> String {
    let rows = left.len().max(right.len()).max(1);
    let height = rows as f64 * ROW + 12.0;
    // Labels take the outer parts: the left one a quarter, the right one half.
    let (x1, x2) = (width * 0.23, width * 0.48);
    let at = |index: usize, of: usize| 6.0 + (index as f64 + 0.5) * (rows as f64 * ROW / of.max(1) as f64);
    let mut svg = format!(
        "<svg class=\"{id}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-labelledby=\"{id}-t\">\
         <title id=\"{id}-t\">Who talked to whom: {} sources, {} destinations. The table below has the same.</title>",
        left.len(),
        right.len()
    );
    let most = bands.iter().map(|band| band.count).max().unwrap_or(1) as f64;
    for band in bands {
        let (y1, y2) = (at(band.from, left.len()), at(band.to, right.len()));
        let thick = 1.5 + 9.5 * ((1.0 + band.count as f64).ln() / (1.0 + most).ln());
        let middle = f64::midpoint(x1, x2);
        let class = if band.blocked { "b" } else { "p" };
        let _ = write!(
            svg,
            "<path class=\"{class}\" stroke-width=\"{thick:.1}\" d=\"M{x1:.0} {y1:.1}C{middle:.0} {y1:.1} {middle:.0} {y2:.1} {x2:.0} {y2:.1}\">\
             <title>{} to {}: {} {}</title></path>",
            text(left.get(band.from).map_or("others", String::as_str)),
            text(right.get(band.to).map_or("others", String::as_str)),
            band.count,
            if band.blocked { "blocked" } else { "seen" }
        );
    }
    for (index, label) in left.iter().enumerate() {
        let y = at(index, left.len());
        let _ = write!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\"><title>{}</title>{}</text>",
            x1 - GAP,
            y + 4.5,
            text(label),
            text(&cut(label, x1 - GAP))
        );
    }
    for (index, label) in right.iter().enumerate() {
        let blocked = bands.iter().any(|band| band.to == index && band.blocked);
        let y = at(index, right.len());
        let room = width - x2 - GAP;
        let (mark, room) = if blocked { ("\u{2715} ", (room - 15.0) / BOLD) } else { ("", room) };
        let _ = write!(
            svg,
            "<text x=\"{:.0}\" y=\"{:.1}\"{}><title>{}</title>{mark}{}</text>",
            x2 + GAP,
            y + 4.5,
            if blocked { " class=\"x\"" } else { "" },
            text(label),
            text(&cut(label, room))
        );
    }
    svg.push_str("</svg>");
    svg
}

/// How wide a letter is at 13 px, in the widest of the usual system fonts (DejaVu Sans).
fn wide(letter: char) -> f64 {
    match letter {
        'i' | 'j' | 'l' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | '/' | '[' | ']' | ' ' => 5.1,
        'm' | 'M' | 'w' | 'W' | '@' | '%' | '\u{2026}' => 13.2,
        _ if letter.is_ascii_uppercase() => 10.3,
        _ if letter.is_ascii() => 8.4,
        _ => 14.0,
    }
}

/// As much of a label as has `room`. The middle goes: a name's end says as much as its start.
fn cut(label: &str, room: f64) -> String {
    if label.chars().map(wide).sum::<f64>() <= room {
        return label.to_owned();
    }
    let half = (room - wide('\u{2026}')) / 2.0;
    let fitting = |used: &mut f64, letter: char| {
        *used += wide(letter);
        (*used <= half).then_some(letter)
    };
    let head: String = label.chars().scan(0.0, fitting).collect();
    let tail: Vec<char> = label.chars().rev().scan(0.0, fitting).collect();
    format!("{head}\u{2026}{}", tail.iter().rev().collect::<String>())
}

/// One destination over the run's time: bars in equal steps.
pub(super) fn bars(seconds: &BTreeMap<u64, u64>, span: (u64, u64), blocked: bool, label: &str) -> String {
    const STEPS: u64 = 48;
    let length = span.1.saturating_sub(span.0) + 1;
    let steps = length.min(STEPS);
    let mut sums = vec![0_u64; usize::try_from(steps).unwrap_or(1)];
    for (second, count) in seconds {
        let step = (second.saturating_sub(span.0) * steps / length).min(steps - 1);
        sums[usize::try_from(step).unwrap_or(0)] += count;
    }
    let most = sums.iter().copied().max().unwrap_or(1).max(1) as f64;
    let wide = 240.0 / steps as f64;
    let mut svg = format!(
        "<svg class=\"bars\" viewBox=\"0 0 240 44\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\"><line x1=\"0\" x2=\"240\" y1=\"43.5\" y2=\"43.5\"/>",
        text(label)
    );
    for (index, sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0) {
        let high = 3.0 + 38.0 * *sum as f64 / most;
        let _ = write!(
            svg,
            "<rect class=\"{}\" x=\"{:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{high:.1}\"/>",
            if blocked { "b" } else { "p" },
            index as f64 * wide,
            43.0 - high,
            (wide - 0.8).max(0.8)
        );
    }
    svg.push_str("</svg>");
    svg
}
