//! `wait`: something has happened.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;
use crate::model::Time;

/// Waits for a condition, up to the deadline of the step.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// For what.
    pub wait: For,
    /// content, life, steady, record: the guests; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<super::Names>,
    /// content, record: the host whose data are shown, or that has recorded a run; by default where the guest is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<String>,
    /// content, record, life: since the begin of this step; by default the last `migrate` or `recontextualize` of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// command, line: the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// command: asked again until it succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// line: the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// line: a regular expression that a line of it matches, written since the step began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<String>,
    /// time: how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum For {
    /// A program in the guest reads the data of a host.
    Content,
    /// A recontextualizer has recorded a run for the guest.
    Record,
    /// The guest shows that it lives, by a program and by its kernel.
    Life,
    /// The guest's heartbeat has had no gap for two seconds. A runner that is busy may not give that: then a minute later the trial goes on, marked `unsteady`.
    Steady,
    /// A command succeeds.
    Command,
    /// A file has a line.
    Line,
    /// Some time has passed.
    Time,
}

impl Wait {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses {
            guests: self.guest.iter().flat_map(super::Names::iter).collect(),
            hosts: self.of.iter().map(String::as_str).collect(),
            machines: self.on.iter().map(String::as_str).collect(),
            ..Uses::default()
        }
    }
}
