//! `fault`: something breaks, on purpose.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;
use crate::model::{Size, Time};

/// Breaks something; what can be mended is mended after the trial.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What breaks.
    pub fault: Kind,
    /// The machine; for `eject` the guest.
    pub on: String,
    /// kill: the name of the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// cut, degrade: the other machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
    /// degrade: the class of the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// fill: the folder whose disk is filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub folder: Option<String>,
    /// fill: how much is left free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<Size>,
    /// clock: how far it is set forward.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<Time>,
}

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A process is killed.
    Kill,
    /// A guest is powered off.
    PowerOff,
    /// A guest is paused.
    Pause,
    /// A paused guest goes on.
    Resume,
    /// Nothing passes between two machines on the data network.
    Cut,
    /// The link between two machines becomes one of another class.
    Degrade,
    /// The disc with the infrastructure's data is taken out by force.
    Eject,
    /// A disk is filled.
    Fill,
    /// A clock is set.
    Clock,
}

impl Fault {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses {
            machines: std::iter::once(self.on.as_str()).chain(self.with.as_deref()).collect(),
            links: self.link.iter().map(String::as_str).collect(),
            ..Uses::default()
        }
    }
}
