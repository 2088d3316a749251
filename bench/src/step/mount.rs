//! `mount`: a union file system is mounted on this machine; local testbeds alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Mounts a set of layers with a command of the author's own, and waits until a known path is there.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// The command, as `sh -c` takes it; a program that stays in the foreground, or one that ends when it has mounted. `$LAYERS` are the folders, highest first, separated by colons, `$LAYERS_RO` the same each with `=RO`, `$POINT` the mount point, `$NATIVE` a plain copy. Empty: the plain copy itself is shown.
    pub mount: String,
    /// The layers: "small" or "many".
    pub layers: Layers,
    /// The command that unmounts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unmount: Option<String>,
}

/// A set of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layers {
    /// Three layers with some thousand names.
    Small,
    /// Many layers with a hundred thousand names.
    Many,
}

impl Mount {
    #[expect(clippy::unused_self, reason = "all verbs say what they use")]
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses::default()
    }
}
