//! Means with their errors, and quantiles.

use serde::Serialize;

/// A figure and how far chance may have moved it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// One standard error; `None` where there is only one window to tell it from.
    pub standard_error: Option<f64>,
}

impl Estimate {
    /// The mean of values that lie in groups, one after the other, of these sizes.
    ///
    /// Neighbours in a text are alike, so values are not independent of each other; windows nearly are. The error comes
    /// from how far the groups' sums are from what the mean predicts: `g / (g - 1) sum over groups of (sum of (value -
    /// mean))^2 / n^2` is its square, for `g` groups of `n` values in all (the cluster-robust variance of a mean).
    pub(super) fn mean(values: &[f64], groups: &[usize]) -> Estimate {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let mut rest = values;
        let mut squares = 0.0;
        for size in groups {
            let (group, after) = rest.split_at((*size).min(rest.len()));
            rest = after;
            let off: f64 = group.iter().map(|value| value - mean).sum();
            squares += off * off;
        }
        let groups = groups.len() as f64;
        let variance = groups / (groups - 1.0) * squares / (count * count);
        Estimate {
            value: mean,
            standard_error: (groups > 1.0).then(|| variance.sqrt()),
        }
    }

    /// `e^value`; the error grows with it.
    pub(super) fn exp(self) -> Estimate {
        let value = self.value.exp();
        Estimate {
            value,
            standard_error: self.standard_error.map(|error| error * value),
        }
    }
}

/// The value that a share of all values does not exceed, between neighbours in proportion (as numpy's `quantile`); `NaN`
/// of nothing.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(below), sorted.get(above)) {
        (Some(below), Some(above)) => below + (above - below) * at.fract(),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::{Estimate, quantile};

    #[test]
    fn the_error_of_a_mean_of_single_values_is_the_usual_one() {
        // statistics.stdev([1, 2, 4, 9]) / 2
        let found = Estimate::mean(&[1.0, 2.0, 4.0, 9.0], &[1; 4]);
        assert_eq!(found.value, 4.0);
        assert!((found.standard_error.unwrap() - 1.779_513_042_005_219).abs() < 1e-12);
    }

    #[test]
    fn values_that_repeat_within_a_window_tell_no_more_than_one() {
        let single = Estimate::mean(&[1.0, 2.0, 4.0], &[1; 3]);
        let repeated: Vec<f64> = [1.0, 2.0, 4.0]
            .iter()
            .flat_map(|value| [*value; 5])
            .collect();
        let repeated = Estimate::mean(&repeated, &[5; 3]);
        assert!((single.value - repeated.value).abs() < 1e-12);
        let errors = [single, repeated].map(|found| found.standard_error.unwrap());
        assert!((errors[0] - errors[1]).abs() < 1e-12);
    }

    #[test]
    fn one_window_has_a_mean_and_no_error() {
        let found = Estimate::mean(&[1.0, 3.0], &[2]);
        assert_eq!((found.value, found.standard_error), (2.0, None));
    }

    #[test]
    fn quantiles_are_those_of_numpy() {
        let values = [4.0, 1.0, 2.0, 8.0];
        for (share, expected) in [(0.0, 1.0), (0.5, 3.0), (0.9, 6.8), (1.0, 8.0)] {
            assert!((quantile(&values, share) - expected).abs() < 1e-12);
        }
        assert_eq!(quantile(&[5.0], 0.99), 5.0);
        assert!(quantile(&[], 0.5).is_nan());
    }
}
