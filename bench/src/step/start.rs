//! `start`: a workload goes on in the background, also across a migration.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Starts a workload in the background.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The workload.
    pub start: String,
    /// The machine.
    pub on: String,
}

impl Start {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses { workloads: vec![&self.start], machines: vec![&self.on], ..Uses::default() }
    }
}
