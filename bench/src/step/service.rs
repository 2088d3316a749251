//! `service`: a server runs on some machines, ready to be used.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Starts a service on servers: one that the bench knows, or commands.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// A service that the bench knows ("gluster"), or a name of the author's own, with `start` and `ready`.
    pub service: String,
    /// The machines.
    pub on: super::Names,
    /// The command that starts it on each machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// A command that succeeds when it is ready; asked again until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<String>,
    /// The command that ends it, for the end of a trial; what is not ended is started once a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<String>,
}

impl Service {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses { machines: self.on.iter().collect(), ..Uses::default() }
    }
}
