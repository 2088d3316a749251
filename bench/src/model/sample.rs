//! One measured value, the tidy row that everything downstream is computed from.

use serde::{Deserialize, Serialize};

/// One value of one metric in one trial: a row of `samples.csv`.
///
/// A sample is never dropped. One that must not be used stays, with `valid == false` and the
/// reason, and is counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// Block of the paired design, from 1; 0 is warm-up.
    pub block: u32,
    /// Arm of the design, e.g. `plain` or `recontext`.
    pub arm: String,
    /// Position of the trial in the whole run as it was realised, from 0.
    pub order: u32,
    /// What was measured, e.g. `migration_total`, `downtime`, `block_write`.
    pub metric: String,
    /// Part of the trial that it belongs to, e.g. `resolve`, `before`; empty when the whole trial.
    pub phase: String,
    /// The value in `unit`; none when it could not be measured or was censored ("too fast").
    pub value: Option<f64>,
    /// Unit of the value: `s`, `ms`, `B`, `KiB/s`, `GB/s`, `files/s`, `µs`, `1`.
    pub unit: String,
    /// Whether statistics may use it.
    pub valid: bool,
    /// Why not, when not valid; empty otherwise.
    pub reason: String,
    /// The accelerator of the hosts as QMP reported it: `kvm` or `tcg`; `none` without hosts.
    pub accelerator: String,
    /// The hypervisor of the hosts: `kvm` or `xen`; `none` without hosts.
    pub hypervisor: String,
    /// Dilation of the shaped links while it was measured; 1 is real time.
    pub dilation: f64,
}
