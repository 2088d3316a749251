//! One metric in one arm: what its values are like.

use serde::Serialize;

use super::{Interval, Warning, bootstrap, mean, median_of_sorted, order, quantile_of_sorted, sd};
use crate::model::Sample;

/// What the samples of one metric, phase and arm are like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Valid values.
    pub n: usize,
    /// Invalid samples.
    pub invalid: usize,
    /// Valid samples whose value was too fast to measure.
    pub censored: usize,
    /// The values, in the order in which they were measured.
    pub values: Vec<f64>,
    /// Mean; none without values.
    pub mean: Option<f64>,
    /// Standard deviation (n − 1); none below two values.
    pub sd: Option<f64>,
    /// Median; none without values.
    pub median: Option<f64>,
    /// Least value.
    pub min: Option<f64>,
    /// Greatest value.
    pub max: Option<f64>,
    /// 95 % `BCa` interval of the mean.
    pub mean_interval: Option<Interval>,
    /// 95 % `BCa` interval of the median.
    pub median_interval: Option<Interval>,
    /// Distribution-free interval of the median, at its own level.
    pub median_exact: Option<Interval>,
    /// What a reader has to know.
    pub warnings: Vec<Warning>,
}

impl Summary {
    /// Of samples that are all of one metric, phase, arm and group. A valid sample without a value
    /// is censored: too fast to be measured, and in no case zero.
    pub fn new<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let (mut values, mut invalid, mut censored) = (Vec::new(), 0, 0);
        for sample in samples {
            match (sample.valid, sample.value) {
                (false, _) => invalid += 1,
                (true, None) => censored += 1,
                (true, Some(value)) => values.push(value),
            }
        }
        let mut summary = Self::of_values(values);
        let all = summary.n + invalid + censored;
        if invalid > 0 {
            summary.warnings.insert(0, Warning::Invalid { count: invalid, of: all });
        }
        if censored > 0 {
            summary.warnings.insert(0, Warning::Censored { count: censored });
        }
        Self { invalid, censored, ..summary }
    }

    /// Of plain values.
    pub fn of_values(values: Vec<f64>) -> Self {
        let n = values.len();
        let mut sorted = values.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let mut warnings = Vec::new();
        if n > 0 && n < bootstrap::NEEDS {
            warnings.push(Warning::TooFew { n, what: "a 95 % interval", needs: bootstrap::NEEDS });
        } else if n > 0 && n < order::NEEDS {
            let what = "a distribution-free interval of the median";
            warnings.push(Warning::TooFew { n, what, needs: order::NEEDS });
        }
        if n > 1 && sorted[0] >= sorted[n - 1] {
            warnings.push(Warning::Constant);
        }
        let outliers = outliers(&sorted);
        if outliers > 0 {
            warnings.push(Warning::Outliers { count: outliers });
        }
        let some = |value: f64| (n > 0).then_some(value);
        Self {
            n,
            invalid: 0,
            censored: 0,
            mean: some(mean(&values)),
            sd: sd(&values),
            median: some(median_of_sorted(&sorted)),
            min: sorted.first().copied(),
            max: sorted.last().copied(),
            mean_interval: bootstrap::of_mean(&values),
            median_interval: bootstrap::of_median(&values),
            median_exact: order::median_interval(&values),
            values,
            warnings,
        }
    }
}

/// Values beyond Tukey's inner fences, 1.5 times the interquartile range outside of the quartiles.
fn outliers(sorted: &[f64]) -> usize {
    // With fewer the quartiles are the outliers' own.
    if sorted.len() < 5 {
        return 0;
    }
    let (q1, q3) = (quantile_of_sorted(sorted, 0.25), quantile_of_sorted(sorted, 0.75));
    let reach = 1.5 * (q3 - q1);
    sorted.iter().filter(|value| **value < q1 - reach || **value > q3 + reach).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_are_labelled_and_kept() {
        let summary = Summary::of_values(vec![1.0, 1.1, 0.9, 1.05, 0.95, 9.0]);
        assert_eq!(summary.n, 6);
        assert_eq!(summary.max, Some(9.0));
        assert_eq!(summary.warnings, [Warning::Outliers { count: 1 }]);
    }

    #[test]
    fn small_n_says_what_is_missing() {
        let summary = Summary::of_values(vec![1.0, 2.0, 3.0, 4.0]);
        assert_eq!((summary.mean_interval, summary.median_exact), (None, None));
        assert_eq!(summary.warnings[0].to_string(), "n = 4: a 95 % interval needs n ≥ 5");
        assert!(Summary::of_values(Vec::new()).warnings.is_empty());
        assert_eq!(Summary::of_values(Vec::new()).mean, None);
    }
}
