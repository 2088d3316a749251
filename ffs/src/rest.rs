//! A thread that nobody waits for makes room for work that somebody does.
//!
//! Telling watchers of thousands of names takes as long as a hundred switches. A switch that comes meanwhile would share
//! the processors and the locks of directories with that, name by name; so the telling rests, but for no more than half of
//! the time, however many switches come.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A rest ends after this, whether or not the work is done.
const LONGEST: Duration = Duration::from_millis(100);

/// The rests of one thread.
#[derive(Debug, Default)]
pub(crate) struct Rests {
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Of those who want it to rest, how many are at work.
    at_work: usize,
    /// When the rest of the moment began.
    began: Option<Instant>,
    /// None begins before this.
    not_before: Option<Instant>,
}

impl State {
    fn begin(&mut self, now: Instant) {
        self.at_work += 1;
        if self.at_work == 1 && self.not_before.is_none_or(|then| then <= now) {
            self.began = Some(now);
        }
    }

    fn end(&mut self, now: Instant) {
        self.at_work -= 1;
        if self.at_work == 0 {
            self.cancel(now);
        }
    }

    fn cancel(&mut self, now: Instant) {
        if let Some(began) = self.began.take() {
            self.not_before = Some(now + now.saturating_duration_since(began).min(LONGEST));
        }
    }

    /// How much of a rest is left.
    fn left(&self, now: Instant) -> Option<Duration> {
        let left = (self.began? + LONGEST).saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }
}

/// There is a rest until this is dropped.
#[derive(Debug)]
pub(crate) struct Rest(Arc<Rests>);

impl Drop for Rest {
    fn drop(&mut self) {
        self.0.state().end(Instant::now());
        self.0.over.notify_all();
    }
}

impl Rests {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the thread rest.
    pub(crate) fn begin(self: &Arc<Self>) -> Rest {
        self.state().begin(Instant::now());
        Rest(self.clone())
    }

    /// Ends the rest of the moment: now somebody waits for the thread.
    pub(crate) fn cancel(&self) {
        self.state().cancel(Instant::now());
        self.over.notify_all();
    }

    /// The thread rests, if it is to.
    pub(crate) fn wait(&self) {
        let mut state = self.state();
        while let Some(left) = state.left(Instant::now()) {
            state = self.over.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_is_as_long_as_the_work_and_no_longer_than_half_of_the_time() {
        let zero = Instant::now();
        let at = |millis| zero + Duration::from_millis(millis);
        let mut state = State::default();
        assert_eq!(state.left(at(0)), None);
        state.begin(at(0));
        assert_eq!(state.left(at(30)), Some(Duration::from_millis(70)));
        state.begin(at(30));
        state.end(at(35));
        assert!(state.left(at(39)).is_some(), "another is at work");
        state.end(at(40));
        assert_eq!(state.left(at(40)), None);
        // It has rested for 40 ms, and is to work as long.
        state.begin(at(50));
        assert_eq!(state.left(at(60)), None);
        state.end(at(70));
        state.begin(at(80));
        assert!(state.left(at(179)).is_some());
        assert_eq!(state.left(at(180)), None, "too long");
        state.end(at(500));
        state.begin(at(599));
        assert_eq!(state.left(at(599)), None);
        state.end(at(600));
        state.begin(at(600));
        assert!(state.left(at(600)).is_some());
        state.cancel(at(610));
        state.begin(at(611));
        assert_eq!(state.left(at(611)), None);
    }

    #[test]
    fn who_waits_goes_on_when_the_work_is_done() {
        let rests = Arc::new(Rests::default());
        rests.wait();
        let rest = rests.begin();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| rests.wait());
            drop(rest);
            waits.join().unwrap();
        });
        assert_eq!(rests.state().left(Instant::now()), None);
    }
}
