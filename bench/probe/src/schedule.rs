//! Absolute deadlines on a steady clock: no drift, and no burst after a pause.

/// When beats are due, in nanoseconds of one clock.
#[derive(Debug, Clone)]
pub struct Schedule {
    interval: u64,
    next: u64,
    skipped: u64,
}

impl Schedule {
    /// A beat at `start` and every `interval` nanoseconds (at least 1) from then on.
    pub fn new(start: u64, interval: u64) -> Self {
        Self { interval: interval.max(1), next: start, skipped: 0 }
    }

    /// When the next beat is due, seen from `now`. Beats that are a whole interval late are left out
    /// and counted: what was missed while the machine stood still is not made up for.
    pub fn next(&mut self, now: u64) -> u64 {
        let late = now.saturating_sub(self.next) / self.interval;
        self.skipped += late;
        let due = self.next.saturating_add(late * self.interval);
        self.next = due.saturating_add(self.interval);
        due
    }

    /// Beats left out so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_drift_when_work_takes_time() {
        let mut schedule = Schedule::new(1000, 50);
        assert_eq!(schedule.next(1000), 1000);
        assert_eq!(schedule.next(1030), 1050);
        assert_eq!(schedule.next(1099), 1100);
        assert_eq!(schedule.skipped(), 0);
    }

    #[test]
    fn a_pause_is_skipped_and_the_phase_kept() {
        let mut schedule = Schedule::new(1000, 50);
        schedule.next(1000);
        // Stood still from 1000 to 1777: 1750 is the beat that is due, 14 before it are lost.
        assert_eq!(schedule.next(1777), 1750);
        assert_eq!(schedule.skipped(), 14);
        assert_eq!(schedule.next(1778), 1800);
    }
}
