//! `probe`: what is mounted is measured; local testbeds alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Measures what the last `mount` shows, by a process of its own.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What is measured.
    pub probe: What,
    /// How the highest layer is swapped: "rename" (plain files), "ffs", "mergerfs"; without, it is not, and such probes are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swap: Option<String>,
    /// How often: passes, swaps, changes a second, lookups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Lookups of names for the first time.
    Cold,
    /// The same again, with reads and listings.
    Warm,
    /// From a swap until new content is seen.
    Visible,
    /// From a swap until watchers are told.
    Events,
    /// Swaps with entries cached.
    Cached,
    /// Reads while layers change.
    Storm,
    /// Lookups in the large union.
    Walk,
    /// Memory of the program.
    Memory,
}

impl Probe {
    #[expect(clippy::unused_self, reason = "all verbs say what they use")]
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses::default()
    }
}
