//! The result in a sentence, and the paper's own claims beside it.

use serde::Serialize;

use crate::{
    figures::chart::three_digits,
    metric,
    scenario::{Arm, Experiment},
    stats::{Analysis, Interval, Overhead},
    store::StoredRun,
};

/// The paper's overhead (section "A recontextualization mechanism"), ten runs.
const PAPER_OVERHEAD: f64 = 0.18;

/// One claim of the paper beside what was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Claim {
    group: String,
    what: String,
    paper: String,
    ours: String,
    verdict: String,
}

/// `1.23 [1.10, 1.40]`, or without brackets when there is no interval.
pub(super) fn with_interval(value: f64, interval: Option<Interval>) -> String {
    match interval {
        Some(Interval { low, high, .. }) => {
            format!("{} [{}, {}]", three_digits(value), three_digits(low), three_digits(high))
        }
        None => three_digits(value),
    }
}

fn percent(value: f64, interval: Option<Interval>) -> String {
    let one = |value: f64| format!("{:.1}", value * 100.0);
    match interval {
        Some(Interval { low, high, .. }) => format!("{} % [{}, {}]", one(value), one(low), one(high)),
        None => format!("{} %", one(value)),
    }
}

/// What was found, in a sentence a group.
pub(super) fn summary(experiment: Experiment, runs: &[StoredRun], analysis: &Analysis) -> Vec<String> {
    let mut sentences = match experiment {
        Experiment::Migration => migration(analysis),
        Experiment::Gluster => gluster(analysis),
        Experiment::Layers => super::peers::summary(runs, analysis),
    };
    if sentences.is_empty() {
        sentences.push("There is no pair of valid samples to compare.".into());
    }
    sentences
}

fn migration(analysis: &Analysis) -> Vec<String> {
    let mut sentences = Vec::new();
    for (group, overhead) in &analysis.overheads {
        let Overhead { n, added, added_interval, .. } = overhead;
        sentences.push(format!(
            "{}: recontextualization added {} s to a live migration, an increase of {} over the plain one, which is \
             {} of the whole ({n} paired blocks{}).",
            group.name(),
            with_interval(*added, *added_interval),
            percent(overhead.recontext_increase, overhead.increase_interval),
            percent(overhead.recontext_share, overhead.share_interval),
            if added_interval.is_some() { "; brackets: 95 % intervals" } else { ", too few for an interval" },
        ));
    }
    if !sentences.is_empty() {
        return sentences;
    }
    // Without the plain arm there is nothing to compare with: the times themselves.
    for group in &analysis.groups {
        let mean =
            |metric| analysis.row(group, metric, "", Arm::Recontext.name()).and_then(|row| row.summary.mean);
        if let Some(total) = mean(metric::MIGRATION_TOTAL) {
            let mut parts =
                vec![format!("{}: the guest migrated in {} s", group.name(), three_digits(total))];
            for (metric, words) in [
                (metric::RECONTEXT_TIME, "its recontextualization took"),
                (metric::CONTENT_VISIBLE, "it saw the new content after a further"),
            ] {
                if let Some(seconds) = mean(metric) {
                    parts.push(format!("{words} {} s", three_digits(seconds)));
                }
            }
            sentences.push(format!("{}.", parts.join(", ")));
        }
    }
    sentences
}

fn gluster(analysis: &Analysis) -> Vec<String> {
    let mut sentences = Vec::new();
    for group in &analysis.groups {
        let mut parts = Vec::new();
        for metric in metric::BONNIE_THROUGHPUT {
            let found = analysis
                .comparisons
                .iter()
                .find(|c| c.group == *group && c.metric == metric && c.from == metric::PHASE_BEFORE);
            if let Some(found) = found
                && let Some(ratio) = found.paired.ratio
            {
                parts.push(format!(
                    "{} {} times (faster in {} of {} blocks)",
                    metric::label(metric).to_lowercase(),
                    with_interval(ratio, found.paired.ratio_interval),
                    found.paired.above,
                    found.paired.n,
                ));
            }
        }
        if !parts.is_empty() {
            sentences.push(format!(
                "{}: after recontextualization the migrated client is on the local server, and its throughput against \
                 before is: {}.{}",
                group.name(),
                parts.join(", "),
                if parts.iter().any(|part| part.contains('[')) { " Brackets: 95 % intervals." } else { "" },
            ));
        }
    }
    sentences
}

/// The paper's claims beside ours.
pub(super) fn claims(experiment: Experiment, analysis: &Analysis) -> Vec<Claim> {
    let mut claims = Vec::new();
    match experiment {
        // Not in the paper: `peers` has its goals.
        Experiment::Layers => {}
        Experiment::Migration => {
            for (group, overhead) in &analysis.overheads {
                let readings = [
                    (
                        "as an increase over the plain migration",
                        overhead.recontext_increase,
                        overhead.increase_interval,
                    ),
                    (
                        "as a share of the total (the 2012 abstract's words)",
                        overhead.recontext_share,
                        overhead.share_interval,
                    ),
                ];
                for (reading, value, interval) in readings {
                    claims.push(Claim {
                        group: group.name(),
                        what: format!("Overhead of recontextualization, {reading}"),
                        paper: "about 18 %, ten runs (Fig. 1)".into(),
                        ours: percent(value, interval),
                        verdict: against(PAPER_OVERHEAD, interval).into(),
                    });
                }
            }
            for group in &analysis.groups {
                let sds: Vec<String> = [
                    (metric::WITH_RECONTEXT_TOTAL, Arm::Recontext),
                    (metric::MIGRATION_TOTAL, Arm::Plain),
                    (metric::RECONTEXT_TIME, Arm::Recontext),
                ]
                .iter()
                .filter_map(|(metric, arm)| analysis.row(group, metric, "", arm.name())?.summary.sd)
                .map(three_digits)
                .collect();
                if !sds.is_empty() {
                    claims.push(Claim {
                        group: group.name(),
                        what: "Standard deviation of the three bars of Fig. 1".into(),
                        paper: "0.03 to 0.07 s".into(),
                        ours: format!("{} s", sds.join(", ")),
                        verdict: "seconds depend on the machine; the shares above are what compares".into(),
                    });
                }
            }
        }
        Experiment::Gluster => {
            for found in analysis.comparisons.iter().filter(|c| c.from == metric::PHASE_BEFORE) {
                let shown = metric::BONNIE_THROUGHPUT.contains(&found.metric.as_str())
                    || metric::BONNIE_FILES.contains(&found.metric.as_str());
                let Some(ratio) = found.paired.ratio.filter(|_| shown) else { continue };
                let interval = found.paired.ratio_interval;
                claims.push(Claim {
                    group: found.group.name(),
                    what: format!("{}: gain by the local server", metric::label(&found.metric)),
                    paper: "considerable; its numbers \u{201c}should not be emphasized\u{201d} (Figs. 6, 7)"
                        .into(),
                    ours: format!(
                        "× {}, faster in {} of {} blocks",
                        with_interval(ratio, interval),
                        found.paired.above,
                        found.paired.n
                    ),
                    verdict: match interval {
                        Some(Interval { low, .. }) if low > 1.0 => "gain shown",
                        Some(Interval { high, .. }) if high < 1.0 => "loss shown",
                        Some(_) => "no gain shown",
                        None => "too few blocks to say",
                    }
                    .into(),
                });
            }
        }
    }
    claims
}

fn against(paper: f64, interval: Option<Interval>) -> &'static str {
    match interval {
        None => "too few blocks to say",
        Some(Interval { high, .. }) if high < paper => "less than in the paper",
        Some(Interval { low, .. }) if low > paper => "more than in the paper",
        Some(_) => "not distinguishable from the paper",
    }
}
