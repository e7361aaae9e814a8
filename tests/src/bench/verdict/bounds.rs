//! What the quick run, and so CI, holds the verdicts to.

use super::Figure;

/// How many runs must find a row behind its bound before the whole does: a busy machine makes one slow, not the same row
/// each time.
pub const PASSES: usize = 3;

/// What a row's ratio to the empty program is at most: 1.4 times what it was when it was last looked at (in brackets), for the
/// sake of other processors. Rows that are run once have none: their ratios follow the caches.
const BOUNDS: [(&str, &str, f64); 22] = [
    ("established tcp", "socket_egress", 2.5),                        // 1.7
    ("established tcp", "uplink_egress", 4.6),                        // 3.3
    ("established udp", "socket_egress", 2.7),                        // 1.9
    ("established udp", "uplink_egress", 4.7),                        // 3.3
    ("first packet by name", "socket_egress", 7.5),                   // 5.2, 5.4 by IPv6
    ("first packet by name", "uplink_egress", 9.6),                   // 6.6, 6.9
    ("first packet by name, with deny rules", "socket_egress", 8.7),  // 5.7, 6.2
    ("first packet by name, with deny rules", "uplink_egress", 10.5), // 7.1, 7.5
    ("first packet by prefix", "socket_egress", 10.0),                // 6.8, 7.2
    ("first packet by prefix", "uplink_egress", 12.0),                // 8.1, 8.6
    ("denied", "socket_egress", 11.3),                                // 7.9, 8.1
    ("denied", "uplink_egress", 11.5),                                // 8.0, 8.2
    ("no rule", "socket_egress", 12.2),                               // 8.5, 8.7
    ("no rule", "uplink_egress", 12.5),                               // 8.8, 8.9
    ("from a workload", "workload_ingress", 3.4),                     // 2.4
    ("reply in tcp", "socket_ingress", 3.0),                          // 2.1
    ("reply in udp", "socket_ingress", 4.9),                          // 3.5
    ("reply in tcp", "uplink_ingress", 3.0),                          // 2.1
    ("reply in udp", "uplink_ingress", 4.7),                          // 3.3
    ("query", "socket_egress", 23.5),                                 // 16.6
    ("query", "uplink_egress", 23.5),                                 // 16.6
    ("query refused", "socket_egress", 20.5),                         // 14.5
];

/// Which figures are behind their bounds by more than their spread, each as a line that says so.
pub fn behind(figures: &[Figure]) -> Vec<(String, String)> {
    let beyond = |figure: &Figure| {
        let what = figure.what.trim_end_matches(" v6");
        let (.., bound) = BOUNDS.iter().find(|(row, program, _)| *row == what && *program == figure.program)?;
        let (median, spread) = (figure.ratio.median, figure.ratio.spread);
        (median - spread > *bound).then(|| {
            let row = format!("{}, {}", figure.what, figure.program);
            let says = format!("{row}: {median:.1} ± {spread:.1} times an empty program, to be at most {bound}");
            (row, says)
        })
    };
    figures.iter().filter_map(beyond).collect()
}

/// Whether every bound is one of a row that is measured.
pub fn all_known(figures: &[Figure]) -> bool {
    BOUNDS.iter().all(|(what, program, _)| figures.iter().any(|row| row.what == *what && row.program == *program))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::statistics::Spread;

    #[test]
    fn a_row_is_behind_by_more_than_its_spread() {
        let figure = |what: &str, median, spread| Figure {
            addresses: 100,
            what: what.to_owned(),
            program: "socket_egress".to_owned(),
            nanoseconds: 0.0,
            empty: 0.0,
            spread: 0.0,
            ratio: Spread { median, spread },
        };
        let rows = |figures: &[Figure]| behind(figures).into_iter().map(|(row, _)| row).collect::<Vec<_>>();
        assert_eq!(rows(&[figure("established tcp", 2.4, 0.0), figure("established tcp v6", 2.9, 0.5)]), [""; 0]);
        assert_eq!(rows(&[figure("established tcp v6", 2.9, 0.3)]), ["established tcp v6, socket_egress"]);
        assert_eq!(rows(&[figure("what has no bound", 99.0, 0.0)]), [""; 0]);
    }
}
