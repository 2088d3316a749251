//! From what was seen to values: pure functions of a trial's trace, and nothing else.
//!
//! The same functions serve a run while it is made and one that was stored, so [`again`] can tell whether the values of a
//! stored run follow from what it has seen.

pub mod definition;
pub mod evaluate;
pub mod measure;
pub mod migration;

use measure::{Conditions, Measures};

use crate::model::Sample;
use crate::observe::trace::Trace;
use crate::plan::Trial;
use crate::scenario::{Arm, Experiment, Scenario};
use crate::store::{StoreError, StoredRun};
use crate::testbed::site::Site;

/// The values of a trial that follow from its trace. A workload's own are not among them.
pub fn values(trace: &Trace, scenario: &Scenario, trial: &Trial) -> Measures {
    let mut values = migration::migration(trace);
    let acknowledge = scenario.recontext.acknowledge;
    match scenario.experiment {
        Experiment::Migration if trial.arm == Arm::Recontext => {
            let asked = migration::Asked { content: Site::Local.name(), acknowledge };
            values.extend(migration::recontextualized(trace, asked));
        }
        Experiment::Gluster => values.extend(migration::requested(trace, acknowledge)),
        Experiment::Migration | Experiment::Layers => {}
    }
    values
}

/// A stored value that this bench derives otherwise.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// As it is derived now.
    pub derived: Sample,
    /// As it is stored; none when it is not.
    pub stored: Option<Sample>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let told = |sample: &Sample| match sample.value {
            _ if !sample.valid => format!("invalid ({})", sample.reason),
            Some(value) => format!("{value} {}", sample.unit),
            None => "too fast to measure".to_owned(),
        };
        let Sample { block, arm, metric, phase, .. } = &self.derived;
        let stored = self.stored.as_ref().map_or_else(|| "missing".to_owned(), told);
        let phase = if phase.is_empty() { String::new() } else { format!(" ({phase})") };
        write!(f, "block {block}, {arm}: {metric}{phase} is {stored}, and derived {}", told(&self.derived))
    }
}

/// The values of a stored run that this bench derives otherwise from what the run has seen: none, unless a definition or
/// the run was changed. A run that kept no observations has none.
///
/// # Errors
/// An event or a stream is damaged.
pub fn again(run: &StoredRun) -> Result<Vec<Difference>, StoreError> {
    let traces = Trace::all(run)?;
    let mut differences = Vec::new();
    for trial in &run.manifest.plan.trials {
        let Some(trace) = traces.get(&trial.order) else { continue };
        let stored: Vec<&Sample> = run.samples.iter().filter(|sample| sample.order == trial.order).collect();
        // What a value was measured with is no part of it.
        let conditions = Conditions { accelerator: "", hypervisor: "", dilation: 1.0 };
        for derived in values(trace, &run.scenario, trial).samples(trial, &conditions) {
            let of_kind =
                |sample: &&&Sample| sample.metric == derived.metric && sample.phase == derived.phase;
            let same = |sample: &&&Sample| {
                equal(sample.value, derived.value)
                    && (sample.valid, &sample.reason) == (derived.valid, &derived.reason)
            };
            if !stored.iter().filter(of_kind).any(|sample| same(&sample)) {
                // The last attempt's is the last.
                let stored = stored.iter().rfind(of_kind).map(|sample| (*sample).clone());
                differences.push(Difference { derived, stored });
            }
        }
    }
    Ok(differences)
}

/// Whether two values are one. A number that was written as text and read again may differ in its last digit.
fn equal(stored: Option<f64>, derived: Option<f64>) -> bool {
    match (stored, derived) {
        (Some(stored), Some(derived)) => (stored - derived).abs() <= 4.0 * f64::EPSILON * derived.abs(),
        (stored, derived) => stored.is_none() && derived.is_none(),
    }
}

#[cfg(test)]
mod tests;
