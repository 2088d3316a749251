//! The paper's figures 1, 2, 6 and 7.

use super::{
    Context,
    bars::{BLUE, GREEN, ORANGE, PURPLE, SAND, SKY, Used},
    chart::{Bar, BarGroup, Chart, Colour, Series},
};
use crate::{metric, scenario::Arm, stats::Analysis};

/// Fig. 1: migration with recontextualization, without, and the time in the recontextualizer; one
/// group of bars a hypervisor.
pub(super) fn fig1(analysis: &Analysis, context: &Context) -> Chart {
    let mut used = Used::default();
    let (plain, recontext) = (Some(Arm::Plain.name()), Some(Arm::Recontext.name()));
    let until_attached = analysis.rows.iter().any(|row| row.metric == metric::WITH_RECONTEXT_TOTAL);
    let with = if until_attached { metric::WITH_RECONTEXT_TOTAL } else { metric::MIGRATION_TOTAL };
    let groups = analysis
        .groups
        .iter()
        .map(|group| BarGroup {
            label: group.name(),
            bars: vec![
                used.bar(analysis, group, with, "", recontext),
                used.bar(analysis, group, metric::MIGRATION_TOTAL, "", plain),
                used.bar(analysis, group, metric::RECONTEXT_TIME, "", recontext),
            ],
        })
        .collect();
    let mut caption = used.caption(context);
    if until_attached {
        caption.insert(
            0,
            "With recontextualization: from the start of the migration until the new device is attached."
                .into(),
        );
    }
    Chart {
        title: "Live migration with and without recontextualization".into(),
        y_label: "Time (s)".into(),
        series: vec![
            Series { label: "Migration with recontextualization".into(), colour: BLUE },
            Series { label: "Migration without".into(), colour: SKY },
            Series { label: "Time in the recontextualizer".into(), colour: ORANGE },
        ],
        groups,
        caption,
    }
}

/// Fig. 2: the four phases; one series a hypervisor.
pub(super) fn fig2(analysis: &Analysis, context: &Context) -> Chart {
    let mut used = Used::default();
    let labels = ["Resolve the domain", "Detach the old device", "Build the image", "Attach the new device"];
    let groups = metric::RECONTEXT_PHASES
        .into_iter()
        .zip(labels)
        .map(|(phase, label)| BarGroup {
            label: label.into(),
            bars: analysis
                .groups
                .iter()
                .map(|group| {
                    used.bar(analysis, group, metric::RECONTEXT_PHASE, phase, Some(Arm::Recontext.name()))
                })
                .collect(),
        })
        .collect();
    let caption = used.caption(context);
    let colours = [BLUE, ORANGE, GREEN, PURPLE];
    Chart {
        title: "Phases of a recontextualization".into(),
        y_label: "Time (s)".into(),
        series: analysis
            .groups
            .iter()
            .zip(colours.into_iter().cycle())
            .map(|(group, colour)| Series { label: group.name(), colour })
            .collect(),
        groups,
        caption,
    }
}

/// Fig. 6: throughput of Bonnie++.
pub(super) fn fig6(analysis: &Analysis, context: &Context) -> Chart {
    let skipped = "Per-char tests were not run (bonnie++ -f).";
    remote_and_local(
        analysis,
        context,
        "Bonnie++ throughput after a migration, remote and local server",
        "Throughput (KiB/s)",
        &metric::BONNIE_THROUGHPUT,
        skipped,
    )
}

/// Fig. 7: file operations of Bonnie++.
pub(super) fn fig7(analysis: &Analysis, context: &Context) -> Chart {
    remote_and_local(
        analysis,
        context,
        "Bonnie++ file operations after a migration, remote and local server",
        "File operations (files/s)",
        &metric::BONNIE_FILES,
        "",
    )
}

/// Bars of the remote server (before recontextualization) beside those of the local one (after);
/// tests that nobody ran have no place on the axis, and the caption says so.
fn remote_and_local(
    analysis: &Analysis,
    context: &Context,
    title: &str,
    y_label: &str,
    metrics: &[&str],
    skipped: &str,
) -> Chart {
    let mut used = Used::default();
    // One hue a group, light before and dark after.
    let hues: [(Colour, Colour); 2] = [(SKY, BLUE), (SAND, ORANGE)];
    let phases = [
        (metric::PHASE_BEFORE, "Remote server, before recontextualization"),
        (metric::PHASE_AFTER, "Local server, after"),
    ];
    let mut series = Vec::new();
    for (group, (remote, local)) in analysis.groups.iter().zip(hues.into_iter().cycle()) {
        for ((_, label), colour) in phases.iter().zip([remote, local]) {
            let label = if analysis.groups.len() > 1 {
                format!("{}: {label}", group.name())
            } else {
                (*label).into()
            };
            series.push(Series { label, colour });
        }
    }
    let mut groups = Vec::new();
    let mut missing = false;
    for name in metrics {
        let bars: Vec<Bar> = analysis
            .groups
            .iter()
            .flat_map(|group| phases.map(|(phase, _)| (group, phase)))
            .map(|(group, phase)| used.bar(analysis, group, name, phase, None))
            .collect();
        if bars.iter().all(|bar| *bar == Bar::None) && !skipped.is_empty() {
            missing = true;
        } else {
            groups.push(BarGroup { label: metric::label(name).into(), bars });
        }
    }
    let mut caption = used.caption(context);
    if missing {
        caption.insert(1, skipped.into());
    }
    Chart { title: title.into(), y_label: y_label.into(), series, groups, caption }
}
