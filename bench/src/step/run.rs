//! `run`: a workload, to its end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Runs a workload on a machine to its end, and takes its values.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The workload.
    pub run: String,
    /// The machine.
    pub on: String,
}

impl Run {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses { workloads: vec![&self.run], machines: vec![&self.on], ..Uses::default() }
    }
}
