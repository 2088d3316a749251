//! A door that can be closed, and who is still inside.
//!
//! Before another program takes over, whatever takes something in (a request, a signal, an event of the
//! kernel) must have finished with it, for what a thread holds in its hands is lost with the thread. So
//! each enters before it takes, and leaves when it has passed on what it took.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A door; clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Door(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    opened: Condvar,
    emptied: Condvar,
}

#[derive(Default)]
struct State {
    inside: usize,
    closed: bool,
    /// Called when the last one has left a closed door behind.
    tell: Option<Box<dyn Fn() + Send>>,
}

/// Somebody who is inside, until dropped.
pub(crate) struct Inside(Door);

impl Door {
    /// A door that tells when it is closed and the last one has left.
    pub(crate) fn new(tell: impl Fn() + Send + 'static) -> Self {
        let door = Self::default();
        door.state().tell = Some(Box::new(tell));
        door
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes in; waits while the door is closed.
    pub(crate) fn enter(&self) -> Inside {
        let mut state = self.state();
        while state.closed {
            state = self.0.opened.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.inside += 1;
        drop(state);
        Inside(self.clone())
    }

    /// Goes in unless the door is closed.
    pub(crate) fn try_enter(&self) -> Option<Inside> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        state.inside += 1;
        drop(state);
        Some(Inside(self.clone()))
    }

    /// Lets nobody in any more; whether nobody is inside.
    pub(crate) fn close(&self) -> bool {
        let mut state = self.state();
        state.closed = true;
        state.inside == 0
    }

    /// Waits until nobody is inside, at most so long. Whether nobody is.
    pub(crate) fn left(&self, patience: Duration) -> bool {
        let waited = self.0.emptied.wait_timeout_while(self.state(), patience, |state| state.inside > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.inside == 0
    }

    /// Lets everybody in again.
    pub(crate) fn open(&self) {
        self.state().closed = false;
        self.0.opened.notify_all();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.inside -= 1;
        if state.inside == 0 {
            self.0.0.emptied.notify_all();
        }
        if let (true, 0, Some(tell)) = (state.closed, state.inside, &state.tell) {
            tell();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_one_out_tells_and_nobody_gets_in_before_it_is_open_again() {
        let (tx, rx) = channel();
        let door = Door::new(move || tx.send(()).unwrap());
        let (one, two) = (door.enter(), door.enter());
        drop(one);
        assert!(!door.close());
        assert!(door.try_enter().is_none());
        assert!(rx.try_recv().is_err());
        drop(two);
        rx.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(door.close());
        let waits = {
            let door = door.clone();
            std::thread::spawn(move || drop(door.enter()))
        };
        assert!(!waits.is_finished());
        door.open();
        waits.join().unwrap();
        assert!(rx.try_recv().is_err(), "an open door tells nobody");
    }
}
