//! Which events ask for a recontextualization.

use serde::{Deserialize, Serialize};

use super::device::Machine;
use crate::libvirt::{Lifecycle, Resumed, Running, Started, State};

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

/// Why a run leaves a domain in this state alone, if it does.
///
/// On Xen a migration that arrives triggers twice, by `Started Restored` and by `Resumed Migrated`. The
/// first is only the beginning, the migration may still fail: so the first leaves it to the second.
pub fn not_now(trigger: &Trigger, machine: Machine, state: State) -> Option<&'static str> {
    match state {
        State::Running(Running::MigrationCancelled) if *trigger == Trigger::Migrated => {
            Some("an outgoing migration was cancelled: the domain never left")
        }
        State::Running(Running::Migrated) if *trigger == Trigger::Restored && machine.is_xen() => {
            Some("the domain was not restored but has migrated here, which is a run of its own")
        }
        // Its devices cannot be changed now; `Resumed Migrated` follows when it has arrived.
        State::Migrating | State::Running(Running::Postcopy) => Some("the domain is being migrated"),
        State::Shutdown | State::ShutOff | State::Crashed => Some("the domain does not run any more"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::libvirt::{Stopped, Suspended};

    #[test]
    fn one_arrival_is_one_run_whatever_the_driver_says_of_it() {
        let arrived = State::Running(Running::Migrated);
        assert!(not_now(&Trigger::Restored, Machine::XenPvh, arrived).is_some());
        assert!(not_now(&Trigger::Migrated, Machine::XenPvh, arrived).is_none());
        assert!(not_now(&Trigger::Restored, Machine::XenHvm, State::Running(Running::Other(1))).is_none());
        assert!(not_now(&Trigger::Restored, Machine::Qemu, arrived).is_none());
    }

    #[test]
    fn a_domain_that_never_left_or_is_gone_is_left_alone() {
        let cancelled = State::Running(Running::MigrationCancelled);
        assert!(not_now(&Trigger::Migrated, Machine::Qemu, cancelled).is_some());
        assert!(not_now(&Trigger::Manual { reason: None }, Machine::Qemu, cancelled).is_none());
        for state in [State::Migrating, State::Running(Running::Postcopy), State::ShutOff, State::Crashed] {
            assert!(not_now(&Trigger::Reconcile, Machine::XenPvh, state).is_some(), "{state:?}");
        }
    }

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
