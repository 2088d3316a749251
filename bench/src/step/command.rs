//! `command`: a command on a machine, to its end.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;
use crate::model::ValueOf;

/// Runs a command; values may be read from its output.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The command, as `sh -c` takes it.
    pub command: String,
    /// A guest, host or server; "runner" for this machine, within the namespace of the testbed.
    pub on: super::Names,
    /// Values in its output, as those of a workload with the step's name.
    #[serde(default, rename = "value", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<ValueOf>,
}

impl Command {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses { machines: self.on.iter().filter(|name| *name != super::RUNNER).collect(), ..Uses::default() }
    }
}
