//! Libvirt's events as values.
//!
//! The numbers are those of `libvirt-domain.h`; a number that this program does not know is kept,
//! not dropped, so that a newer libvirt cannot make an event disappear.

use serde::{Deserialize, Serialize};

use super::job::JobStats;
use crate::clock::Stamp;

/// Something that happened on a connection.
#[derive(Debug, Clone)]
pub enum Event {
    /// Something happened to a domain.
    Domain(DomainEvent),
    /// The connection is gone; no event follows. What happened since must be read anew after
    /// reconnecting.
    Closed {
        /// The connection's URI.
        uri: String,
        /// Why.
        reason: CloseReason,
        /// When it was noticed.
        received: Stamp,
    },
}

/// An event of one domain.
#[derive(Debug, Clone)]
pub struct DomainEvent {
    /// Which domain.
    pub domain: DomainId,
    /// When this process received it from libvirt.
    pub received: Stamp,
    /// What happened.
    pub kind: EventKind,
}

/// The two names of a domain that stay the same while it moves.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DomainId {
    /// Its name, unique on one host.
    pub name: String,
    /// Its UUID, in the usual form with hyphens.
    pub uuid: String,
}

/// What happened to a domain.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// It started, stopped, paused, went on.
    Lifecycle(Lifecycle),
    /// The guest got a device.
    DeviceAdded {
        /// The device's alias in the domain's XML.
        alias: String,
    },
    /// The guest has let go of a device.
    DeviceRemoved {
        /// The device's alias in the domain's XML.
        alias: String,
    },
    /// The guest refused to let go of a device.
    DeviceRemovalFailed {
        /// The device's alias in the domain's XML.
        alias: String,
    },
    /// A CD-ROM's tray was opened or closed, by host or guest.
    TrayChange {
        /// The device's alias in the domain's XML.
        alias: String,
        /// What the tray did.
        tray: Tray,
    },
    /// A job (a migration, a save) ended on this host. On the source of a migration it is the
    /// only place where its statistics can be had.
    JobCompleted(Box<JobStats>),
    /// A migration starts to send memory for the n-th time.
    MigrationIteration(i32),
}

/// What a tray did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tray {
    /// It was opened.
    Opened,
    /// It was closed.
    Closed,
}

/// A change in the life of a domain, with libvirt's detail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lifecycle {
    /// A persistent definition was made or changed; the detail is `virDomainEventDefinedDetailType`.
    Defined(i32),
    /// The persistent definition was removed.
    Undefined(i32),
    /// A process for it exists.
    Started(Started),
    /// Its CPUs stopped.
    Suspended(Suspended),
    /// Its CPUs run again.
    Resumed(Resumed),
    /// Its process ended.
    Stopped(Stopped),
    /// The guest has shut down, the process is still there.
    Shutdown(i32),
    /// Suspended by its own power management.
    PmSuspended(i32),
    /// The guest crashed.
    Crashed(i32),
    /// An event that this program does not know.
    Other {
        /// `virDomainEventType`.
        event: i32,
        /// The detail.
        detail: i32,
    },
}

macro_rules! details {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$vmeta])* $variant,)*
            /// A detail that this program does not know.
            Other(i32),
        }
        impl $name {
            fn from_raw(detail: i32) -> Self {
                match detail {
                    $($number => Self::$variant,)*
                    other => Self::Other(other),
                }
            }
        }
    };
}

details! {
    /// Why a process for the domain exists (`virDomainEventStartedDetailType`).
    Started {
        /// Normal start.
        Booted = 0,
        /// Waiting for an incoming migration.
        Migrated = 1,
        /// From a saved state; with Xen also an incoming migration.
        Restored = 2,
        /// From a snapshot.
        FromSnapshot = 3,
        /// From suspend by power management.
        Wakeup = 4,
        /// By itself, after a stop.
        Recreated = 5,
    }
}

details! {
    /// Why its CPUs stopped (`virDomainEventSuspendedDetailType`).
    Suspended {
        /// On request.
        Paused = 0,
        /// For the last part of an outgoing migration.
        Migrated = 1,
        /// A disk failed.
        IoError = 2,
        /// A watchdog fired.
        Watchdog = 3,
        /// Restored paused.
        Restored = 4,
        /// From a snapshot of a paused domain.
        FromSnapshot = 5,
        /// After a failed call.
        ApiError = 6,
        /// The source of a migration in its post-copy phase.
        Postcopy = 7,
        /// Post-copy failed.
        PostcopyFailed = 8,
        /// The guest has shut down.
        GuestShutdown = 9,
    }
}

details! {
    /// Why its CPUs run again (`virDomainEventResumedDetailType`).
    Resumed {
        /// On request.
        Unpaused = 0,
        /// On the destination: a migration has arrived. On the source: an outgoing one was cancelled.
        Migrated = 1,
        /// From a snapshot.
        FromSnapshot = 2,
        /// On the destination, while memory is still fetched.
        Postcopy = 3,
        /// Post-copy failed.
        PostcopyFailed = 4,
    }
}

details! {
    /// Why its process ended (`virDomainEventStoppedDetailType`).
    Stopped {
        /// The guest shut down.
        Shutdown = 0,
        /// Destroyed from the host.
        Destroyed = 1,
        /// The guest crashed.
        Crashed = 2,
        /// It has migrated away.
        Migrated = 3,
        /// It was saved.
        Saved = 4,
        /// The process failed, or an incoming migration did.
        Failed = 5,
        /// A snapshot of a stopped domain was restored.
        FromSnapshot = 6,
        /// Before it is recreated.
        Recreated = 7,
    }
}

impl Lifecycle {
    /// From `virDomainEventType` and its detail.
    pub(super) fn from_raw(event: i32, detail: i32) -> Self {
        match event {
            0 => Self::Defined(detail),
            1 => Self::Undefined(detail),
            2 => Self::Started(Started::from_raw(detail)),
            3 => Self::Suspended(Suspended::from_raw(detail)),
            4 => Self::Resumed(Resumed::from_raw(detail)),
            5 => Self::Stopped(Stopped::from_raw(detail)),
            6 => Self::Shutdown(detail),
            7 => Self::PmSuspended(detail),
            8 => Self::Crashed(detail),
            _ => Self::Other { event, detail },
        }
    }
}

/// Why a connection is gone (`virConnectCloseReason`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// A read or write failed.
    Error,
    /// The daemon closed it, mostly because it ended.
    Eof,
    /// The daemon did not answer keepalive messages.
    KeepAlive,
    /// This program closed it.
    Client,
    /// A reason that this program does not know.
    Other(i32),
}

impl CloseReason {
    pub(super) fn from_raw(reason: i32) -> Self {
        match reason {
            0 => Self::Error,
            1 => Self::Eof,
            2 => Self::KeepAlive,
            3 => Self::Client,
            other => Self::Other(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_header() {
        use virt::sys;
        let raw = |event: u32, detail: u32| {
            Lifecycle::from_raw(i32::try_from(event).unwrap(), i32::try_from(detail).unwrap())
        };
        assert_eq!(
            raw(sys::VIR_DOMAIN_EVENT_RESUMED, sys::VIR_DOMAIN_EVENT_RESUMED_MIGRATED),
            Lifecycle::Resumed(Resumed::Migrated)
        );
        assert_eq!(
            raw(sys::VIR_DOMAIN_EVENT_STARTED, sys::VIR_DOMAIN_EVENT_STARTED_RESTORED),
            Lifecycle::Started(Started::Restored)
        );
        assert_eq!(
            raw(sys::VIR_DOMAIN_EVENT_STOPPED, sys::VIR_DOMAIN_EVENT_STOPPED_MIGRATED),
            Lifecycle::Stopped(Stopped::Migrated)
        );
        assert_eq!(
            raw(sys::VIR_DOMAIN_EVENT_SUSPENDED, sys::VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY),
            Lifecycle::Suspended(Suspended::Postcopy)
        );
        assert_eq!(raw(4, 77), Lifecycle::Resumed(Resumed::Other(77)));
        assert_eq!(raw(99, 1), Lifecycle::Other { event: 99, detail: 1 });
    }
}
