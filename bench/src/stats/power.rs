//! What a number of blocks can show: the power line under each table.
//!
//! The detectable difference is the true difference, in standard deviations, that a two-sided t test
//! at 5 % finds in 80 % of all runs. Normal values are assumed here and only here: it is a guide to
//! how many blocks to do, not a result.

use statrs::distribution::{ChiSquared, Continuous, ContinuousCDF, Normal, StudentsT};

const ALPHA: f64 = 0.05;
const POWER: f64 = 0.8;

/// The detectable mean of `n` paired differences, in standard deviations of the differences; none
/// below two.
pub fn detectable_paired(n: usize) -> Option<f64> {
    Some(noncentrality(n.checked_sub(1)?)? / (n as f64).sqrt())
}

/// The detectable difference of two means of `n` values each, in standard deviations of the values;
/// none below two.
pub fn detectable_unpaired(n: usize) -> Option<f64> {
    Some(noncentrality((2 * n).checked_sub(2)?)? * (2.0 / n as f64).sqrt())
}

/// The noncentrality at which the test has its power.
fn noncentrality(freedom: usize) -> Option<f64> {
    let freedom = freedom as f64;
    let critical = StudentsT::new(0.0, 1.0, freedom).ok()?.inverse_cdf(1.0 - ALPHA / 2.0);
    let chi = ChiSquared::new(freedom).ok()?;
    let normal = Normal::standard();
    // P(|T| > critical) with T = (Z + δ) / √(V/ν): over the distribution of V, by Simpson's rule
    // in √V, in which the density has no pole even for one degree of freedom.
    let power = |delta: f64| {
        let top = (freedom + 12.0 * (2.0 * freedom).sqrt() + 20.0).sqrt();
        let steps = 400_u32;
        let h = top / f64::from(steps);
        let at = |i: u32| {
            let root = f64::from(i) * h;
            if root == 0.0 {
                return 0.0;
            }
            let c = critical * root / freedom.sqrt();
            let found = normal.cdf(delta - c) + normal.cdf(-delta - c);
            found * chi.pdf(root * root) * 2.0 * root
        };
        let inner: f64 = (1..steps).map(|i| at(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
        (at(0) + inner + at(steps)) * h / 3.0
    };
    let (mut low, mut high) = (0.0, 1.0);
    while power(high) < POWER {
        high *= 2.0;
        if high > 1e4 {
            return None;
        }
    }
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if power(middle) < POWER { low = middle } else { high = middle }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::{super::tests::near, *};

    /// The paired value for n = 5 was also checked by drawing 400 000 samples: power 0.799.
    #[test]
    fn the_usual_table() {
        for (n, unpaired, paired) in [(5, 2.02, 1.68), (10, 1.32, 1.0), (20, 0.91, 0.66), (30, 0.74, 0.53)] {
            near(detectable_unpaired(n).unwrap(), unpaired, 0.01);
            near(detectable_paired(n).unwrap(), paired, 0.01);
        }
        assert_eq!((detectable_paired(0), detectable_paired(1)), (None, None));
        assert!(detectable_paired(2).unwrap() > 5.0);
    }
}
