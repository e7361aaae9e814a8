//! What the quick run, and so CI, holds the verdicts to.

use super::{Figure, Figures, cold::CALL};

/// How many runs must find a row behind its bound before the whole does: a busy machine makes one slow, not the same row
/// each time.
pub const PASSES: usize = 3;

/// What a row's ratio to the empty program is at most: 1.4 times what it was when it was last looked at (in brackets, the family
/// that had more), for the sake of other processors; where a call is cheap, and where the kernel guards returns and makes it dear (that
/// column is of earlier programs, no machine of the kind was at hand: [`UNKNOWN`] for what was not measured there).
const BOUNDS: [(&str, &str, f64, f64); 31] = [
    ("established tcp", "socket_egress", 2.6, 2.5),       // 1.9, 1.8
    ("established tcp", "uplink_egress", 4.6, 4.6),       // 3.3, 3.2
    ("established udp", "socket_egress", 2.6, 3.2),       // 1.9, 2.3
    ("established udp", "uplink_egress", 4.6, 5.2),       // 3.3, 3.7
    ("first packet by name", "socket_egress", 6.0, 9.2),  // 4.3, 6.6
    ("first packet by name", "uplink_egress", 7.7, 10.9), // 5.5, 7.8
    ("first packet by name, with deny rules", "socket_egress", 6.4, 9.4), // 4.6, 6.7
    ("first packet by name, with deny rules", "uplink_egress", 8.1, 11.5), // 5.8, 8.2
    ("first packet by prefix", "socket_egress", 7.8, 11.2), // 5.6, 8.0
    ("first packet by prefix", "uplink_egress", 9.7, 12.9), // 6.9, 9.2
    ("denied", "socket_egress", 10.8, 13.7),              // 7.7, 9.8
    ("denied", "uplink_egress", 10.6, 12.6),              // 7.6, 9.0
    ("no rule", "socket_egress", 10.8, 14.1),             // 7.7, 10.1
    ("no rule", "uplink_egress", 10.5, 12.9),             // 7.5, 9.2
    ("from a workload", "workload_ingress", 3.6, 5.2),    // 2.6, 3.7
    ("reply in tcp", "socket_ingress", 2.0, 3.8),         // 1.4, 2.7
    ("reply in udp", "socket_ingress", 4.9, 7.3),         // 3.5, 5.2
    ("reply in tcp", "uplink_ingress", 2.1, 3.5),         // 1.5, 2.5
    ("reply in udp", "uplink_ingress", 4.9, 5.6),         // 3.5, 4.0
    ("query", "socket_egress", 21.8, 31.9),               // 15.6, 22.8
    ("query", "uplink_egress", 20.2, 29.7),               // 14.4, 21.2
    ("query refused", "socket_egress", 19.9, 27.2),       // 14.2, 19.4
    ("by loopback", "socket_egress", 2.1, UNKNOWN),       // 1.5
    ("in by loopback", "socket_ingress", 2.0, UNKNOWN),   // 1.4
    ("query to a stub", "socket_egress", 22.1, UNKNOWN),  // 15.8
    // 1.6 times: on a busy machine they vary more than the others.
    ("answer with 1 address", "uplink_ingress", 31.0, UNKNOWN), // 19.3
    ("answer with 8", "uplink_ingress", 53.0, UNKNOWN),         // 33.0
    ("answer with 60", "uplink_ingress", 198.0, UNKNOWN),       // 123.9
    ("answer with 1 address, told", "uplink_ingress", 40.0, UNKNOWN),
    ("answer with 8, told", "uplink_ingress", 65.0, UNKNOWN),
    ("answer with 60, told", "uplink_ingress", 230.0, UNKNOWN),
];

/// The bound of what nobody has measured.
const UNKNOWN: f64 = f64::INFINITY;

/// Nanoseconds of a call above which returns are guarded: 7 with AMD's safe RET, 2 and less without.
const GUARDED: f64 = 4.0;

/// Which figures are behind their bounds by more than their spread, each as a line that says so.
pub fn behind(figures: &Figures) -> Vec<(String, String)> {
    let guarded = figures.parts.iter().any(|part| part.what == CALL && part.hot > GUARDED);
    let beyond = |figure: &Figure| {
        let what = figure.what.trim_end_matches(" v6");
        let (.., cheap, dear) = BOUNDS.iter().find(|(row, program, ..)| *row == what && *program == figure.program)?;
        let bound = if guarded { dear } else { cheap };
        let (median, spread) = (figure.ratio.median, figure.ratio.spread);
        (median - spread > *bound).then(|| {
            let row = format!("{}, {}", figure.what, figure.program);
            let says = format!("{row}: {median:.1} ± {spread:.1} times an empty program, to be at most {bound}");
            (row, says)
        })
    };
    figures.verdicts.iter().filter_map(beyond).collect()
}

/// Whether every bound is one of a row that is measured.
pub fn all_known(figures: &[Figure]) -> bool {
    BOUNDS.iter().all(|(what, program, ..)| figures.iter().any(|row| row.what == *what && row.program == *program))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{statistics::Spread, verdict::cold::Part};

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
        let part = |hot| Part { addresses: 100, rules: 1, what: CALL, hot, once: 0.0, cold: None };
        let rows = |verdicts: Vec<Figure>, call| {
            let figures = Figures { verdicts, parts: vec![part(call)], ..Figures::default() };
            behind(&figures).into_iter().map(|(row, _)| row).collect::<Vec<_>>()
        };
        let none: [&str; 0] = [];
        assert_eq!(rows(vec![figure("established udp", 2.6, 0.0), figure("established udp v6", 3.1, 0.5)], 2.0), none);
        assert_eq!(rows(vec![figure("established udp v6", 3.1, 0.3)], 2.0), ["established udp v6, socket_egress"]);
        assert_eq!(rows(vec![figure("established udp v6", 3.1, 0.0)], 7.0), none);
        assert_eq!(rows(vec![figure("established udp", 3.3, 0.0)], 7.0), ["established udp, socket_egress"]);
        assert_eq!(rows(vec![figure("what has no bound", 99.0, 0.0)], 2.0), none);
    }
}
