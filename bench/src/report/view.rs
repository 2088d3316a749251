//! What the page shows, as plain values: the template decides nothing.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::{
    Picture,
    claims::{Claim, claims, with_interval},
    network::{Carried, Link, carried, links},
    peers::{Goal, Peers, goals, peers},
    sides,
};
use crate::{
    figures::chart::three_digits,
    metric,
    model::Metric,
    scenario::{Scenario, TestbedKind},
    stats::{Analysis, Interval, Warning, analysis},
    store::{Manifest, StoredRun},
};

#[derive(Debug, Serialize)]
pub(super) struct View {
    title: String,
    summary: Vec<String>,
    changed: Vec<String>,
    otherwise: Vec<String>,
    figures: Vec<Figure>,
    claims: Vec<Claim>,
    emulated: bool,
    sides: &'static str,
    /// What the table of measurements lacks on some machine, and why.
    remarks: Vec<String>,
    rows: Vec<Row>,
    comparisons: Vec<Comparison>,
    links: Vec<Link>,
    carried: Vec<Carried>,
    peers: Vec<Peers>,
    goals: Vec<Goal>,
    invalid: Vec<Invalid>,
    warmup: usize,
    several: bool,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Figure {
    id: String,
    title: String,
    svg: String,
}

#[derive(Debug, Serialize)]
struct Row {
    group: String,
    metric: String,
    phase: String,
    arm: String,
    unit: String,
    /// Empty in real time.
    dilation: String,
    n: usize,
    invalid: usize,
    mean: String,
    sd: String,
    median: String,
    range: String,
    median_exact: String,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Comparison {
    group: String,
    metric: String,
    sides: String,
    unit: String,
    n: usize,
    difference: String,
    ratio: String,
    above: usize,
    p: String,
    detectable: String,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Invalid {
    group: String,
    block: u32,
    arm: String,
    order: u32,
    reason: String,
    metrics: String,
}

#[derive(Debug, Serialize)]
struct Run {
    id: String,
    scenario: String,
    profile: String,
    text: String,
    facts: Vec<(&'static str, String)>,
    sections: Vec<(&'static str, String)>,
    order: String,
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), three_digits)
}

fn notes(warnings: &[Warning]) -> Vec<String> {
    warnings.iter().map(ToString::to_string).collect()
}

impl View {
    pub(super) fn new(
        runs: &[StoredRun],
        analysis: &Analysis,
        summary: &[String],
        changed: &[String],
        otherwise: &[String],
        pictures: &[Picture],
        definitions: &[Metric],
    ) -> Self {
        let label = |name: &str| {
            let own = definitions.iter().find(|definition| definition.name == name);
            own.map_or_else(|| metric::label(name).to_owned(), |definition| definition.title.clone())
        };
        let mut titles: Vec<&str> = runs.iter().map(|run| run.scenario.title.as_str()).collect();
        titles.dedup();
        let experiment = runs[0].scenario.experiment;
        Self {
            title: titles.join(" · "),
            summary: summary.to_vec(),
            changed: changed.to_vec(),
            otherwise: otherwise.to_vec(),
            figures: pictures
                .iter()
                .map(|p| Figure { id: p.id.clone(), title: p.title.clone(), svg: p.svg.clone() })
                .collect(),
            claims: claims(experiment, analysis),
            emulated: analysis.groups.iter().any(|group| group.accelerator == "tcg"),
            sides: sides(experiment),
            remarks: remarks(analysis),
            rows: analysis
                .rows
                .iter()
                .filter(|row| row.metric != metric::SERVER_BYTES)
                .map(|found| row(found, label(&found.metric)))
                .collect(),
            comparisons: analysis
                .comparisons
                .iter()
                .map(|found| comparison(found, label(&found.metric)))
                .collect(),
            links: links(runs),
            carried: carried(analysis),
            peers: peers(runs, analysis),
            goals: goals(runs, analysis),
            invalid: invalid(analysis),
            warmup: analysis.warmup,
            several: analysis.groups.len() > 1,
            runs: runs.iter().map(run).collect(),
        }
    }
}

/// Says of which machines libvirt has given no account of migrations.
fn remarks(analysis: &Analysis) -> Vec<String> {
    let has = |group: &analysis::Group, metric| {
        analysis.rows.iter().any(|row| row.group == *group && row.metric == metric)
    };
    let silent = |group: &&analysis::Group| {
        has(group, metric::MIGRATION_TOTAL) && !has(group, metric::MIGRATION_TIME_LIBVIRT)
    };
    let remark = |group: &analysis::Group| {
        format!(
            "{}: libvirt's driver keeps no statistics of a migration there and takes no limit on its downtime. Its time is \
             that of the call, and its downtime is the silence of a program in the guest (heartbeat) and of its kernel \
             (ping), both seen from outside.",
            group.name()
        )
    };
    analysis.groups.iter().filter(silent).map(remark).collect()
}

/// Bytes are shown in MiB: nine digits say nothing.
fn scaled(unit: &str) -> (&str, f64) {
    if unit == "B" { ("MiB", f64::from(1 << 20)) } else { (unit, 1.0) }
}

fn row(row: &analysis::Row, label: String) -> Row {
    let summary = &row.summary;
    let (unit, size) = scaled(&row.unit);
    let number = |value: Option<f64>| number(value.map(|value| value / size));
    let with_interval = |value: Option<f64>, interval: Option<Interval>| {
        value.map_or_else(
            || "–".into(),
            |value| with_interval(value / size, interval.map(|i| i.map(|end| end / size))),
        )
    };
    Row {
        group: row.group.name(),
        metric: label,
        phase: row.phase.clone(),
        arm: row.arm.clone(),
        unit: unit.to_owned(),
        dilation: if row.dilation > 1.0 { row.dilation.to_string() } else { String::new() },
        n: summary.n,
        invalid: summary.invalid,
        mean: with_interval(summary.mean, summary.mean_interval),
        sd: number(summary.sd),
        median: with_interval(summary.median, summary.median_interval),
        range: format!("{} … {}", number(summary.min), number(summary.max)),
        median_exact: summary.median_exact.map_or_else(
            || "–".into(),
            |i| {
                let (low, high) = (three_digits(i.low / size), three_digits(i.high / size));
                format!("[{low}, {high}] at {:.1} %", i.level * 100.0)
            },
        ),
        notes: notes(&summary.warnings),
    }
}

fn comparison(found: &analysis::Comparison, label: String) -> Comparison {
    let paired = &found.paired;
    let (unit, size) = scaled(&found.unit);
    Comparison {
        group: found.group.name(),
        metric: label,
        sides: format!("{} → {}", found.from, found.to),
        unit: unit.to_owned(),
        n: paired.n,
        difference: with_interval(
            paired.difference / size,
            paired.difference_interval.map(|i| i.map(|end| end / size)),
        ),
        ratio: paired.ratio.map_or_else(|| "–".into(), |ratio| with_interval(ratio, paired.ratio_interval)),
        above: paired.above,
        p: match (paired.test, found.p_corrected) {
            (Some(test), Some(corrected)) => {
                format!("{} ({})", three_digits(test.p), three_digits(corrected))
            }
            _ => "–".into(),
        },
        detectable: number(paired.detectable.map(|value| value / size)),
        notes: notes(&paired.warnings),
    }
}

/// Invalid samples of one trial with one reason stand in one line.
fn invalid(analysis: &Analysis) -> Vec<Invalid> {
    let mut lines: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for unused in &analysis.unused {
        let s = &unused.sample;
        let key = (unused.group.clone(), s.order, s.block, s.arm.clone(), s.reason.clone());
        let name = if s.phase.is_empty() { s.metric.clone() } else { format!("{} ({})", s.metric, s.phase) };
        lines.entry(key).or_default().push(name);
    }
    lines
        .into_iter()
        .map(|((group, order, block, arm, reason), metrics)| Invalid {
            group: group.name(),
            block,
            arm,
            order,
            reason,
            metrics: metrics.join(", "),
        })
        .collect()
}

fn run(run: &StoredRun) -> Run {
    let manifest = &run.manifest;
    let or_unknown = |value: &Option<String>| value.clone().unwrap_or_else(|| "unknown".into());
    let ended = crate::store::ended_trials(&run.events).len();
    let resumed = run.events.iter().filter(|e| e.kind == crate::store::kind::RUN_RESUMED).count();
    let dilations = {
        let mut all: Vec<f64> = run.samples.iter().map(|s| s.dilation).chain(manifest.dilation).collect();
        all.sort_unstable_by(f64::total_cmp);
        all.dedup();
        all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    let order: Vec<_> =
        manifest.plan.trials.iter().map(|trial| format!("{}\u{a0}{}", trial.block, trial.arm)).collect();
    Run {
        id: manifest.run.clone(),
        scenario: manifest.scenario.name.clone(),
        profile: manifest.scenario.profile.clone().unwrap_or_else(|| "full".into()),
        text: manifest.scenario.text.clone(),
        facts: [
            ("Started", manifest.started_utc.clone()),
            ("Ended", manifest.ended_utc.clone().unwrap_or_else(|| "not yet, or cut off".into())),
            ("Trials", format!("{ended} of {} ended", manifest.plan.trials.len())),
            ("Resumed", format!("{resumed} times")),
            ("Accelerator", or_unknown(&manifest.accelerator)),
            ("Hypervisor", hypervisor(&run.scenario)),
            ("Dilation of the links", dilations),
            ("Seed", manifest.seed.to_string()),
            ("Scenario (SHA-256)", manifest.scenario.sha256.clone()),
            ("Bench", format!("{}, revision {}", manifest.tool_version, or_unknown(&manifest.git_revision))),
        ]
        .into_iter()
        .chain(provenance(manifest))
        .collect(),
        sections: [
            ("Hosts", &manifest.hosts),
            ("Guests", &manifest.guests),
            ("Tools", &manifest.tools),
            ("Links", &manifest.links),
            ("Queueing disciplines as read back", &manifest.qdiscs),
            ("Images", &manifest.images),
        ]
        .into_iter()
        .filter(|(_, section)| !section.is_null())
        .map(|(name, section)| (name, pretty(section)))
        .collect(),
        order: order.join(", "),
    }
}

/// Which programs measured, of a run that noted it.
fn provenance(manifest: &Manifest) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if let Some(lock) = &manifest.cargo_lock {
        facts.push(("Cargo.lock (SHA-256)", lock.clone()));
    }
    if !manifest.programs.is_empty() {
        let each: Vec<_> =
            manifest.programs.iter().map(|(name, digest)| format!("{name} {digest}")).collect();
        facts.push(("Programs (SHA-256)", each.join(", ")));
    }
    if let Some(revision) = &manifest.scenario.git_revision {
        facts.push(("Scenario's repository", format!("revision {revision}")));
    }
    if let Some(asked) = manifest.accelerator_asked {
        facts.push(("Accelerator asked for", asked.to_string()));
    }
    facts
}

fn hypervisor(scenario: &Scenario) -> String {
    match scenario.testbed.kind {
        TestbedKind::Local => "none: this machine's own kernel".into(),
        _ => scenario.testbed.hypervisor.to_string(),
    }
}

fn pretty(value: &Value) -> String {
    // A Value always serializes.
    serde_json::to_string_pretty(value).unwrap_or_default()
}
