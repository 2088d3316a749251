//! The figure of experiment `layers`: a panel an operation, a row a file system.

use super::{
    Context,
    bars::{BLUE, ORANGE},
    chart::three_digits,
    panels::{Mark, Panel, Panels},
};
use crate::{
    metric::{self, Better},
    scenario::Arm,
    stats::{Analysis, Group, Interval, analysis::Comparison},
};

/// The operations that are shown as ratios to native.
const RATIOS: [&str; 10] = [
    metric::STAT_COLD,
    metric::STAT_WARM,
    metric::NEGATIVE_COLD,
    metric::NEGATIVE_WARM,
    metric::OPEN_READ,
    metric::READDIR,
    metric::SEQ_FIRST,
    metric::SEQ_READ,
    metric::SWAP_VISIBLE,
    metric::SWAP_EVENT_P99,
];

/// Those without a native counterpart, in their own unit.
const ABSOLUTE: [&str; 3] = [metric::SWAP_CACHED, metric::MANY_MOUNT, metric::MANY_MEMORY];

/// How many times as long as native an arm takes, with its interval; rates are inverted.
pub fn slower(found: &Comparison) -> Option<(f64, Option<Interval>)> {
    let inverse = metric::find(&found.metric).is_some_and(|metric| metric.better == Better::Higher);
    let turn = |value: f64| if inverse { 1.0 / value } else { value };
    Some((turn(found.paired.ratio?), found.paired.ratio_interval.map(|interval| interval.map(turn))))
}

pub(super) fn peers(analysis: &Analysis, context: &Context) -> Panels {
    let arms: Vec<Arm> = Arm::PEERS
        .into_iter()
        .filter(|arm| {
            context.peers.contains_key(arm.name()) || analysis.rows.iter().any(|row| row.arm == arm.name())
        })
        .collect();
    let mut panels = Vec::new();
    let mut blocks = (usize::MAX, 0);
    for group in &analysis.groups {
        let view = View { analysis, context, group, arms: &arms };
        panels.extend(RATIOS.iter().filter_map(|metric| view.ratios(metric)));
        panels.extend(ABSOLUTE.iter().filter_map(|metric| view.absolute(metric)));
        panels.extend(view.faults());
        for row in analysis.rows.iter().filter(|row| row.group == *group && row.metric == metric::STAT_COLD) {
            blocks = (blocks.0.min(row.summary.n), blocks.1.max(row.summary.n));
        }
    }
    Panels {
        title: "ffs and other union file systems, beside plain files".into(),
        rows: arms.iter().map(|arm| (arm.to_string(), if arm.is_ours() { BLUE } else { ORANGE })).collect(),
        caption: caption(context, blocks, panels.is_empty()),
        panels,
    }
}

fn caption(context: &Context, blocks: (usize, usize), empty: bool) -> Vec<String> {
    let mut lines = Vec::new();
    if empty {
        lines.push("No samples.".to_owned());
    } else {
        let n =
            if blocks.0 >= blocks.1 { blocks.1.to_string() } else { format!("{} to {}", blocks.0, blocks.1) };
        lines.push(format!(
            "“× native”: times as long as plain files in tmpfs in the same block, geometric mean; left is faster. \
             Others: median. Lines: 95 % intervals (BCa), n = {n} blocks. Axes are logarithmic. \
             Plain files change by renames one after the other. Bad reads are mixed, torn or failed ones."
        ));
        for (arm, note) in &context.peers {
            if let Some(why) = &note.absent {
                lines.push(format!("{arm} is absent: {why}."));
            }
        }
    }
    let mut machine = vec!["This machine's own kernel".to_owned()];
    if let Some(profile) = &context.profile {
        machine.push(format!("profile “{profile}”"));
    }
    if !context.scenario.is_empty() {
        machine.push(format!("scenario {}", context.scenario));
    }
    if !context.runs.is_empty() {
        machine.push(format!("run {}", context.runs.join(", ")));
    }
    lines.push(format!("{}.", machine.join("; ")));
    lines
}

struct View<'a> {
    analysis: &'a Analysis,
    context: &'a Context,
    group: &'a Group,
    arms: &'a [Arm],
}

impl View<'_> {
    /// Words where an arm has no value.
    fn without(&self, arm: Arm, metric: &str) -> Mark {
        let words = match self.context.peers.get(arm.name()) {
            Some(note) if note.absent.is_some() => "absent",
            Some(note) if note.cannot.contains_key(metric) => match metric {
                metric::MANY_MEMORY => "no program",
                _ => "cannot",
            },
            _ => "none",
        };
        Mark::Words(words.into())
    }

    fn median(&self, metric: &str, arm: Arm) -> Option<(f64, Option<Interval>)> {
        let summary = &self.analysis.row(self.group, metric, "", arm.name())?.summary;
        Some((summary.median?, summary.median_interval))
    }

    /// A panel, unless nobody has a value.
    fn panel(
        &self,
        title: &str,
        scale: &str,
        ratio: bool,
        mark: impl Fn(Arm) -> Option<Mark>,
        metric: &str,
    ) -> Option<Panel> {
        let marks: Vec<_> = self.arms.iter().map(|arm| mark(*arm)).collect();
        marks.iter().any(Option::is_some).then(|| {
            let several = self.analysis.groups.len() > 1;
            let scale = if several { format!("{scale}; {}", self.group.name()) } else { scale.to_owned() };
            let filled = marks.into_iter().zip(self.arms);
            let marks =
                filled.map(|(mark, arm)| mark.unwrap_or_else(|| self.without(*arm, metric))).collect();
            Panel { title: title.to_owned(), scale, ratio, marks }
        })
    }

    fn ratios(&self, metric: &str) -> Option<Panel> {
        let native = self.median(metric, Arm::Native);
        let native = native.map_or_else(String::new, |(value, _)| {
            format!(" ({} {})", three_digits(value), metric::unit(metric))
        });
        let mark = |arm: Arm| {
            let found = self.analysis.comparisons.iter().find(|c| {
                c.group == *self.group
                    && c.metric == metric
                    && c.from == Arm::Native.name()
                    && c.to == arm.name()
            })?;
            let (value, interval) = slower(found)?;
            let ends = interval.map(|i| (i.low, i.high));
            Some(Mark::Value { value, interval: ends, number: format!("× {}", three_digits(value)) })
        };
        self.panel(metric::label(metric), &format!("× native{native}"), true, mark, metric)
    }

    fn absolute(&self, metric: &str) -> Option<Panel> {
        let mark = |arm: Arm| {
            let (value, interval) = self.median(metric, arm).filter(|(value, _)| *value > 0.0)?;
            let ends = interval.map(|i| (i.low, i.high)).filter(|(low, _)| *low > 0.0);
            Some(Mark::Value { value, interval: ends, number: three_digits(value) })
        };
        self.panel(metric::label(metric), metric::unit(metric), false, mark, metric)
    }

    /// Counts are words: most are zero, which no logarithm shows.
    fn faults(&self) -> Option<Panel> {
        let sum = |metric: &str, arm: Arm| -> Option<f64> {
            let row = self.analysis.row(self.group, metric, "", arm.name())?;
            Some(row.summary.values.iter().sum())
        };
        let mark = |arm: Arm| {
            let mixed = sum(metric::MIXED_READS, arm)? + sum(metric::TORN_READS, arm)?;
            let errors = sum(metric::STORM_ERRORS, arm)?;
            let reads = sum(metric::STORM_READS, arm)?;
            Some(Mark::Words(format!("{} of {}", mixed + errors, three_digits(reads))))
        };
        let native = sum(metric::MIXED_READS, Arm::Native);
        let native = native.map_or_else(String::new, |mixed| format!("of all reads; native {mixed}"));
        self.panel("Bad reads while layers change", &native, false, mark, metric::MIXED_READS)
    }
}
