//! Statistics of samples: pure functions of values, deterministic to the last bit.
//!
//! What is assumed, and why:
//! - The unit of analysis is the block. Values of two arms are compared within blocks, never as two
//!   heaps, so that drift over the run cancels. Nothing is compared across accelerators,
//!   hypervisors or dilations.
//! - No distribution is assumed. Times of migrations have long tails and few repetitions, so
//!   intervals come from the bootstrap ([`bootstrap`], `BCa`) and from order statistics
//!   ([`order`]), and the test of a difference is Wilcoxon's exact one ([`wilcoxon`]).
//! - The interval is the result; a p value stands beside it, corrected for the number of metrics
//!   that were looked at ([`multiple`]).
//! - Nothing is left out silently. Invalid samples are counted; values far from the rest are
//!   labelled and used; what n cannot show is said ([`power`], [`Warning`]).
//!
//! Bootstraps draw from a fixed seed: the same samples give the same interval for ever.

pub mod analysis;
pub mod bootstrap;
pub mod multiple;
pub mod order;
pub mod paired;
pub mod power;
pub mod summary;
pub mod wilcoxon;

use std::fmt;

pub use analysis::{Analysis, Group, analyse};
pub use paired::{Overhead, Paired};
use serde::Serialize;
pub use summary::Summary;

/// An interval that covers the true value in `level` of all runs, as far as its method holds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Nominal coverage, e.g. 0.95; order statistics have their own, a little above.
    pub level: f64,
}

impl Interval {
    /// Whether a value lies in it, ends included.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// The same interval of a scaled quantity.
    #[must_use]
    pub fn map(self, f: impl Fn(f64) -> f64) -> Self {
        let (a, b) = (f(self.low), f(self.high));
        Self { low: a.min(b), high: a.max(b), level: self.level }
    }
}

/// What a reader of a number has to know about it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Warning {
    /// Too few values for what stands in the table.
    TooFew {
        /// Valid values.
        n: usize,
        /// What is missing because of it.
        what: &'static str,
        /// How many it needs.
        needs: usize,
    },
    /// Samples were invalid.
    Invalid {
        /// How many.
        count: usize,
        /// Of how many.
        of: usize,
    },
    /// Values too fast to be measured: the true mean is higher than what is shown.
    Censored {
        /// How many.
        count: usize,
    },
    /// Values beyond Tukey's inner fences; they are used.
    Outliers {
        /// How many.
        count: usize,
    },
    /// Blocks in which one side has no valid value.
    Unpaired {
        /// How many.
        count: usize,
    },
    /// All values are the same, so that an interval means nothing.
    Constant,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooFew { n, what, needs } => write!(f, "n = {n}: {what} needs n ≥ {needs}"),
            Self::Invalid { count, of } => write!(f, "{count} of {of} invalid"),
            Self::Censored { count } => write!(f, "{count} too fast to measure"),
            Self::Outliers { count } => write!(f, "{count} far from the rest (kept)"),
            Self::Unpaired { count: 1 } => f.write_str("1 block without a pair"),
            Self::Unpaired { count } => write!(f, "{count} blocks without a pair"),
            Self::Constant => f.write_str("all values are equal"),
        }
    }
}

/// Level of all intervals.
pub const LEVEL: f64 = 0.95;

/// The mean; not a number when there are no values.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The standard deviation of a sample (n − 1); none with fewer than two values.
pub fn sd(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / (values.len() - 1) as f64).sqrt())
}

/// The median; not a number when there are no values.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    median_of_sorted(&sorted)
}

pub(crate) fn median_of_sorted(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[half],
        _ => f64::midpoint(sorted[half - 1], sorted[half]),
    }
}

/// The quantile of sorted values by linear interpolation (type 7, R's default).
pub(crate) fn quantile_of_sorted(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = p.clamp(0.0, 1.0) * last as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 ≤ at ≤ last")]
    let below = at.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (at - below as f64) * (sorted[above] - sorted[below])
}

/// The quantile of values by linear interpolation; not a number when there are none.
pub fn quantile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    quantile_of_sorted(&sorted, p)
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn near(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() <= tolerance, "{a} is not {b} ± {tolerance}");
    }

    #[test]
    fn known_values() {
        let values = [2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0];
        near(mean(&values), 5.0, 0.0);
        near(sd(&values).unwrap(), (32.0_f64 / 7.0).sqrt(), 1e-12);
        near(median(&values), 4.5, 0.0);
        near(median(&[3.0, 1.0, 2.0]), 2.0, 0.0);
        // R: quantile(c(1, 2, 3, 4, 10), 0.9) is 7.6.
        near(quantile_of_sorted(&[1.0, 2.0, 3.0, 4.0, 10.0], 0.9), 7.6, 1e-12);
        assert!(mean(&[]).is_nan() && median(&[]).is_nan() && sd(&[1.0]).is_none());
    }
}
