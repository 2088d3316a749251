//! The tables of experiment `layers`: file systems side by side, and `ffs` beside its goals.

use serde::Serialize;

use super::claims::with_interval;
use crate::{
    figures::{chart::three_digits, slower},
    metric::{self, Better},
    scenario::{Arm, Experiment},
    stats::{Analysis, Group, Interval},
    store::StoredRun,
    workload::layers::peer,
};

/// File systems of one group side by side.
#[derive(Debug, Serialize)]
pub(super) struct Peers {
    group: String,
    what: String,
    arms: Vec<&'static str>,
    rows: Vec<Row>,
    notes: Vec<Note>,
}

#[derive(Debug, Serialize)]
struct Row {
    label: &'static str,
    unit: &'static str,
    cells: Vec<Cell>,
}

#[derive(Debug, Serialize)]
struct Cell {
    value: String,
    ratio: String,
}

#[derive(Debug, Serialize)]
struct Note {
    arm: String,
    version: String,
    command: String,
    absent: String,
    cannot: Vec<String>,
}

/// One goal of `ffs`.
#[derive(Debug, Serialize)]
pub(super) struct Goal {
    group: String,
    what: String,
    limit: String,
    ours: String,
    best: String,
    verdict: &'static str,
    missed: bool,
}

fn median(analysis: &Analysis, group: &Group, metric: &str, arm: Arm) -> Option<(f64, Option<Interval>)> {
    let summary = &analysis.row(group, metric, "", arm.name())?.summary;
    Some((summary.median?, summary.median_interval))
}

/// How many times as long as native an arm takes.
fn ratio(analysis: &Analysis, group: &Group, metric: &str, arm: Arm) -> Option<(f64, Option<Interval>)> {
    let mut all = analysis.comparisons.iter();
    slower(all.find(|c| {
        c.group == *group && c.metric == metric && c.from == Arm::Native.name() && c.to == arm.name()
    })?)
}

/// The tables, one a group that has such samples.
pub(super) fn peers(runs: &[StoredRun], analysis: &Analysis) -> Vec<Peers> {
    let Some(run) = runs.iter().find(|run| run.scenario.experiment == Experiment::Layers) else {
        return Vec::new();
    };
    let layers = run.scenario.layers.clone().unwrap_or_default();
    let what = format!(
        "{} names of 4 KiB, a file of {}, three layers; {} swaps a trial of a layer with 16 files, {} entries cached, {} \
         changes a second for {}; large union: {} files in {} layers.",
        layers.files,
        layers.large,
        layers.swaps,
        layers.cached,
        layers.storm_rate,
        layers.storm,
        layers.many_files,
        layers.many_layers,
    );
    let arms: Vec<Arm> = std::iter::once(Arm::Native)
        .chain(Arm::PEERS)
        .filter(|arm| run.scenario.design.arms.contains(arm))
        .collect();
    let notes = |run: &StoredRun| {
        arms.iter()
            .filter_map(|arm| Some((arm, run.manifest.peers.get(arm.name())?)))
            .map(|(arm, note)| {
                let mut whys: Vec<&String> = note.cannot.values().collect();
                whys.sort_unstable();
                whys.dedup();
                let of = |why: &String| {
                    let metrics = note.cannot.iter().filter(|(_, reason)| *reason == why);
                    let labels: Vec<_> = metrics.map(|(metric, _)| metric::label(metric)).collect();
                    format!("{why} ({})", labels.join(", "))
                };
                Note {
                    arm: arm.to_string(),
                    version: note.version.clone(),
                    command: note.command.clone(),
                    absent: note.absent.clone().unwrap_or_default(),
                    cannot: whys.into_iter().map(of).collect(),
                }
            })
            .collect()
    };
    let cell = |group: &Group, metric: &str, arm: Arm| {
        let note = run.manifest.peers.get(arm.name());
        match median(analysis, group, metric, arm) {
            Some((value, _)) => Cell {
                value: three_digits(value),
                ratio: ratio(analysis, group, metric, arm)
                    .filter(|_| metric::LAYERS.contains(&metric))
                    .map_or_else(String::new, |(value, interval)| with_interval(value, interval)),
            },
            None => Cell {
                value: match note {
                    Some(note) if note.absent.is_some() => "absent",
                    Some(note) if note.cannot.contains_key(metric) => "cannot",
                    _ => "–",
                }
                .into(),
                ratio: String::new(),
            },
        }
    };
    let all = || {
        metric::ALL.iter().filter(|m| {
            metric::LAYERS.contains(&m.name)
                || metric::FAULTS.contains(&m.name)
                || [metric::INVALIDATE, metric::STORM_READS].contains(&m.name)
        })
    };
    analysis
        .groups
        .iter()
        .map(|group| Peers {
            group: group.name(),
            what: what.clone(),
            arms: arms.iter().map(|arm| arm.name()).collect(),
            rows: all()
                .map(|m| Row {
                    label: m.label,
                    unit: m.unit,
                    cells: arms.iter().map(|arm| cell(group, m.name, *arm)).collect(),
                })
                .collect(),
            notes: notes(run),
        })
        .collect()
}

/// What a goal is about.
enum Limit {
    /// At most so much, in the metric's unit.
    Absolute(f64),
    /// At most so many times as long as native.
    Native(f64),
    /// No longer than overlayfs.
    Overlayfs,
}

/// What `ffs` is to reach; times as long as native where rates are meant.
const GOALS: [(Arm, &str, Limit); 15] = [
    (Arm::Ffs, metric::SEQ_READ, Limit::Native(1.0 / 0.98)),
    (Arm::Ffs, metric::SEQ_FIRST, Limit::Native(1.0 / 0.98)),
    (Arm::FfsPassthrough, metric::SEQ_READ, Limit::Native(1.0 / 0.98)),
    (Arm::FfsPassthrough, metric::SEQ_FIRST, Limit::Native(1.0 / 0.98)),
    (Arm::Ffs, metric::OPEN_READ, Limit::Overlayfs),
    (Arm::Ffs, metric::STAT_COLD, Limit::Absolute(12.0)),
    (Arm::Ffs, metric::READDIR, Limit::Absolute(300.0)),
    (Arm::Ffs, metric::SWAP_VISIBLE, Limit::Absolute(0.5)),
    (Arm::Ffs, metric::SWAP_EVENT_P99, Limit::Absolute(5.0)),
    (Arm::Ffs, metric::EVENT_FAULTS, Limit::Absolute(0.0)),
    (Arm::Ffs, metric::INVALIDATE, Limit::Absolute(50.0)),
    (Arm::Ffs, metric::MIXED_READS, Limit::Absolute(0.0)),
    (Arm::Ffs, metric::TORN_READS, Limit::Absolute(0.0)),
    (Arm::Ffs, metric::MANY_MOUNT, Limit::Absolute(1000.0)),
    (Arm::Ffs, metric::MANY_MEMORY, Limit::Absolute(100.0)),
];

/// `ffs` beside its goals.
pub(super) fn goals(runs: &[StoredRun], analysis: &Analysis) -> Vec<Goal> {
    let of = |group: &Group, arm: Arm, metric: &str, limit: &Limit| -> Option<Goal> {
        let unit = metric::unit(metric);
        let unit = if unit == "1" { String::new() } else { format!(" {unit}") };
        let (text, value, interval, most) = match limit {
            Limit::Absolute(most) => {
                let (value, interval) = median(analysis, group, metric, arm)?;
                (format!("{}{unit}", three_digits(*most)), value, interval, *most)
            }
            Limit::Native(most) => {
                let (value, interval) = ratio(analysis, group, metric, arm)?;
                (format!("× {} native", three_digits(*most)), value, interval, *most)
            }
            Limit::Overlayfs => {
                let (value, interval) = ratio(analysis, group, metric, arm)?;
                let (most, _) = ratio(analysis, group, metric, Arm::Overlayfs)?;
                (format!("overlayfs's × {} native", three_digits(most)), value, interval, most)
            }
        };
        let by = if arm == Arm::Ffs { String::new() } else { format!(", {arm}") };
        let times = if matches!(limit, Limit::Absolute(_)) { "" } else { "× " };
        let after = if times.is_empty() { unit } else { String::new() };
        let (low, high) = interval.map_or((value, value), |i| (i.low, i.high));
        let verdict = if high <= most {
            "met"
        } else if low > most {
            "missed"
        } else {
            "not shown"
        };
        Some(Goal {
            group: group.name(),
            what: format!("{}{by}", metric::label(metric)),
            limit: text,
            ours: format!("{times}{}{after}", with_interval(value, interval)),
            best: best(analysis, group, metric).map_or_else(
                || if unmeasured(runs, metric) { "none was measured" } else { "nobody can" }.into(),
                |(arm, value)| format!("{arm}: {} {}", three_digits(value), metric::unit(metric)),
            ),
            verdict,
            missed: verdict != "met",
        })
    };
    analysis
        .groups
        .iter()
        .flat_map(|group| GOALS.iter().filter_map(|(arm, metric, limit)| of(group, *arm, metric, limit)))
        .collect()
}

/// The best of the others, with its median.
fn best(analysis: &Analysis, group: &Group, metric: &str) -> Option<(Arm, f64)> {
    let higher = metric::find(metric).is_some_and(|m| m.better == Better::Higher);
    let others = Arm::PEERS.into_iter().filter(|arm| !arm.is_ours());
    let values = others.filter_map(|arm| Some((arm, median(analysis, group, metric, arm)?.0)));
    values.min_by(|(_, a), (_, b)| if higher { b.total_cmp(a) } else { a.total_cmp(b) })
}

/// Whether a file system that could have a value of this metric is absent, under all of its arms: then nothing is known of what
/// the others can.
fn unmeasured(runs: &[StoredRun], metric: &str) -> bool {
    let absent = |arm: &Arm| {
        let mut notes = runs.iter().filter_map(|run| run.manifest.peers.get(arm.name())).peekable();
        notes.peek().is_some() && notes.all(|note| note.absent.is_some())
    };
    let others =
        Arm::PEERS.into_iter().filter(|arm| !arm.is_ours() && !peer::cannot(*arm).contains_key(metric));
    let measured: Vec<Arm> = others.clone().filter(|arm| !absent(arm)).collect();
    others.filter(absent).any(|arm| measured.iter().all(|other| peer::package(*other) != peer::package(arm)))
}

/// Where `ffs` is ahead of the best of the others, and where it is behind, by medians.
pub(super) fn summary(runs: &[StoredRun], analysis: &Analysis) -> Vec<String> {
    let mut sentences = Vec::new();
    for group in &analysis.groups {
        let (mut ahead, mut behind, mut alone) = (Vec::new(), Vec::new(), Vec::new());
        for metric in metric::LAYERS {
            let Some((ours, _)) = median(analysis, group, metric, Arm::Ffs) else { continue };
            let Some((arm, theirs)) = best(analysis, group, metric) else {
                if !unmeasured(runs, metric) {
                    alone.push(metric::label(metric).to_lowercase());
                }
                continue;
            };
            let higher = metric::find(metric).is_some_and(|m| m.better == Better::Higher);
            let better = if higher { ours >= theirs } else { ours <= theirs };
            let words = format!(
                "{} ({} against {} {} of {arm})",
                metric::label(metric).to_lowercase(),
                three_digits(ours),
                three_digits(theirs),
                metric::unit(metric),
            );
            if better { ahead.push(words) } else { behind.push(words) }
        }
        for (what, list) in [
            ("is at least as good as the best of the others in", ahead),
            ("is behind the best of the others in", behind),
            ("alone does", alone),
        ] {
            if !list.is_empty() {
                sentences.push(format!("{}: ffs {what}: {}.", group.name(), list.join(", ")));
            }
        }
    }
    sentences
}
