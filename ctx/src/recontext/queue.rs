//! Order and coalescing: one run at a time for each domain, and at most one waiting.
//!
//! A run reads everything anew when it starts, so a request that comes while another one waits is
//! answered by that one's run; a request that comes while a run is under way waits, since that run
//! may have read its sources already.

use std::collections::BTreeMap;

use super::run::Request;

/// A request and those who wait for its records.
#[derive(Debug)]
pub struct Job<W> {
    /// What to do.
    pub request: Request,
    /// Whom to tell.
    pub waiters: Vec<W>,
}

/// The requests of all domains. `W` is who waits for an answer.
#[derive(Debug)]
pub struct Queue<W> {
    /// By UUID: domains with a run under way, each with the job that waits for its end.
    slots: BTreeMap<String, Option<Job<W>>>,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { slots: BTreeMap::new() }
    }
}

impl<W> Queue<W> {
    /// Takes a job in. It comes back when it is to be started now; else it waits or has become part
    /// of the one that waits.
    pub fn push(&mut self, job: Job<W>) -> Option<Job<W>> {
        let Some(waiting) = self.slots.get_mut(&job.request.domain.uuid) else {
            self.slots.insert(job.request.domain.uuid.clone(), None);
            return Some(job);
        };
        match waiting {
            None => *waiting = Some(job),
            Some(waiting) => {
                waiting.waiters.extend(job.waiters);
                waiting.request.coalesced += 1 + job.request.coalesced;
                // The time of the first event is kept: it waits the longest. A retry gives way to
                // what has happened since.
                if waiting.request.attempt > 1 || waiting.request.trigger.is_weaker_than(&job.request.trigger)
                {
                    waiting.request.trigger = job.request.trigger;
                    waiting.request.attempt = 1;
                }
            }
        }
        None
    }

    /// Takes note that a domain's run has ended, and gives the job to start next.
    pub fn finished(&mut self, uuid: &str) -> Option<Job<W>> {
        let next = self.slots.get_mut(uuid)?.take();
        if next.is_none() {
            self.slots.remove(uuid);
        }
        next
    }

    /// Whether a run of this domain is under way.
    pub fn is_running(&self, uuid: &str) -> bool {
        self.slots.contains_key(uuid)
    }

    /// The domains with a run under way.
    pub fn running(&self) -> impl Iterator<Item = &str> {
        self.slots.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Stamp;
    use crate::libvirt::DomainId;
    use crate::recontext::Trigger;

    fn job(uuid: &str, trigger: Trigger, waiter: u8) -> Job<u8> {
        let domain = DomainId { name: uuid.into(), uuid: uuid.into() };
        let received = Stamp { monotonic_ns: waiter.into(), realtime_ns: 0 };
        Job {
            request: Request { domain, trigger, received, coalesced: 0, attempt: 1 },
            waiters: vec![waiter],
        }
    }

    #[test]
    fn a_burst_becomes_two_runs() {
        let mut queue = Queue::default();
        assert!(queue.push(job("a", Trigger::Restored, 1)).is_some());
        assert!(queue.push(job("a", Trigger::Restored, 2)).is_none());
        assert!(queue.push(job("a", Trigger::Migrated, 3)).is_none());
        assert!(queue.push(job("a", Trigger::Manual { reason: None }, 4)).is_none());
        let next = queue.finished("a").unwrap();
        assert_eq!(next.waiters, [2, 3, 4]);
        assert_eq!(next.request.coalesced, 2);
        assert_eq!(next.request.received.monotonic_ns, 2);
        // A domain may ask for `migrated` and not for `restored`, but `manual` goes for all.
        assert_eq!(next.request.trigger, Trigger::Manual { reason: None });
        assert!(queue.is_running("a"));
        assert!(queue.finished("a").is_none());
        assert!(!queue.is_running("a"));
    }

    #[test]
    fn domains_do_not_wait_for_each_other() {
        let mut queue = Queue::default();
        assert!(queue.push(job("a", Trigger::Migrated, 1)).is_some());
        assert!(queue.push(job("b", Trigger::Migrated, 2)).is_some());
        assert_eq!(queue.running().collect::<Vec<_>>(), ["a", "b"]);
    }
}
