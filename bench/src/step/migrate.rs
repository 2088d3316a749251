//! `migrate`: a guest moves to another host while it runs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;
use crate::model::Time;

/// Migrates a guest live, or several at the same time.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Migrate {
    /// The guest, or several.
    pub migrate: super::Names,
    /// The host where it goes; for several guests one each, or one for all.
    pub to: super::Names,
    /// Limit on the time for which the guest is stopped, in whole milliseconds; 300 ms by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_downtime: Option<Time>,
    /// Whether the hypervisor may slow the guest down so that the migration ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto_converge: bool,
}

impl Migrate {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses { guests: self.migrate.iter().collect(), hosts: self.to.iter().collect(), ..Uses::default() }
    }
}
