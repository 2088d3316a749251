//! The network: links as asked beside links as measured, and the bytes that each server carried.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{figures::chart::three_digits, metric, stats::Analysis, store::StoredRun};

/// A link as asked and as measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Link {
    run: String,
    name: String,
    /// In the scenario's words.
    asked: String,
    /// For this machine, when it is dilated.
    dilated: String,
    rtt: String,
    rate: String,
}

pub(super) fn links(runs: &[StoredRun]) -> Vec<Link> {
    let mut links = Vec::new();
    for run in runs {
        let mut names: Vec<&str> = Vec::new();
        let of_link =
            |s: &&crate::model::Sample| [metric::LINK_RTT, metric::LINK_RATE].contains(&s.metric.as_str());
        for sample in run.samples.iter().filter(of_link) {
            if !names.contains(&sample.phase.as_str()) {
                names.push(&sample.phase);
            }
        }
        for name in names {
            let measured = |metric: &str| {
                let all: Vec<String> = run
                    .samples
                    .iter()
                    .filter(|s| s.metric == metric && s.phase == name)
                    .map(|s| match s.value {
                        Some(value) if s.valid => format!("{} {}", three_digits(value), s.unit),
                        Some(value) => format!("{} {} (invalid: {})", three_digits(value), s.unit, s.reason),
                        None => format!("not measured: {}", s.reason),
                    })
                    .collect();
                all.join(", ")
            };
            let network = run.scenario.network.as_ref();
            let asked = network.and_then(|network| match name {
                "remote" => Some(&network.remote),
                "local" => Some(&network.local),
                _ => None,
            });
            let words =
                |link: &crate::scenario::Link| format!("{}, {} ± {}", link.rate, link.delay, link.jitter);
            let dilation =
                run.samples.iter().find(|s| of_link(s) && s.phase == name).map_or(1.0, |s| s.dilation);
            links.push(Link {
                run: run.manifest.run.clone(),
                name: name.to_owned(),
                asked: asked.map_or_else(|| "not shaped".into(), words),
                dilated: match asked {
                    Some(link) if dilation > 1.0 => {
                        format!("{} (÷ × {dilation})", words(&link.dilated(dilation)))
                    }
                    _ => String::new(),
                },
                rtt: measured(metric::LINK_RTT),
                rate: measured(metric::LINK_RATE),
            });
        }
    }
    links
}

/// Bytes through the servers in one phase: means of the valid trials.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Carried {
    group: String,
    phase: String,
    /// Server, MiB, share of the phase's bytes in percent.
    servers: Vec<(String, String, String)>,
}

pub(super) fn carried(analysis: &Analysis) -> Vec<Carried> {
    let mut table: Vec<Carried> = Vec::new();
    for group in &analysis.groups {
        // By phase in the rows' order; the same phase may have rows of several dilations.
        let mut phases: Vec<(&str, BTreeMap<&str, f64>)> = Vec::new();
        for row in analysis.rows.iter().filter(|r| r.group == *group && r.metric == metric::SERVER_BYTES) {
            let (phase, server) = row.phase.split_once(':').unwrap_or((&row.phase, ""));
            let bytes: f64 = row.summary.values.iter().sum();
            let index = phases.iter().position(|(known, _)| *known == phase).unwrap_or_else(|| {
                phases.push((phase, BTreeMap::new()));
                phases.len() - 1
            });
            *phases[index].1.entry(server).or_default() += bytes;
        }
        for (phase, servers) in phases {
            let all: f64 = servers.values().sum();
            table.push(Carried {
                group: group.name(),
                phase: phase.to_owned(),
                servers: servers
                    .into_iter()
                    .map(|(server, bytes)| {
                        let share = if all > 0.0 { bytes / all * 100.0 } else { 0.0 };
                        (server.to_owned(), three_digits(bytes / f64::from(1 << 20)), format!("{share:.1}"))
                    })
                    .collect(),
            });
        }
    }
    table
}
