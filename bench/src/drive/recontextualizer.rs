//! The recontextualizers of both hosts, as the bench controls and observes them.

use std::time::{Duration, Instant};

use super::arrivals::{Arrival, Arrivals};
use super::guest::{GuestControl, GuestError};
use crate::exec::{Exec, ExecError};
use crate::testbed::site::Site;
use crate::testbed::ssh::{Ssh, SshError};
use crate::testbed::up::Testbed;

/// Where a host's recontextualizer writes one JSON line a run.
const EVENT_LOG: &str = "/var/lib/ctx/events.jsonl";

/// How long a daemon may take to start or stop, emulated.
const DAEMON: Duration = Duration::from_secs(60);

/// Why the recontextualizer did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RecontextError {
    /// A command on the host.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The connection.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// Libvirt.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// No record.
    #[error("host {host}: no recontextualization was recorded within {seconds} s")]
    Late {
        /// The host.
        host: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// A run of it failed.
    #[error("host {host}: recontextualization failed: {reason}")]
    Failed {
        /// The host.
        host: &'static str,
        /// Its own sentence.
        reason: String,
    },
}
