//! The regression gate: is a run worse than a stored one?
//!
//! For each metric that has a better direction, the ratio of the medians (new ÷ old, turned so that
//! above 1 is worse) gets a bootstrap interval, resampling both runs independently. There are three
//! verdicts and not two: few noisy samples can leave it open, and then the gate says so instead of
//! passing. Runs of different accelerators, hypervisors or dilations are never compared.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::str::FromStr;

use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::metric::{self, Better};
use crate::model::Sample;
use crate::stats::{Interval, median};

/// Resamples for an interval.
const RESAMPLES: usize = 4999;
/// Any fixed number does; a verdict must not depend on a clock.
const SEED: u64 = 0x6a7e;
/// Fewest values of either run.
const NEEDS: usize = 5;
/// Level of an interval. Some twenty metrics are looked at, so 95 % would call one of them worse by
/// chance in every run.
const LEVEL: f64 = 0.99;

/// The smallest worsening that matters, in percent: above 0, and at most 1000.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Margin(f64);

impl Margin {
    /// As a share: 25 % is 0.25.
    pub fn share(self) -> f64 {
        self.0 / 100.0
    }
}

impl FromStr for Margin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let margin = text.parse().ok().filter(|margin| *margin > 0.0 && *margin <= 1000.0);
        margin.map(Self).ok_or("write a percentage above 0 and up to 1000")
    }
}

impl fmt::Display for Margin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What can be said of one metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The whole interval is within the margin, or better.
    NoWorse,
    /// The interval reaches beyond the margin, but not as a whole; or there are too few values.
    Unclear,
    /// The whole interval is beyond the margin.
    Worse,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::NoWorse => "no worse",
            Verdict::Unclear => "unclear",
            Verdict::Worse => "worse",
        })
    }
}

/// One metric of both runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Metric, arm and phase, for people.
    pub what: String,
    /// Valid values of the old and of the new run.
    pub n: (usize, usize),
    /// Medians of the old and of the new run.
    pub medians: (f64, f64),
    /// Unit of the medians.
    pub unit: String,
    /// The ratio, above 1 when the new run is worse, with its 99 % interval; none with too few values.
    pub worse: Option<(f64, Interval)>,
    /// The verdict.
    pub verdict: Verdict,
}

/// Metric, arm, phase, hypervisor, accelerator, and dilation in thousandths.
type Key = (String, String, String, String, String, u64);

fn values(samples: &[Sample]) -> BTreeMap<Key, (String, Vec<f64>)> {
    let mut all: BTreeMap<Key, (String, Vec<f64>)> = BTreeMap::new();
    for sample in samples.iter().filter(|s| s.valid && s.block > 0) {
        let Some(value) = sample.value.filter(|value| *value > 0.0) else { continue };
        let s = sample.clone();
        // Dilations are small and written with few digits; thousandths keep them apart.
        let dilation = format!("{:.0}", sample.dilation * 1000.0).parse().unwrap_or(0);
        let key = (s.metric, s.arm, s.phase, s.hypervisor, s.accelerator, dilation);
        all.entry(key).or_insert_with(|| (s.unit, Vec::new())).1.push(value);
    }
    all
}

/// Compares two runs.
pub fn gate(old: &[Sample], new: &[Sample], margin: Margin) -> Vec<Line> {
    let (new, margin) = (values(new), margin.share());
    values(old)
        .into_iter()
        .filter_map(|(key, (unit, before))| {
            let direction = metric::find(&key.0).map_or(Better::Neither, |m| m.better);
            let (_, after) = new.get(&key).filter(|_| direction != Better::Neither)?;
            let what = [metric::label(&key.0), &key.1, &key.2]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join(", ");
            let worse = ratio(&before, after, direction);
            let verdict = match &worse {
                Some((_, interval)) if interval.low > 1.0 + margin => Verdict::Worse,
                Some((_, interval)) if interval.high <= 1.0 + margin => Verdict::NoWorse,
                _ => Verdict::Unclear,
            };
            let (n, medians) = ((before.len(), after.len()), (median(&before), median(after)));
            Some(Line { what, n, medians, unit, worse, verdict })
        })
        .collect()
}

fn ratio(before: &[f64], after: &[f64], direction: Better) -> Option<(f64, Interval)> {
    if before.len().min(after.len()) < NEEDS {
        return None;
    }
    let turned = |ratio: f64| if direction == Better::Higher { 1.0 / ratio } else { ratio };
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut draw = |values: &[f64]| -> f64 {
        let resample: Vec<f64> =
            values.iter().map(|_| values[random.random_range(0..values.len())]).collect();
        median(&resample)
    };
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| turned(draw(after) / draw(before))).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    // The resample at each end of the interval: RESAMPLES + 1 is a round number.
    let tail = 25;
    let interval = Interval { low: ratios[tail - 1], high: ratios[RESAMPLES - tail], level: LEVEL };
    Some((turned(median(after) / median(before)), interval))
}

/// The verdict of all lines: the worst of them; unclear when there is nothing to compare.
pub fn verdict(lines: &[Line]) -> Verdict {
    lines.iter().map(|line| line.verdict).max().unwrap_or(Verdict::Unclear)
}

/// A table for people, one line a metric.
pub fn table(lines: &[Line]) -> String {
    let mut text = String::new();
    for line in lines {
        let ratio = line.worse.as_ref().map_or_else(
            || format!("n = {} and {}: {NEEDS} are needed", line.n.0, line.n.1),
            |(ratio, i)| format!("× {ratio:.3} [{:.3}, {:.3}]", i.low, i.high),
        );
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:9} {}: {:.4} → {:.4} {}, {ratio}",
            line.verdict, line.what, line.medians.0, line.medians.1, line.unit
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(metric: &str, accelerator: &str, values: &[f64]) -> Vec<Sample> {
        (1..)
            .zip(values)
            .map(|(block, value)| Sample {
                block,
                arm: "recontext".into(),
                order: block,
                metric: metric.into(),
                phase: String::new(),
                value: Some(*value),
                unit: "s".into(),
                valid: true,
                reason: String::new(),
                accelerator: accelerator.into(),
                hypervisor: "kvm".into(),
                dilation: 1.0,
            })
            .collect()
    }

    const TENTH: Margin = Margin(10.0);

    #[test]
    fn a_margin_is_a_percentage_that_can_be_exceeded() {
        for (text, share) in [("25", 0.25), ("0.5", 0.005), ("1000", 10.0)] {
            assert!((text.parse::<Margin>().unwrap().share() - share).abs() < 1e-12, "{text}");
        }
        for text in ["", "NaN", "inf", "-inf", "-1", "0", "-0", "1e-400", "1001", "1e300", "25 %", "x"] {
            assert_eq!(text.parse::<Margin>(), Err("write a percentage above 0 and up to 1000"), "{text:?}");
        }
    }

    const OLD: [f64; 6] = [1.0, 1.02, 0.98, 1.01, 0.99, 1.0];

    #[test]
    fn a_time_that_doubles_is_worse_and_a_rate_that_doubles_is_not() {
        let twice = OLD.map(|value| value * 2.0);
        let judge =
            |metric: &str| verdict(&gate(&run(metric, "tcg", &OLD), &run(metric, "tcg", &twice), TENTH));
        assert_eq!(judge(metric::MIGRATION_TOTAL), Verdict::Worse);
        assert_eq!(judge(metric::BONNIE_BLOCK_READ), Verdict::NoWorse);
    }

    #[test]
    fn the_same_is_no_worse_and_noise_is_unclear() {
        let old = run(metric::DOWNTIME, "tcg", &OLD);
        assert_eq!(verdict(&gate(&old, &old, TENTH)), Verdict::NoWorse);
        let noisy = run(metric::DOWNTIME, "tcg", &[0.5, 2.0, 0.6, 1.9, 1.0, 3.0]);
        assert_eq!(verdict(&gate(&old, &noisy, TENTH)), Verdict::Unclear);
        let few = run(metric::DOWNTIME, "tcg", &OLD[..3]);
        assert_eq!(verdict(&gate(&old, &few, TENTH)), Verdict::Unclear);
    }

    #[test]
    fn other_accelerators_are_not_compared() {
        let lines = gate(&run(metric::DOWNTIME, "tcg", &OLD), &run(metric::DOWNTIME, "kvm", &OLD), TENTH);
        assert!(lines.is_empty());
        assert_eq!(verdict(&lines), Verdict::Unclear);
    }
}
