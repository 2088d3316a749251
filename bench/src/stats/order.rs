//! The distribution-free interval of the median, from order statistics.
//!
//! The number of values below the true median is binomial with p = ½ whatever the distribution, so
//! the k-th smallest and k-th largest value enclose it with a probability that is known exactly
//! (Conover, Practical Nonparametric Statistics, §3.2). It exists from n = 6 on.

use super::{Interval, LEVEL};

/// Fewest values for which min and max enclose the median with 95 %: 1 − 2·½⁶ = 96.9 %.
pub const NEEDS: usize = 6;

/// The narrowest such interval with at least 95 %, with its true level; none below [`NEEDS`] values.
pub fn median_interval(values: &[f64]) -> Option<Interval> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (k, level) = rank(sorted.len())?;
    Some(Interval { low: sorted[k - 1], high: sorted[sorted.len() - k], level })
}

/// The largest rank k, from 1, whose interval has at least 95 %, and what it has.
pub fn rank(n: usize) -> Option<(usize, f64)> {
    let mut best = None;
    // P(B ≤ k − 1) for B binomial (n, ½), term by term; ½ⁿ underflows only far beyond any run here.
    let mut term = 0.5_f64.powi(i32::try_from(n).ok()?);
    let mut tail = 0.0;
    for k in 1..=n / 2 {
        tail += term;
        let level = 1.0 - 2.0 * tail;
        if level < LEVEL {
            break;
        }
        best = Some((k, level));
        term *= (n - k + 1) as f64 / k as f64;
    }
    best
}

#[cfg(test)]
mod tests {
    use super::{super::tests::near, *};

    /// Tables of order statistics: n = 6 min…max 96.9 %, 10 2nd…9th 97.9 %, 20 6th…15th 95.9 %.
    #[test]
    fn ranks_of_the_tables() {
        for n in 0..6 {
            assert_eq!(rank(n), None);
        }
        for (n, k, level) in [(6, 1, 0.969), (8, 1, 0.992), (9, 2, 0.961), (10, 2, 0.979), (20, 6, 0.959)] {
            let (found, exact) = rank(n).unwrap();
            assert_eq!(found, k, "n = {n}");
            near(exact, level, 0.0005);
        }
        let values: Vec<f64> = (1..=10).rev().map(f64::from).collect();
        let interval = median_interval(&values).unwrap();
        near(interval.low, 2.0, 0.0);
        near(interval.high, 9.0, 0.0);
    }
}
