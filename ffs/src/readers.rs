//! Threads that wait for disks, so that those who answer the kernel do not have to.
//!
//! Whoever has a request reads what is in memory himself ([`sys::read_cached`](crate::sys::read_cached)).
//! What has to be waited for goes to threads of the file system that it is on, which come when they
//! are needed and go when they are not. So a disk or a server that does not answer holds up those who
//! read from it, and nobody else.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::door::{Door, Inside};

/// Threads that read from one file system at most: as many as one reader has requests under way.
const PER_DEVICE: usize = 4;
/// A thread that had nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(10);

/// The threads, by file system.
#[derive(Default)]
pub(crate) struct Readers {
    queues: Mutex<HashMap<u64, Arc<Queue>>>,
    /// Closed while there must be no request in our hands.
    door: Door,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

struct Job {
    work: Box<dyn FnOnce() + Send>,
    inside: Inside,
}

impl Readers {
    /// Does something that may wait for the file system of this device number, on a thread for that. While
    /// requests are being finished ([`finish`](Self::finish)) it is done at once.
    pub(crate) fn run(&self, device: u64, work: impl FnOnce() + Send + 'static) {
        let Some(inside) = self.door.try_enter() else { return work() };
        let queue = {
            let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            queues.entry(device).or_default().clone()
        };
        queue.add(Job { work: Box::new(work), inside });
    }

    /// Takes nothing in any more, and waits until everything is done. Whether it is, within this time.
    pub(crate) fn finish(&self, patience: Duration) -> bool {
        self.door.close();
        self.door.left(patience)
    }

    /// Takes requests in again.
    pub(crate) fn go_on(&self) {
        self.door.open();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(self: Arc<Self>, job: Job) {
        let mut state = self.state();
        state.jobs.push_back(job);
        if state.jobs.len() <= state.idle || state.threads == PER_DEVICE {
            drop(state);
            return self.more.notify_one();
        }
        state.threads += 1;
        drop(state);
        let queue = self.clone();
        let started = std::thread::Builder::new().name("disk".to_owned()).spawn(move || queue.serve());
        if let Err(error) = started {
            tracing::warn!(%error, "no thread to read with");
            let mut state = self.state();
            state.threads -= 1;
            if state.threads > 0 {
                return;
            }
            // Nobody else would.
            let jobs = std::mem::take(&mut state.jobs);
            drop(state);
            jobs.into_iter().for_each(Job::run);
        }
    }

    fn serve(&self) {
        while let Some(job) = self.next() {
            job.run();
        }
    }

    /// The next job; `None` when none came for long, and this thread no longer counts.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        if state.jobs.is_empty() {
            state.idle += 1;
            (state, _) = self
                .more
                .wait_timeout_while(state, IDLE, |state| state.jobs.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
        let job = state.jobs.pop_front();
        state.threads -= usize::from(job.is_none());
        job
    }
}

impl Job {
    fn run(self) {
        (self.work)();
        drop(self.inside);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const SOON: Duration = Duration::from_secs(60);

    #[test]
    fn what_hangs_on_one_device_holds_up_no_other() {
        let readers = Readers::default();
        let (done, seen) = channel();
        let (release, hangs) = channel::<()>();
        let hangs = Arc::new(Mutex::new(hangs));
        for _ in 0..2 * PER_DEVICE {
            let (done, hangs) = (done.clone(), hangs.clone());
            readers.run(1, move || {
                // Ends when the other end is dropped.
                let _ = hangs.lock().unwrap().recv();
                done.send(1).unwrap();
            });
        }
        readers.run(2, move || done.send(2).unwrap());
        assert_eq!(seen.recv_timeout(SOON).unwrap(), 2);
        assert!(!readers.finish(Duration::from_millis(1)));
        drop(release);
        assert!(readers.finish(SOON));
        assert_eq!(seen.iter().count(), 2 * PER_DEVICE);
    }

    #[test]
    fn nothing_is_left_to_a_thread_while_requests_are_finished() {
        let readers = Readers::default();
        assert!(readers.finish(SOON));
        let (tx, rx) = channel();
        let to = tx.clone();
        readers.run(1, move || to.send(std::thread::current().id()).unwrap());
        assert_eq!(rx.try_recv().unwrap(), std::thread::current().id());
        readers.go_on();
        readers.run(1, move || tx.send(std::thread::current().id()).unwrap());
        assert_ne!(rx.recv_timeout(SOON).unwrap(), std::thread::current().id());
    }
}
