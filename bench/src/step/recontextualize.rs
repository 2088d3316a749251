//! `recontextualize`: a recontextualizer is asked for a run, and has done it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Asks the recontextualizer of the host where a guest is for a run, and waits for its record.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Recontextualize {
    /// The guest, or several.
    pub recontextualize: super::Names,
}

impl Recontextualize {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses { guests: self.recontextualize.iter().collect(), ..Uses::default() }
    }
}
