//! `mark`: an instant gets a name.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Names this instant: the event `marked` of the step of that name.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    /// The name, which becomes the step's.
    pub mark: String,
}

impl Mark {
    #[expect(clippy::unused_self, reason = "all verbs say what they use")]
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses::default()
    }
}
