//! All statistics of a run: which samples belong together, and what is compared with what.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::{Overhead, Paired, Summary, multiple};
use crate::{metric, model::Sample, scenario::Arm};

/// What samples must share to be put together: nothing is compared across machines of different
/// kinds or links of different speed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Group {
    /// The run's label, when several are shown side by side.
    pub label: String,
    /// Hypervisor of the hosts.
    pub hypervisor: String,
    /// Accelerator of the hosts.
    pub accelerator: String,
}

impl Group {
    /// Name for people, e.g. `KVM on TCG`.
    pub fn name(&self) -> String {
        let hypervisor = self.hypervisor.to_uppercase().replace("XEN", "Xen");
        let machine = match self.accelerator.as_str() {
            "none" => "this machine's own kernel".to_owned(),
            "tcg" => format!("{hypervisor}, emulated (TCG)"),
            "kvm" | "" => hypervisor,
            other => format!("{hypervisor} on {other}"),
        };
        if self.label.is_empty() { machine } else { format!("{machine}, {}", self.label) }
    }
}

/// The statistics of one metric, phase and arm of a group.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The group.
    pub group: Group,
    /// The metric.
    pub metric: String,
    /// The phase; empty for the whole trial.
    pub phase: String,
    /// The arm.
    pub arm: String,
    /// The unit.
    pub unit: String,
    /// Dilation of the links.
    pub dilation: f64,
    /// Its statistics.
    pub summary: Summary,
}

/// A comparison within blocks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The group.
    pub group: Group,
    /// The metric.
    pub metric: String,
    /// The side that is compared with: an arm or a phase.
    pub from: String,
    /// The side that is compared: an arm or a phase.
    pub to: String,
    /// The unit.
    pub unit: String,
    /// Dilation of the links.
    pub dilation: f64,
    /// The result.
    pub paired: Paired,
    /// The test's p value, corrected for all comparisons of the group (Benjamini–Hochberg).
    pub p_corrected: Option<f64>,
}

/// A sample that statistics do not use.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unused {
    /// The group.
    pub group: Group,
    /// The sample.
    pub sample: Sample,
}

/// All statistics of one or several runs.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Analysis {
    /// The groups.
    pub groups: Vec<Group>,
    /// Every metric, phase and arm.
    pub rows: Vec<Row>,
    /// What is compared.
    pub comparisons: Vec<Comparison>,
    /// What recontextualization adds to a migration, by group.
    pub overheads: Vec<(Group, Overhead)>,
    /// Invalid samples, warm-up included.
    pub unused: Vec<Unused>,
    /// Samples of the warm-up, in no statistic.
    pub warmup: usize,
}

impl Analysis {
    /// The row of a metric, phase and arm.
    pub fn row(&self, group: &Group, metric: &str, phase: &str, arm: &str) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.group == *group && row.metric == metric && row.phase == phase && row.arm == arm)
    }
}

/// One run's samples with its label; the label is empty when it stands alone.
pub type Labelled<'a> = (&'a str, &'a [Sample]);

/// Computes everything. Pure: the same samples give the same bits.
pub fn analyse(runs: &[Labelled<'_>]) -> Analysis {
    let mut analysis = Analysis::default();
    let mut by_group: BTreeMap<Group, Vec<&Sample>> = BTreeMap::new();
    let mut order = Vec::new();
    for (label, samples) in runs {
        for sample in *samples {
            let group = Group {
                label: (*label).to_owned(),
                hypervisor: sample.hypervisor.clone(),
                accelerator: sample.accelerator.clone(),
            };
            if !order.contains(&group) {
                order.push(group.clone());
            }
            if !sample.valid {
                analysis.unused.push(Unused { group: group.clone(), sample: sample.clone() });
            }
            // Links are measured before any block, so block 0 is no warm-up for them.
            let is_link = sample.metric == metric::LINK_RTT || sample.metric == metric::LINK_RATE;
            if sample.block == 0 && !is_link {
                analysis.warmup += 1;
            } else {
                by_group.entry(group).or_default().push(sample);
            }
        }
    }
    for group in &order {
        let samples = by_group.remove(group).unwrap_or_default();
        analysis.rows.extend(rows(group, &samples));
        analysis.comparisons.extend(comparisons(group, &samples));
        let pairs = pairs(&samples, &plain_total(), &with_total(&samples)).0;
        if let Some(overhead) = Overhead::new(&pairs) {
            analysis.overheads.push((group.clone(), overhead));
        }
    }
    analysis.groups = order;
    analysis
}

/// Position of a metric in tables; unknown ones come last.
fn position(name: &str) -> usize {
    metric::ALL.iter().position(|metric| metric.name == name).unwrap_or(metric::ALL.len())
}

fn phase_position(phase: &str) -> usize {
    let known = metric::RECONTEXT_PHASES.into_iter().chain([
        metric::ACKNOWLEDGE,
        metric::PHASE_HOME,
        metric::PHASE_BEFORE,
        metric::PHASE_AFTER,
    ]);
    // A phase such as `before:remote` stands where `before` does.
    let head = phase.split(':').next().unwrap_or_default();
    known.into_iter().position(|one| one == head).unwrap_or(usize::MAX)
}

fn rows(group: &Group, samples: &[&Sample]) -> Vec<Row> {
    // Keyed in the order of the table; dilation by its bits, which order positive numbers.
    let mut cells: BTreeMap<_, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        let key = (
            (position(&sample.metric), sample.metric.as_str()),
            (phase_position(&sample.phase), sample.phase.as_str()),
            sample.arm.as_str(),
            sample.unit.as_str(),
            sample.dilation.to_bits(),
        );
        cells.entry(key).or_default().push(sample);
    }
    cells
        .into_iter()
        .map(|(((_, metric), (_, phase), arm, unit, dilation), samples)| Row {
            group: group.clone(),
            metric: metric.to_owned(),
            phase: phase.to_owned(),
            arm: arm.to_owned(),
            unit: unit.to_owned(),
            dilation: f64::from_bits(dilation),
            summary: Summary::new(samples),
        })
        .collect()
}

/// One side of a comparison.
struct Side<'a> {
    metric: &'a str,
    phase: &'a str,
    arm: Option<Arm>,
}

fn plain_total() -> Side<'static> {
    Side { metric: metric::MIGRATION_TOTAL, phase: "", arm: Some(Arm::Plain) }
}

/// Until the recontextualizer was done, as the paper's first bar; the migrate call alone where that
/// was not measured.
fn with_total(samples: &[&Sample]) -> Side<'static> {
    let measured = samples.iter().any(|sample| sample.metric == metric::WITH_RECONTEXT_TOTAL);
    let metric = if measured { metric::WITH_RECONTEXT_TOTAL } else { metric::MIGRATION_TOTAL };
    Side { metric, phase: "", arm: Some(Arm::Recontext) }
}

/// The valid value of a side in each block; the last one where a trial was done again.
fn by_block(samples: &[&Sample], side: &Side<'_>) -> BTreeMap<(u32, u64), f64> {
    samples
        .iter()
        .filter(|s| s.valid && s.metric == side.metric && s.phase == side.phase)
        .filter(|s| side.arm.is_none_or(|arm| arm.name() == s.arm))
        .filter_map(|s| Some(((s.block, s.dilation.to_bits()), s.value?)))
        .collect()
}

/// Pairs (a, b) of the blocks that have both, and how many have only one.
fn pairs(samples: &[&Sample], a: &Side<'_>, b: &Side<'_>) -> (Vec<(f64, f64)>, usize) {
    let (a, b) = (by_block(samples, a), by_block(samples, b));
    let pairs: Vec<_> = a.iter().filter_map(|(block, a)| Some((*a, *b.get(block)?))).collect();
    let unpaired = a.len() + b.len() - 2 * pairs.len();
    (pairs, unpaired)
}

fn comparisons(group: &Group, samples: &[&Sample]) -> Vec<Comparison> {
    let names: BTreeSet<_> =
        samples.iter().map(|s| (position(&s.metric), s.metric.as_str(), s.dilation.to_bits())).collect();
    let mut found = Vec::new();
    let mut compare = |metric: &str, a: Side<'_>, b: Side<'_>, from: &str, to: &str, dilation: u64| {
        let same: Vec<&Sample> =
            samples.iter().copied().filter(|s| s.dilation.to_bits() == dilation).collect();
        let (pairs, unpaired) = pairs(&same, &a, &b);
        if let Some(paired) = Paired::new(&pairs, unpaired) {
            // A metric that a user defined has a unit of its own.
            let own = || same.iter().find(|sample| sample.metric == metric).map(|sample| sample.unit.clone());
            let unit = match metric::find(metric) {
                Some(known) => known.unit.to_owned(),
                None => own().unwrap_or_default(),
            };
            found.push(Comparison {
                group: group.clone(),
                metric: metric.to_owned(),
                from: from.to_owned(),
                to: to.to_owned(),
                unit,
                dilation: f64::from_bits(dilation),
                paired,
                p_corrected: None,
            });
        }
    };
    for (_, metric, dilation) in names {
        let arm = |arm| Side { metric, phase: "", arm: Some(arm) };
        compare(
            metric,
            arm(Arm::Plain),
            arm(Arm::Recontext),
            Arm::Plain.name(),
            Arm::Recontext.name(),
            dilation,
        );
        if metric == metric::WITH_RECONTEXT_TOTAL {
            let with = Side { metric, phase: "", arm: Some(Arm::Recontext) };
            compare(metric, plain_total(), with, Arm::Plain.name(), Arm::Recontext.name(), dilation);
        }
        for peer in Arm::PEERS {
            compare(metric, arm(Arm::Native), arm(peer), Arm::Native.name(), peer.name(), dilation);
        }
        let phase = |phase| Side { metric, phase, arm: None };
        let (before, after) = (metric::PHASE_BEFORE, metric::PHASE_AFTER);
        compare(metric, phase(before), phase(after), before, after, dilation);
    }
    let tested: Vec<_> = found.iter().filter_map(|c| c.paired.test).map(|test| test.p).collect();
    let corrected = multiple::benjamini_hochberg(&tested);
    let with_test = found.iter_mut().filter(|c| c.paired.test.is_some());
    for (comparison, p) in with_test.zip(corrected) {
        comparison.p_corrected = Some(p);
    }
    found
}
