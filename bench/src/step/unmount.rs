//! `unmount`: the file system of the last `mount` is gone; local testbeds alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Unmounts what the last `mount` has mounted.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Unmount {
    /// Always true.
    pub unmount: bool,
}

impl Unmount {
    #[expect(clippy::unused_self, reason = "all verbs say what they use")]
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses::default()
    }
}
