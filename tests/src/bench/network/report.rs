//! The figures as tables in Markdown, and the bounds they are held to.

use std::fmt::Write as _;

use super::load::Metric;
use super::lookup::Spent;
use super::{Figure, Measured};

/// Ratios to no enforcement, a little behind those of the run in `docs/performance.md` (1.13, 1.07, 0.99 and 0.86): `cargo xtask
/// bench --quick` fails beyond them by more than the spread. Lookups have none: theirs depend on how the scheduler places
/// asker and resolver.
const BOUNDS: [(Metric, f64); 4] =
    [(Metric::UdpSend, 1.3), (Metric::Connect, 1.25), (Metric::Request50, 1.2), (Metric::Stream, 0.75)];

/// Which figures are behind their bounds.
#[must_use]
pub fn behind(figures: &[Figure]) -> Vec<String> {
    let of = |figure: &&Figure| figure.peer == "egress";
    let beyond = |figure: &Figure| -> Option<String> {
        let (_, bound) = BOUNDS.iter().find(|(metric, _)| *metric == figure.metric)?;
        let ratio = figure.ratio;
        let (is, is_not) = if figure.metric.more_is_better() {
            (ratio.median + ratio.spread < *bound, "at least")
        } else {
            (ratio.median - ratio.spread > *bound, "at most")
        };
        let (median, spread) = (ratio.median, ratio.spread);
        is.then(|| {
            format!("{}: {median:.2} ± {spread:.2} times no enforcement, to be {is_not} {bound}", figure.metric.title())
        })
    };
    figures.iter().filter(of).filter_map(beyond).collect()
}

/// All of it, as Markdown.
#[must_use]
pub fn markdown(measured: &Measured) -> String {
    let mut text = format!(
        "Kernel {}, {} processors, {:.0} s. Median ± half the distance between the quartiles; in brackets the ratio to \
         no enforcement within the same round, and that of the best rounds of both.\n",
        measured.kernel, measured.processors, measured.seconds
    );
    let mut sizes: Vec<u32> =
        measured.figures.iter().filter(|f| !f.is_lookup()).map(|figure| figure.destinations).collect();
    sizes.dedup();
    for size in sizes {
        let _ = writeln!(text, "\n### {size} allowed destinations\n");
        let of_size: Vec<_> = measured.figures.iter().filter(|f| f.destinations == size && !f.is_lookup()).collect();
        table(&mut text, &of_size);
    }
    text.push_str("\n### DNS lookups\n\n");
    table(&mut text, &measured.figures.iter().filter(|figure| figure.is_lookup()).collect::<Vec<_>>());
    let _ = write!(text, "\n{}", spent(&measured.spent));
    if !measured.sockets.is_empty() {
        let _ = writeln!(text, "\n### Sockets\n\n{}", super::sockets::table(&measured.sockets));
    }
    text
}

/// A table alone.
#[must_use]
pub fn alone(figures: &[Figure]) -> String {
    let mut text = String::new();
    table(&mut text, &figures.iter().collect::<Vec<_>>());
    text
}

/// What a lookup takes of a processor in what stands in its path.
#[must_use]
pub fn spent(spent: &[Spent]) -> String {
    let mut text =
        String::from("| what stands in the path of a lookup | takes of a processor, us a lookup |\n|---|---|\n");
    for Spent { peer, each } in spent {
        let _ = writeln!(text, "| {peer}, its process | {:.1} ± {:.1} |", each.median, each.spread);
    }
    text
}

/// A row for each peer, a column for each metric.
fn table(text: &mut String, figures: &[&Figure]) {
    let (mut metrics, mut peers): (Vec<Metric>, Vec<&str>) = (Vec::new(), Vec::new());
    for figure in figures {
        if !metrics.contains(&figure.metric) {
            metrics.push(figure.metric);
        }
        if !peers.contains(&figure.peer) {
            peers.push(figure.peer);
        }
    }
    let titles: Vec<_> = metrics.iter().map(|metric| metric.title()).collect();
    let _ = writeln!(text, "| | {} |\n|---{}|", titles.join(" | "), "|---".repeat(titles.len()));
    for peer in peers {
        let cell = |metric: &Metric| -> String {
            let of = |figure: &&&Figure| figure.peer == peer && figure.metric == *metric;
            figures.iter().find(of).map_or_else(String::new, |figure| {
                let digits = if figure.value.median < 100.0 { 1 } else { 0 };
                format!(
                    "{:.digits$} ± {:.digits$} ({:.2} ± {:.2}; {:.2})",
                    figure.value.median, figure.value.spread, figure.ratio.median, figure.ratio.spread, figure.best
                )
            })
        };
        let _ = writeln!(text, "| {peer} | {} |", metrics.iter().map(cell).collect::<Vec<_>>().join(" | "));
    }
}
