//! Medians and their spread.

use serde::Serialize;

/// A median and half the distance between the quartiles.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub spread: f64,
}

impl Spread {
    /// Of at least one value.
    ///
    /// # Panics
    /// Without one.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let quarter = |share| quantile(values, share);
        Self { median: quarter(0.5), spread: (quarter(0.75) - quarter(0.25)) / 2.0 }
    }
}

/// The value below which `share` (0 to 1) of the values lie, between two of them by proportion.
///
/// # Panics
/// Without values.
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> f64 {
    assert!(!values.is_empty(), "a quantile of nothing");
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() - 1) as f64 * share;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_values() {
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]), Spread { median: 2.5, spread: 0.75 });
        assert_eq!(Spread::of(&[7.0]), Spread { median: 7.0, spread: 0.0 });
        assert_eq!(quantile(&[5.0, 1.0, 3.0], 1.0), 5.0);
    }
}
