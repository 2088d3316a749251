//! `stop`: a workload in the background ends.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Ends a workload that runs in the background, and takes its values.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// The workload.
    pub stop: String,
    /// The machine, where it runs on several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
}

impl Stop {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses {
            workloads: vec![&self.stop],
            machines: self.on.iter().map(String::as_str).collect(),
            ..Uses::default()
        }
    }
}
