//! Two sides compared within blocks.

use serde::Serialize;

use super::{Interval, Warning, bootstrap, mean, median, power, sd, wilcoxon};

/// A comparison of side `b` with side `a`, block by block.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Paired {
    /// Blocks in which both sides have a value.
    pub n: usize,
    /// Mean of b − a.
    pub difference: f64,
    /// Standard deviation of b − a.
    pub sd: Option<f64>,
    /// 95 % `BCa` interval of the mean difference.
    pub difference_interval: Option<Interval>,
    /// Geometric mean of b ÷ a; none when a value is not positive.
    pub ratio: Option<f64>,
    /// 95 % `BCa` interval of it, from log-ratios.
    pub ratio_interval: Option<Interval>,
    /// Wilcoxon's signed-rank test of the differences.
    pub test: Option<wilcoxon::Test>,
    /// In how many blocks b is above a.
    pub above: usize,
    /// The mean difference that so many blocks find in 80 % of all runs, in the metric's unit.
    pub detectable: Option<f64>,
    /// What a reader has to know.
    pub warnings: Vec<Warning>,
}

impl Paired {
    /// Compares pairs (a, b), one a block; `unpaired` blocks had only one of them. None without a pair.
    pub fn new(pairs: &[(f64, f64)], unpaired: usize) -> Option<Self> {
        let n = pairs.len();
        if n == 0 {
            return None;
        }
        let differences: Vec<f64> = pairs.iter().map(|(a, b)| b - a).collect();
        let positive = pairs.iter().all(|(a, b)| *a > 0.0 && *b > 0.0);
        let logs: Option<Vec<f64>> = positive.then(|| pairs.iter().map(|(a, b)| (b / a).ln()).collect());
        let mut warnings = Vec::new();
        if unpaired > 0 {
            warnings.push(Warning::Unpaired { count: unpaired });
        }
        if n < wilcoxon::NEEDS {
            warnings.push(Warning::TooFew { n, what: "p ≤ 0.05", needs: wilcoxon::NEEDS });
        }
        let sd = sd(&differences);
        Some(Self {
            n,
            difference: mean(&differences),
            sd,
            difference_interval: bootstrap::of_mean(&differences),
            ratio: logs.as_ref().map(|logs| mean(logs).exp()),
            ratio_interval: logs.and_then(|logs| bootstrap::of_mean(&logs)).map(|i| i.map(f64::exp)),
            test: wilcoxon::test(&differences),
            above: differences.iter().filter(|d| **d > 0.0).count(),
            detectable: sd.and_then(|sd| Some(sd * power::detectable_paired(n)?)),
            warnings,
        })
    }
}

/// What recontextualization adds to a migration, in both readings of "18 %".
///
/// With P the plain migration and W the one with recontextualization of the same block, the paper's
/// "adds about an 18 % overhead … compared to normal migrations" is the increase (W − P) ÷ P; its
/// 2012 abstract says "18 % of the total migration time", the share (W − P) ÷ W. A share of
/// 18 % is an increase of 22 %.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Overhead {
    /// Blocks.
    pub n: usize,
    /// Mean of W − P, in seconds.
    pub added: f64,
    /// 95 % `BCa` interval of it.
    pub added_interval: Option<Interval>,
    /// Median of (W − P) ÷ P.
    pub recontext_increase: f64,
    /// 95 % `BCa` interval of it.
    pub increase_interval: Option<Interval>,
    /// Median of (W − P) ÷ W.
    pub recontext_share: f64,
    /// 95 % `BCa` interval of it.
    pub share_interval: Option<Interval>,
}

impl Overhead {
    /// From pairs (P, W), one a block; none without a pair.
    pub fn new(pairs: &[(f64, f64)]) -> Option<Self> {
        if pairs.is_empty() {
            return None;
        }
        let added: Vec<f64> = pairs.iter().map(|(plain, with)| with - plain).collect();
        let increase: Vec<f64> = pairs.iter().map(|(plain, with)| (with - plain) / plain).collect();
        let share: Vec<f64> = pairs.iter().map(|(plain, with)| (with - plain) / with).collect();
        Some(Self {
            n: pairs.len(),
            added: mean(&added),
            added_interval: bootstrap::of_mean(&added),
            recontext_increase: median(&increase),
            increase_interval: bootstrap::of_median(&increase),
            recontext_share: median(&share),
            share_interval: bootstrap::of_median(&share),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::near, *};

    #[test]
    fn both_readings_of_eighteen_percent() {
        // A share of 18 % of the total is an increase of 22 %.
        let overhead = Overhead::new(&[(8.2, 10.0); 6]).unwrap();
        near(overhead.recontext_share, 0.18, 1e-12);
        near(overhead.recontext_increase, 0.2195, 1e-4);
        near(overhead.added, 1.8, 1e-12);
        assert_eq!(Overhead::new(&[]), None);
    }

    #[test]
    fn a_comparison() {
        let pairs: Vec<(f64, f64)> = (1..=6).map(|i| (f64::from(i), 2.0 * f64::from(i))).collect();
        let paired = Paired::new(&pairs, 1).unwrap();
        near(paired.ratio.unwrap(), 2.0, 1e-12);
        near(paired.difference, 3.5, 1e-12);
        assert_eq!((paired.n, paired.above), (6, 6));
        near(paired.test.unwrap().p, 0.03125, 1e-12);
        assert_eq!(paired.warnings, [Warning::Unpaired { count: 1 }]);
        assert_eq!(Paired::new(&[(0.0, 1.0)], 0).unwrap().ratio, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn turning_the_sides_turns_the_result(pairs in prop::collection::vec((0.1..10.0_f64, 0.1..10.0_f64), 1..12)) {
            let forth = Paired::new(&pairs, 0).unwrap();
            let back: Vec<_> = pairs.iter().map(|(a, b)| (*b, *a)).collect();
            let back = Paired::new(&back, 0).unwrap();
            prop_assert!((forth.difference + back.difference).abs() < 1e-9);
            prop_assert!((forth.ratio.unwrap() * back.ratio.unwrap() - 1.0).abs() < 1e-9);
            prop_assert_eq!(forth.test.map(|t| t.p.to_bits()), back.test.map(|t| t.p.to_bits()));
        }
    }
}
