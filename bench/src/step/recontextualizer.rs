//! `recontextualizer`: the daemon of a host runs, or does not.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Starts or stops the recontextualizer of a host.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Daemon {
    /// The host, or several.
    pub recontextualizer: super::Names,
    /// "start" or "stop".
    pub to: State,
}

/// What it is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Run.
    Start,
    /// Not run.
    Stop,
}

impl Daemon {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses { hosts: self.recontextualizer.iter().collect(), ..Uses::default() }
    }
}
