//! Which events ask for a recontextualization.

use serde::{Deserialize, Serialize};

use crate::libvirt::{Lifecycle, Resumed, Started};

/// Why a run was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Trigger {
    /// The domain has migrated to this host and runs here.
    Migrated,
    /// The domain was started here.
    Booted,
    /// The domain was restored here from a saved state.
    Restored,
    /// The daemon started, or found its connection again, and the device was not as it should be.
    Reconcile,
    /// Somebody asked for it.
    Manual {
        /// Why, in their words.
        reason: Option<String>,
    },
}

impl Trigger {
    /// Whether a domain heeds the other trigger wherever it heeds this one, and perhaps elsewhere:
    /// of two requests that become one, the stronger one stands.
    pub fn is_weaker_than(&self, other: &Self) -> bool {
        self.strength() < other.strength()
    }

    fn strength(&self) -> u8 {
        match self {
            Self::Booted | Self::Restored => 0,
            Self::Migrated => 1,
            Self::Reconcile => 2,
            Self::Manual { .. } => 3,
        }
    }
}

/// The trigger that a lifecycle event is, if any.
///
/// | driver | events on the destination of a migration | acted on |
/// |---|---|---|
/// | QEMU | `Started Migrated` (waiting), `Resumed Migrated` | the second: only then the guest runs here |
/// | Xen (libxl) | `Started Restored`, `Resumed Migrated` | the second; the first only if the domain asks |
///
/// After post-copy, `Resumed PostCopy` comes before `Resumed Migrated`; devices cannot be changed
/// between them. A cancelled migration gives `Resumed Migrated` on its *source* too: the run finds
/// that out from the domain's state and skips ([`crate::libvirt::State::Running`]).
pub fn trigger(event: Lifecycle) -> Option<Trigger> {
    match event {
        Lifecycle::Resumed(Resumed::Migrated) => Some(Trigger::Migrated),
        Lifecycle::Started(Started::Booted) => Some(Trigger::Booted),
        Lifecycle::Started(Started::Restored) => Some(Trigger::Restored),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::{Stopped, Suspended};

    #[test]
    fn only_a_guest_that_runs_here_is_recontextualized() {
        assert_eq!(trigger(Lifecycle::Resumed(Resumed::Migrated)), Some(Trigger::Migrated));
        assert_eq!(trigger(Lifecycle::Started(Started::Restored)), Some(Trigger::Restored));
        assert_eq!(trigger(Lifecycle::Started(Started::Booted)), Some(Trigger::Booted));
        for event in [
            Lifecycle::Started(Started::Migrated),
            Lifecycle::Resumed(Resumed::Postcopy),
            Lifecycle::Resumed(Resumed::Unpaused),
            Lifecycle::Suspended(Suspended::Migrated),
            Lifecycle::Stopped(Stopped::Migrated),
            Lifecycle::Stopped(Stopped::Failed),
        ] {
            assert_eq!(trigger(event), None, "{event:?}");
        }
    }
}
