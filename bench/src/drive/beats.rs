//! The guest's heartbeat, received on the bench's clock.
//!
//! A program in the guest reads a context file many times a second and sends what it read in a
//! datagram. So one clock, the bench's, dates both the blackout of a migration (the gap in the
//! beats) and the moment at which new content is readable (the first beat that carries it); the
//! error is at most the interval between beats plus the way of a datagram.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bench_probe::Beat;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::timeout;

/// Port on which the bench listens for beats.
pub const PORT: u16 = 4242;

/// A beat with the time at which it arrived.
#[derive(Debug, Clone, PartialEq)]
pub struct Received {
    /// When, on the bench's monotonic clock.
    pub at: Instant,
    /// What it said.
    pub beat: Beat,
}

/// All beats so far, and a way to wait for one.
#[derive(Clone)]
pub struct Beats {
    all: Arc<Mutex<Vec<Received>>>,
    count: watch::Receiver<usize>,
}

impl Beats {
    /// Listens on the bench's management address.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub async fn listen(address: Ipv4Addr) -> std::io::Result<Beats> {
        let socket = UdpSocket::bind(SocketAddr::from((address, PORT))).await?;
        let all = Arc::new(Mutex::new(Vec::new()));
        let (sender, count) = watch::channel(0);
        let store = Arc::clone(&all);
        tokio::spawn(async move {
            let mut buffer = vec![0; 2048];
            while let Ok(length) = socket.recv(&mut buffer).await {
                let at = Instant::now();
                let Ok(beat) = Beat::decode(&buffer[..length]) else { continue };
                let mut all = store.lock().unwrap_or_else(PoisonError::into_inner);
                all.push(Received { at, beat });
                sender.send_replace(all.len());
            }
        });
        Ok(Beats { all, count })
    }

    /// The beats that arrived from `from` on.
    pub fn since(&self, from: Instant) -> Vec<Received> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let first = all.partition_point(|r| r.at < from);
        all[first..].to_vec()
    }

    /// The first beat from `from` on that satisfies `wanted`, waited for until the deadline.
    pub async fn first(
        &self,
        from: Instant,
        deadline: Duration,
        wanted: impl Fn(&Beat) -> bool,
    ) -> Option<Received> {
        let mut count = self.count.clone();
        let mut seen = {
            let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
            all.partition_point(|r| r.at < from)
        };
        let search = async {
            loop {
                {
                    let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Some(hit) = all[seen..].iter().find(|r| wanted(&r.beat)) {
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

/// The longest pause between two beats in a row, less the interval at which they are sent: how long
/// the guest was silent. `None` with fewer than two beats.
pub fn longest_gap(beats: &[Received], interval: Duration) -> Option<Duration> {
    beats
        .windows(2)
        .map(|pair| pair[1].at.duration_since(pair[0].at).saturating_sub(interval))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(text: &str) -> Beat {
        Beat { seq: 0, mono_ns: 0, real_ns: 0, content: text.to_owned(), error: None }
    }

    fn at(start: Instant, millis: u64) -> Received {
        Received { at: start + Duration::from_millis(millis), beat: beat("x") }
    }

    #[test]
    fn the_gap_is_the_silence_not_the_interval() {
        let start = Instant::now();
        let beats: Vec<Received> = [0, 50, 100, 950, 1000].into_iter().map(|m| at(start, m)).collect();
        assert_eq!(longest_gap(&beats, Duration::from_millis(50)), Some(Duration::from_millis(800)));
        assert_eq!(longest_gap(&beats[..1], Duration::from_millis(50)), None);
    }

    #[tokio::test]
    async fn a_beat_is_waited_for_and_older_ones_are_not_taken() {
        let beats = Beats::listen(Ipv4Addr::LOCALHOST).await.unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let send = async |text: &str| {
            sender.send_to(&beat(text).encode(), (Ipv4Addr::LOCALHOST, PORT)).await.unwrap();
        };
        send("old").await;
        let deadline = Duration::from_secs(10);
        let old = beats.first(Instant::now().checked_sub(deadline).unwrap(), deadline, |_| true).await.unwrap();
        assert_eq!(old.beat.content, "old");
        let from = Instant::now();
        send("new").await;
        let new = beats.first(from, deadline, |_| true).await.unwrap();
        assert_eq!(new.beat.content, "new");
        assert!(beats.first(from, Duration::from_millis(20), |b| b.content == "old").await.is_none());
    }
}
