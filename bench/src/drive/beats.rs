//! The guest's heartbeat, received on the bench's clock.
//!
//! A program in the guest reads a context file many times a second and sends what it read in a
//! datagram. So one clock, the bench's, dates both the blackout of a migration (the gap in the
//! beats) and the moment at which new content is readable (the first beat that carries it); the
//! error is at most the interval between beats plus the way of a datagram.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bench_probe::Beat;
use tokio::net::UdpSocket;

use super::arrivals::{Arrival, Arrivals, arrivals};

/// Port on which the bench listens for beats.
pub const PORT: u16 = 4242;

/// How often the probe reads and sends: often enough to date a blackout of 100 ms, and seldom
/// enough that an emulated guest spends a few percent on it.
pub const INTERVAL: Duration = Duration::from_millis(50);

/// Beats as they arrive.
pub type Beats = Arrivals<Beat>;

/// Listens for beats on an address of the bench.
///
/// # Errors
/// When the port cannot be had.
pub async fn listen(address: Ipv4Addr) -> std::io::Result<Beats> {
    Ok(receive(UdpSocket::bind(SocketAddr::from((address, PORT))).await?))
}

/// Beats that arrive at a socket.
fn receive(socket: UdpSocket) -> Beats {
    let (inlet, beats) = arrivals();
    tokio::spawn(async move {
        let mut buffer = vec![0; 2048];
        while let Ok(length) = socket.recv(&mut buffer).await {
            // What is no beat is somebody else's datagram.
            if let Ok(beat) = Beat::decode(&buffer[..length]) {
                inlet.put(beat);
            }
        }
    });
    beats
}

/// The longest pause between two beats (or other signs of life) in a row, less the interval at which they
/// are sent: how long the guest was silent. `None` with fewer than two.
pub fn longest_gap<T>(beats: &[Arrival<T>]) -> Option<Duration> {
    beats.windows(2).map(|pair| pair[1].at.duration_since(pair[0].at).saturating_sub(INTERVAL)).max()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bench_probe::Seen;

    use super::*;

    fn beat(text: &str) -> Beat {
        Beat { seq: 0, skipped: 0, mono_ns: 0, real_ns: 0, read_ns: 0, seen: Seen::content(text.as_bytes()) }
    }

    #[test]
    fn the_gap_is_the_silence_not_the_interval() {
        let start = Instant::now();
        let beats: Vec<Arrival<Beat>> = [0, 50, 100, 950, 1000]
            .into_iter()
            .map(|millis| Arrival { at: start + Duration::from_millis(millis), value: beat("x") })
            .collect();
        assert_eq!(longest_gap(&beats), Some(Duration::from_millis(800)));
        assert_eq!(longest_gap(&beats[..1]), None);
    }

    #[tokio::test]
    async fn a_beat_arrives_and_other_datagrams_do_not() {
        // Not at the port of its own, which a bench that runs beside the tests has.
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let beats = receive(socket);
        let from = Instant::now();
        let sender = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        sender.send_to(b"noise", address).await.unwrap();
        sender.send_to(&beat("new").encode(), address).await.unwrap();
        let arrival = beats.first(from, Duration::from_secs(30), |_| true).await.unwrap();
        assert_eq!(arrival.value.seen, Seen::content(b"new"));
    }
}
