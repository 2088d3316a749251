//! `assert`: what has to be so, or the trial has failed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Demands that a command succeeds, or that an invariant holds.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assert {
    /// What has to be so.
    pub assert: That,
    /// succeeds, says: the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<super::Names>,
    /// succeeds, says: the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// says: what it prints, without the end of the line; same: the machines whose outputs are equal are those of `on`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// at: the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// service: its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// at: the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<String>,
}

/// What has to be so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum That {
    /// The command succeeds.
    Succeeds,
    /// The command prints `output`.
    Says,
    /// The command prints the same on all machines of `on`.
    Same,
    /// The guest runs at a host, and is nowhere else.
    At,
    /// A service that the bench knows is as it should be: its own check.
    Service,
}

impl Assert {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses {
            machines: self.on.iter().flat_map(super::Names::iter).collect(),
            hosts: self.host.iter().map(String::as_str).collect(),
            guests: self.guest.iter().map(String::as_str).collect(),
            ..Uses::default()
        }
    }
}
