//! Wilcoxon's signed-rank test of paired differences, exact also with ties.
//!
//! Under the hypothesis each difference is as likely to be positive as negative, so the sum of the
//! ranks of the positive ones has a distribution that can be counted. Zero differences are left out,
//! as Wilcoxon did, and said; equal sizes share their mean rank, counted in halves so that the
//! count stays exact.

use statrs::distribution::{ContinuousCDF, Normal};

/// Up to so many differences the distribution is counted; 2^50 is still exact in an `f64`.
const EXACT_UP_TO: usize = 50;

/// Fewest differences with which p ≤ 0.05 is possible at all: 2·½⁶ = 0.031.
pub const NEEDS: usize = 6;

/// The result of the test.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Test {
    /// Differences that are not zero.
    pub n: usize,
    /// Sum of the ranks of the positive ones.
    pub rank_sum: f64,
    /// Two-sided p value.
    pub p: f64,
}

/// The test; none when every difference is zero.
pub fn test(differences: &[f64]) -> Option<Test> {
    let mut sorted: Vec<f64> = differences.iter().copied().filter(|d| *d != 0.0).collect();
    let n = sorted.len();
    if n == 0 {
        return None;
    }
    sorted.sort_unstable_by(|a, b| a.abs().total_cmp(&b.abs()));
    // Twice the rank: whole also where two share a mean rank.
    let mut ranks = vec![0_usize; n];
    let mut ties = 0.0;
    let mut start = 0;
    while start < n {
        let same = sorted[start..].iter().take_while(|d| d.abs() <= sorted[start].abs()).count();
        ranks[start..start + same].fill(2 * start + same + 1);
        ties += (same as f64).powi(3) - same as f64;
        start += same;
    }
    let positive: usize = ranks.iter().zip(&sorted).filter(|(_, d)| **d > 0.0).map(|(rank, _)| rank).sum();
    let p = if n <= EXACT_UP_TO { exact(&ranks, positive) } else { approximate(n, ties, positive) };
    Some(Test { n, rank_sum: positive as f64 / 2.0, p })
}

/// Counts the subsets of ranks by their sum.
fn exact(ranks: &[usize], positive: usize) -> f64 {
    let total: usize = ranks.iter().sum();
    let mut ways = vec![0.0_f64; total + 1];
    ways[0] = 1.0;
    for rank in ranks {
        for sum in (*rank..=total).rev() {
            ways[sum] += ways[sum - rank];
        }
    }
    let all: f64 = ways.iter().sum();
    let lower: f64 = ways[..=positive].iter().sum();
    let upper: f64 = ways[positive..].iter().sum();
    (2.0 * lower.min(upper) / all).min(1.0)
}

/// Normal approximation with corrections for continuity and ties.
fn approximate(n: usize, ties: f64, positive: usize) -> f64 {
    let n = n as f64;
    let mean = n * (n + 1.0) / 4.0;
    let variance = n * (n + 1.0) * (2.0 * n + 1.0) / 24.0 - ties / 48.0;
    let distance = ((positive as f64 / 2.0 - mean).abs() - 0.5).max(0.0);
    (2.0 * Normal::standard().sf(distance / variance.sqrt())).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::near, *};

    #[test]
    #[expect(clippy::approx_constant, reason = "3.14 is a depression score")]
    fn known_p_values() {
        // R: wilcox.test(c(1, 2, 3, 4, 5))$p.value is 0.0625; with six of one sign 0.03125.
        near(test(&[1.0, 2.0, 3.0, 4.0, 5.0]).unwrap().p, 0.0625, 1e-12);
        near(test(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap().p, 0.03125, 1e-12);
        // Hollander and Wolfe, depression scores: V = 5, p = 0.03906.
        let before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30];
        let after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29];
        let differences: Vec<f64> = after.iter().zip(before).map(|(a, b)| a - b).collect();
        let found = test(&differences).unwrap();
        near(found.rank_sum, 5.0, 0.0);
        near(found.p, 0.039_062_5, 1e-12);
    }

    #[test]
    fn ties_and_zeros() {
        assert_eq!(test(&[0.0, 0.0]), None);
        // Ranks 1.5, 1.5, 3: all eight signs counted by hand; 2 · P(sum ≥ 6) = 2/8.
        let found = test(&[1.0, 1.0, 2.0, 0.0]).unwrap();
        assert_eq!(found.n, 3);
        near(found.p, 0.25, 1e-12);
        near(test(&[1.0, -1.0]).unwrap().p, 1.0, 0.0);
    }

    #[test]
    fn the_approximation_meets_the_exact_value() {
        let differences: Vec<f64> =
            (1..=50).map(|i| f64::from(i) * if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
        let found = test(&differences).unwrap();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole rank sum")]
        let approximation = approximate(50, 0.0, (found.rank_sum * 2.0) as usize);
        near(found.p, approximation, 0.002);
    }
}
