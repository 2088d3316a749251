//! Whether the guest's kernel answers, seen from outside: `ping`, at the rate of the heartbeat.
//!
//! The heartbeat says when a program in the guest runs; an echo says when the guest does. The two agree
//! on a blackout but for what a program needs to get going again.

use std::net::Ipv4Addr;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::arrivals::{Arrivals, arrivals};
use super::beats::INTERVAL;

/// Answers as they arrive, by their sequence number.
pub struct Pings {
    /// The answers.
    pub answers: Arrivals<u64>,
    /// Ends with this value.
    _ping: Child,
}

/// Pings an address from now on, until the value is dropped.
///
/// # Errors
/// When `ping` cannot be started.
pub fn ping(address: Ipv4Addr) -> std::io::Result<Pings> {
    let mut ping = Command::new("ping")
        .args(["-n", "-i", &INTERVAL.as_secs_f64().to_string(), &address.to_string()])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let stdout = ping.stdout.take().expect("standard output was asked to be a pipe");
    let (inlet, answers) = arrivals();
    tokio::spawn(async move {
        let mut lines = BufReader::new(stdout).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(sequence) = answer(&line) {
                inlet.put(sequence);
            }
        }
    });
    Ok(Pings { answers, _ping: ping })
}

/// The sequence number of a line that tells of an answer: `64 bytes from ADDRESS: icmp_seq=7 ttl=64 time=…`.
fn answer(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(" bytes from ")?.1.split_once("icmp_seq=")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn answers_are_told_from_what_else_ping_says() {
        assert_eq!(answer("64 bytes from 198.18.0.41: icmp_seq=12 ttl=64 time=0.5 ms"), Some(12));
        assert_eq!(answer("From 198.18.0.1 icmp_seq=3 Destination Host Unreachable"), None);
        assert_eq!(answer("PING 198.18.0.41 (198.18.0.41) 56(84) bytes of data."), None);
    }

    #[tokio::test]
    async fn a_machine_that_is_there_answers_again_and_again() {
        let from = Instant::now();
        let pings = ping(Ipv4Addr::LOCALHOST).unwrap();
        let third = pings.answers.first(from, Duration::from_secs(60), |&sequence| sequence >= 3).await;
        assert!(third.is_some(), "ping printed no answer");
    }
}
