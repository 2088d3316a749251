//! `context`: a guest has its context devices, or has none.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Gives a guest its context devices, or takes them away.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Devices {
    /// The guest, or several.
    pub context: super::Names,
    /// "give" or "take".
    pub devices: Change,
    /// What makes a recontextualizer act by itself: "migrated", or "request" for nothing.
    #[serde(default)]
    pub on: On,
}

/// What becomes of the devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// They are there.
    Give,
    /// They are not.
    Take,
}

/// What makes a recontextualizer act by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum On {
    /// The guest's arrival by a migration.
    #[default]
    Migrated,
    /// Nothing: runs are asked for.
    Request,
}

impl Devices {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses { guests: self.context.iter().collect(), ..Uses::default() }
    }
}
