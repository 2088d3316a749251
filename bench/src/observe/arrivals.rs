//! Values that arrive from machines, dated on the bench's clock, and a way to wait for one.
//!
//! Hosts and guests have clocks of their own; whatever must be compared between them is dated
//! here, when it arrives.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

/// A value with the time at which it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival<T> {
    /// When, on the bench's monotonic clock.
    pub at: Instant,
    /// What.
    pub value: T,
}

/// All arrivals so far. Clones share them.
#[derive(Debug)]
pub struct Arrivals<T> {
    all: Arc<Mutex<Vec<Arrival<T>>>>,
    count: watch::Receiver<usize>,
}

impl<T> Clone for Arrivals<T> {
    fn clone(&self) -> Self {
        Arrivals { all: Arc::clone(&self.all), count: self.count.clone() }
    }
}

/// Where arrivals are put in.
#[derive(Debug)]
pub struct Inlet<T> {
    all: Arc<Mutex<Vec<Arrival<T>>>>,
    count: watch::Sender<usize>,
}

/// An empty list and its inlet.
pub fn arrivals<T>() -> (Inlet<T>, Arrivals<T>) {
    let all = Arc::new(Mutex::new(Vec::new()));
    let (sender, receiver) = watch::channel(0);
    (Inlet { all: Arc::clone(&all), count: sender }, Arrivals { all, count: receiver })
}

impl<T> Inlet<T> {
    /// Something has arrived just now.
    pub fn put(&self, value: T) {
        self.put_at(Instant::now(), value);
    }

    /// Something has arrived at a moment that somebody else dated. Arrivals stand in order: one that is dated before the last
    /// gets that one's date.
    pub fn put_at(&self, at: Instant, value: T) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let at = all.last().map_or(at, |last| last.at.max(at));
        self.push(&mut all, Arrival { at, value });
    }

    fn push(&self, all: &mut Vec<Arrival<T>>, arrival: Arrival<T>) {
        all.push(arrival);
        self.count.send_replace(all.len());
    }
}

impl<T: Clone> Arrivals<T> {
    /// What arrived from `from` on.
    pub fn since(&self, from: Instant) -> Vec<Arrival<T>> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let first = all.partition_point(|arrival| arrival.at < from);
        all[first..].to_vec()
    }

    /// Gives each arrival to `each` as it comes, until `wait` ends; then those that are left. `given` counts those that were given, here
    /// and before.
    pub async fn while_waiting<R>(
        &self,
        given: &mut usize,
        mut each: impl FnMut(Arrival<T>),
        wait: impl Future<Output = R>,
    ) -> R {
        let mut count = self.count.clone();
        let mut wait = pin!(wait);
        loop {
            let (known, mut is_open) = (*given, true);
            let done = tokio::select! {
                biased;
                more = count.wait_for(|&n| n > known) => { is_open = more.is_ok(); None }
                done = &mut wait => Some(done),
            };
            let all = {
                let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
                all[known.min(all.len())..].to_vec()
            };
            *given += all.len();
            all.into_iter().for_each(&mut each);
            match done {
                Some(done) => return done,
                // Nobody puts in any more.
                None if !is_open => return wait.await,
                None => {}
            }
        }
    }

    /// The first arrival from `from` on that is `wanted`, waited for until the deadline.
    pub async fn first(
        &self,
        from: Instant,
        deadline: Duration,
        wanted: impl Fn(&T) -> bool,
    ) -> Option<Arrival<T>> {
        let mut count = self.count.clone();
        let mut seen = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.partition_point(|arrival| arrival.at < from)
        };
        let search = async {
            loop {
                {
                    let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
                    let dated = |arrival: &&Arrival<T>| arrival.at >= from && wanted(&arrival.value);
                    if let Some(hit) = all[seen..].iter().find(dated) {
                        return Some(hit.clone());
                    }
                    seen = all.len();
                }
                if count.wait_for(|&n| n > seen).await.is_err() {
                    return None;
                }
            }
        };
        timeout(deadline, search).await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn older_arrivals_are_not_taken_and_new_ones_are_waited_for() {
        let (inlet, arrivals) = arrivals();
        inlet.put("old");
        let from = Instant::now();
        let deadline = Duration::from_secs(30);
        let (hit, ()) = tokio::join!(arrivals.first(from, deadline, |v| *v != "other"), async {
            inlet.put("other");
            tokio::task::yield_now().await;
            inlet.put("new");
        });
        assert_eq!(hit.unwrap().value, "new");
        assert_eq!(arrivals.since(from).len(), 2);
    }

    #[tokio::test]
    async fn an_arrival_before_a_time_to_come_is_not_taken() {
        let (inlet, arrivals) = arrivals();
        let from = Instant::now() + Duration::from_secs(3600);
        let (hit, ()) = tokio::join!(arrivals.first(from, Duration::from_secs(30), |_| true), async {
            inlet.put("early");
            tokio::task::yield_now().await;
            let mut all = inlet.all.lock().unwrap();
            inlet.push(&mut all, Arrival { at: from, value: "due" });
        });
        assert_eq!(hit.unwrap().value, "due");
    }

    #[tokio::test]
    async fn each_arrival_is_given_as_it_comes_and_once() {
        let (inlet, arrivals) = arrivals();
        inlet.put(1);
        let (mut given, seen) = (0, Mutex::new(Vec::new()));
        let each = |arrival: Arrival<u8>| seen.lock().unwrap().push(arrival.value);
        let wait = async {
            inlet.put(2);
            // Whoever waits for more sees it before this ends.
            while seen.lock().unwrap().len() < 2 {
                tokio::task::yield_now().await;
            }
            inlet.put(3);
        };
        arrivals.while_waiting(&mut given, each, wait).await;
        assert_eq!((given, seen.lock().unwrap().clone()), (3, vec![1, 2, 3]));
        inlet.put(4);
        drop(inlet);
        let left =
            arrivals.while_waiting(&mut given, |arrival| assert_eq!(arrival.value, 4), async { 7 }).await;
        assert_eq!((left, given), (7, 4));
    }

    #[test]
    fn what_is_dated_too_early_stays_in_order() {
        let (inlet, arrivals) = arrivals();
        let at = Instant::now();
        for (millis, value) in [(20, "a"), (10, "b"), (30, "c")] {
            inlet.put_at(at + Duration::from_millis(millis), value);
        }
        let order: Vec<_> =
            arrivals.since(at).into_iter().map(|a| (a.value, (a.at - at).as_millis())).collect();
        assert_eq!(order, [("a", 20), ("b", 20), ("c", 30)]);
    }

    #[tokio::test]
    async fn a_closed_inlet_ends_the_wait() {
        let (inlet, arrivals) = arrivals::<u8>();
        drop(inlet);
        assert!(arrivals.first(Instant::now(), Duration::from_secs(30), |_| true).await.is_none());
    }
}
