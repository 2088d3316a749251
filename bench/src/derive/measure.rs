//! Values of one trial on their way to samples.

use std::time::Duration;

use crate::model::Sample;
use crate::plan::Trial;

/// Values of one trial, each with the metric that it belongs to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measures {
    rows: Vec<Row>,
}

#[derive(Debug, Clone, PartialEq)]
struct Row {
    metric: &'static str,
    phase: String,
    value: Option<f64>,
    unit: String,
    reason: String,
    dilation: Option<f64>,
}

/// What all samples of a run share.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    /// The accelerator, as QMP reported it.
    pub accelerator: &'static str,
    /// The hypervisor.
    pub hypervisor: &'static str,
    /// Dilation of the links; a row may have its own.
    pub dilation: f64,
}

impl Measures {
    /// Adds a value in a unit.
    pub fn add(&mut self, metric: &'static str, phase: &str, value: f64, unit: &str) {
        self.push(metric, phase, Some(value), unit, "");
    }

    /// Adds a duration in seconds.
    pub fn seconds(&mut self, metric: &'static str, phase: &str, value: Duration) {
        self.add(metric, phase, value.as_secs_f64(), "s");
    }

    /// Adds a value that libvirt or a tool may not have said; a missing one is an invalid sample.
    pub fn maybe(
        &mut self,
        metric: &'static str,
        phase: &str,
        value: Option<f64>,
        unit: &str,
        missing: &str,
    ) {
        let reason = if value.is_some() { "" } else { missing };
        self.push(metric, phase, value, unit, reason);
    }

    /// Adds a value that is larger than could be measured: a valid sample without a number.
    pub fn censored(&mut self, metric: &'static str, phase: &str, unit: &str) {
        self.push(metric, phase, None, unit, "");
    }

    /// Adds a value that could not be had.
    pub fn invalid(&mut self, metric: &'static str, phase: &str, unit: &str, reason: &str) {
        self.push(metric, phase, None, unit, reason);
    }

    fn push(&mut self, metric: &'static str, phase: &str, value: Option<f64>, unit: &str, reason: &str) {
        self.rows.push(Row {
            metric,
            phase: phase.to_owned(),
            value,
            unit: unit.to_owned(),
            reason: reason.to_owned(),
            dilation: None,
        });
    }

    /// The rows from `from` on were measured with another dilation of the links.
    pub fn dilated(&mut self, from: usize, dilation: f64) {
        for row in self.rows.iter_mut().skip(from) {
            row.dilation = Some(dilation);
        }
    }

    /// The rows from `from` on whose metric is one of `metrics` must not be used. No metrics: all.
    pub fn invalidate(&mut self, from: usize, metrics: &[&str], reason: &str) {
        // What is invalid already has its own reason.
        let hit =
            |row: &&mut Row| row.reason.is_empty() && (metrics.is_empty() || metrics.contains(&row.metric));
        for row in self.rows.iter_mut().skip(from).filter(hit) {
            reason.clone_into(&mut row.reason);
        }
    }

    /// Adds the rows of others after these.
    pub fn extend(&mut self, others: Measures) {
        self.rows.extend(others.rows);
    }

    /// Whether one of the rows is of a metric.
    pub fn has(&self, metric: &str) -> bool {
        self.rows.iter().any(|row| row.metric == metric)
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The samples of a trial.
    pub fn samples(self, trial: &Trial, conditions: &Conditions) -> Vec<Sample> {
        self.rows
            .into_iter()
            .map(|row| Sample {
                block: trial.block,
                arm: trial.arm.name().to_owned(),
                order: trial.order,
                metric: row.metric.to_owned(),
                phase: row.phase,
                value: row.value,
                unit: row.unit,
                valid: row.reason.is_empty(),
                reason: row.reason,
                accelerator: conditions.accelerator.to_owned(),
                hypervisor: conditions.hypervisor.to_owned(),
                dilation: row.dilation.unwrap_or(conditions.dilation),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric;
    use crate::scenario::Arm;

    #[test]
    fn a_missing_value_is_an_invalid_sample_with_its_reason() {
        let mut measures = Measures::default();
        measures.seconds(metric::MIGRATION_TOTAL, "", Duration::from_millis(1500));
        measures.maybe(metric::DOWNTIME, "", None, "ms", "libvirt has no statistics");
        measures.dilated(1, 5.0);
        let trial = Trial { block: 2, arm: Arm::Plain, order: 3, file_operations: false };
        let conditions = Conditions { accelerator: "tcg", hypervisor: "kvm", dilation: 1.0 };
        let samples = measures.samples(&trial, &conditions);
        assert_eq!(samples[0].value, Some(1.5));
        assert!(samples[0].valid && (samples[0].dilation - 1.0).abs() < f64::EPSILON);
        assert!(!samples[1].valid && samples[1].reason == "libvirt has no statistics");
        assert_eq!((samples[1].block, samples[1].order), (2, 3));
        assert!((samples[1].dilation - 5.0).abs() < f64::EPSILON);
    }
}
