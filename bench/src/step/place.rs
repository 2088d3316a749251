//! `place`: a guest runs at a host when the step ends, whatever was before.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Brings a guest to a host, by a migration, a start, or by ending it first where it is unclear; with other memory than this arm asks for, it is started anew.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// The guest, or several.
    pub place: super::Names,
    /// The host; by default where the guest is declared to start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Whether it is started anew in any case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anew: bool,
}

impl Place {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses {
            guests: self.place.iter().collect(),
            hosts: self.at.iter().map(String::as_str).collect(),
            ..Uses::default()
        }
    }
}
