//! What an accept loop does when accept(2) fails: it waits, and says so once.
//!
//! A process without free descriptors (EMFILE, ENFILE) cannot take a connection that waits, and a listener with a waiting
//! connection is always ready: a loop that only tries again takes a whole processor and fills the log. No event tells
//! that a descriptor came free, so the loop waits: 100 ms at first, and twice as long each time, up to 1 s.
//!
//! An episode begins with the first failure and ends when connections were accepted for [`QUIET`] without another. It is
//! one line in the log.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

/// The first wait of an episode.
pub const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(1);
/// How long after its last failure an episode is over.
pub const QUIET: Duration = Duration::from_secs(10);

/// How an accept loop stands. One for each listener.
#[derive(Debug)]
pub struct Backoff {
    what: &'static str,
    wait: Duration,
    /// When accept(2) failed last.
    failed: Option<Instant>,
}

impl Backoff {
    /// For the loop of `what`, as it is called in the log: `the control socket`.
    pub const fn new(what: &'static str) -> Self {
        Self { what, wait: FIRST, failed: None }
    }

    /// How long to wait before accept(2) is called again after this error; nothing for what concerns only one
    /// connection. Says so in the log where an episode begins.
    pub fn failed(&mut self, error: &io::Error) -> Duration {
        let (wait, first) = self.note(error, Instant::now());
        if first {
            tracing::error!(
                %error,
                "{} cannot accept connections, which wait until it can; this is said once: are there free descriptors \
                 (`ulimit -n`)?",
                self.what
            );
        }
        wait
    }

    /// A connection was accepted: the next failure waits briefly again.
    pub const fn accepted(&mut self) {
        self.wait = FIRST;
    }

    /// The wait after a failure at `now`, and whether an episode begins with it.
    fn note(&mut self, error: &io::Error, now: Instant) -> (Duration, bool) {
        // A signal, nobody there, or one who has gone again: accept(2), "Error handling".
        if matches!(
            error.kind(),
            ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::ConnectionAborted
        ) {
            return (Duration::ZERO, false);
        }
        let begins = self.failed.is_none_or(|before| now.duration_since(before) > QUIET);
        self.failed = Some(now);
        let wait = self.wait;
        self.wait = (wait * 2).min(LONGEST);
        (wait, begins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emfile() -> io::Error {
        nix::errno::Errno::EMFILE.into()
    }

    #[test]
    fn an_episode_is_said_once_and_waits_longer_each_time() {
        let (mut loop_of, mut now) = (Backoff::new("x"), Instant::now());
        let mut waits = Vec::new();
        let mut said = 0;
        for _ in 0..100 {
            let (wait, first) = loop_of.note(&emfile(), now);
            waits.push(wait.as_millis());
            said += u32::from(first);
            now += wait;
        }
        assert_eq!(waits[..6], [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(said, 1);
    }

    #[test]
    fn one_that_is_served_in_between_begins_no_other_episode() {
        let (mut loop_of, now) = (Backoff::new("x"), Instant::now());
        assert_eq!(loop_of.note(&emfile(), now), (FIRST, true));
        loop_of.accepted();
        assert_eq!(loop_of.note(&emfile(), now + QUIET), (FIRST, false));
        loop_of.accepted();
        assert_eq!(loop_of.note(&emfile(), now + 3 * QUIET), (FIRST, true));
    }

    #[test]
    fn what_concerns_one_connection_waits_for_nothing() {
        let mut loop_of = Backoff::new("x");
        for kind in [ErrorKind::Interrupted, ErrorKind::WouldBlock, ErrorKind::ConnectionAborted] {
            assert_eq!(loop_of.note(&kind.into(), Instant::now()), (Duration::ZERO, false));
        }
    }
}
