//! Moments on the bench's clock, `CLOCK_MONOTONIC`, as the standard library has them, as a run's folder stores them, and
//! as the kernel dates what arrives.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use nix::time::{ClockId, clock_gettime};

/// Older than this, what the kernel dated was dated before a step of the wall clock.
const STEP: Duration = Duration::from_secs(10);

/// One moment in both forms: an `Instant` is the same clock without its number, so the difference holds for good.
fn pair() -> (Instant, Duration) {
    static PAIR: OnceLock<(Instant, Duration)> = OnceLock::new();
    *PAIR.get_or_init(|| {
        // Linux always has this clock.
        let since_boot = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        (Instant::now(), since_boot)
    })
}

/// A moment in nanoseconds of `CLOCK_MONOTONIC`: comparable within one boot of the machine.
pub fn nanoseconds(at: Instant) -> u64 {
    let (known, since_boot) = pair();
    let nanoseconds = match at.checked_duration_since(known) {
        Some(later) => since_boot + later,
        None => since_boot.saturating_sub(known.duration_since(at)),
    };
    u64::try_from(nanoseconds.as_nanos()).unwrap_or(u64::MAX)
}

/// The moment that [`nanoseconds`] would give this number.
pub fn of_nanoseconds(number: u64) -> Instant {
    let (known, since_boot) = pair();
    let wanted = Duration::from_nanos(number);
    match wanted.checked_sub(since_boot) {
        Some(later) => known.checked_add(later).unwrap_or(known),
        None => known.checked_sub(since_boot.saturating_sub(wanted)).unwrap_or(known),
    }
}

/// The moment of a wall clock's time that has just been: the kernel dates packets so. Where the wall clock was stepped in
/// between, it is now.
pub fn of_wall_clock(stamp: SystemTime) -> Instant {
    let (wall, now) = (SystemTime::now(), Instant::now());
    let age = wall.duration_since(stamp).unwrap_or_default();
    if age > STEP { now } else { now.checked_sub(age).unwrap_or(now) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_keeps_its_distances_as_a_number() {
        let now = Instant::now();
        let before = now.checked_sub(Duration::from_millis(3)).unwrap();
        let after = now + Duration::from_millis(5);
        assert_eq!(nanoseconds(after) - nanoseconds(now), 5_000_000);
        assert_eq!(nanoseconds(now) - nanoseconds(before), 3_000_000);
        let clock = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap());
        assert!(u128::from(nanoseconds(now)) <= clock.as_nanos());
        for moment in [before, now, after] {
            assert_eq!(of_nanoseconds(nanoseconds(moment)), moment);
        }
    }

    #[test]
    fn a_stamp_is_a_moment_ago_unless_the_wall_clock_was_stepped() {
        let ago = |age| of_wall_clock(SystemTime::now() - age).elapsed();
        assert!(ago(Duration::from_secs(2)) >= Duration::from_secs(2));
        assert!(ago(Duration::from_secs(3600)) < Duration::from_secs(3600));
        // From the future, as after a step back.
        assert!(of_wall_clock(SystemTime::now() + Duration::from_secs(60)) <= Instant::now());
    }
}
