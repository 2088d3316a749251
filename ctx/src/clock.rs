//! Time stamps that can be compared across processes of one host.
//!
//! Durations are differences of `CLOCK_MONOTONIC`, which is one clock for all processes of a host
//! and never steps; the wall clock stands beside it only to line hosts up with each other.

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// One instant on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// `CLOCK_MONOTONIC` in nanoseconds since boot.
    pub monotonic_ns: u64,
    /// `CLOCK_REALTIME` in nanoseconds since 1970-01-01 UTC.
    pub realtime_ns: u64,
}

impl Stamp {
    /// The present.
    pub fn now() -> Self {
        Self { monotonic_ns: monotonic_ns(), realtime_ns: read(ClockId::CLOCK_REALTIME) }
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds since boot.
pub fn monotonic_ns() -> u64 {
    read(ClockId::CLOCK_MONOTONIC)
}

fn read(clock: ClockId) -> u64 {
    // Both clocks exist on every Linux, and neither is before its epoch on a host that was set up.
    clock_gettime(clock).map_or(0, |time| {
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_does_not_go_back() {
        let first = Stamp::now();
        assert!(monotonic_ns() >= first.monotonic_ns);
        assert!(first.realtime_ns > 1_600_000_000_000_000_000);
    }
}
