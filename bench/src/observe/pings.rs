//! Whether the guest's kernel answers, seen from outside: `ping`, at the rate of the heartbeat.
//!
//! The heartbeat says when a program in the guest runs; an echo says when the guest does. The two agree
//! on a blackout but for what a program needs to get going again. `ping` dates each answer as soon as it has it.

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::arrivals::{Arrivals, arrivals};
use super::beats::INTERVAL;
use super::moment;

/// Answers as they arrive, by their sequence number.
pub struct Pings {
    /// The answers.
    pub answers: Arrivals<u64>,
    /// Ends with this value.
    _ping: Option<Child>,
}

#[cfg(test)]
impl Pings {
    /// Answers that came from elsewhere.
    pub(crate) fn of(answers: Arrivals<u64>) -> Pings {
        Pings { answers, _ping: None }
    }
}

/// Pings an address from now on, until the value is dropped.
///
/// # Errors
/// When `ping` cannot be started.
pub fn ping(address: Ipv4Addr) -> std::io::Result<Pings> {
    let mut ping = Command::new("ping")
        .args(["-D", "-n", "-i", &INTERVAL.as_secs_f64().to_string(), &address.to_string()])
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
            if let Some((at, sequence)) = answer(&line) {
                inlet.put_at(moment::of_wall_clock(at), sequence);
            }
        }
    });
    Ok(Pings { answers, _ping: Some(ping) })
}

/// When an answer came, and its sequence number, from the line that tells of it:
/// `[1764561600.123456] 64 bytes from ADDRESS: icmp_seq=7 ttl=64 time=…`.
fn answer(line: &str) -> Option<(SystemTime, u64)> {
    let (stamp, line) = line.strip_prefix('[')?.split_once("] ")?;
    let at = Duration::try_from_secs_f64(stamp.parse().ok()?).ok()?;
    let (_, rest) = line.split_once(" bytes from ")?.1.split_once("icmp_seq=")?;
    Some((SystemTime::UNIX_EPOCH.checked_add(at)?, rest.split_whitespace().next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn answers_are_told_from_what_else_ping_says() {
        let answered = "[1764561600.500000] 64 bytes from 198.18.0.41: icmp_seq=12 ttl=64 time=0.5 ms";
        let (at, sequence) = answer(answered).unwrap();
        assert_eq!(sequence, 12);
        assert_eq!(
            at.duration_since(SystemTime::UNIX_EPOCH).unwrap(),
            Duration::from_millis(1_764_561_600_500)
        );
        for other in [
            "[1764561600.5] From 198.18.0.1 icmp_seq=3 Destination Host Unreachable",
            "[1764561600.5] no answer yet for icmp_seq=3",
            "[1e300] 64 bytes from 198.18.0.41: icmp_seq=12 ttl=64 time=0.5 ms",
            "[-1] 64 bytes from 198.18.0.41: icmp_seq=12 ttl=64 time=0.5 ms",
            "64 bytes from 198.18.0.41: icmp_seq=12 ttl=64 time=0.5 ms",
            "PING 198.18.0.41 (198.18.0.41) 56(84) bytes of data.",
        ] {
            assert_eq!(answer(other), None, "{other}");
        }
    }

    #[tokio::test]
    async fn a_machine_that_is_there_answers_again_and_again() {
        let from = Instant::now();
        let pings = ping(Ipv4Addr::LOCALHOST).unwrap();
        let third = pings.answers.first(from, Duration::from_secs(60), |&sequence| sequence >= 3).await;
        assert!(third.is_some(), "ping printed no answer");
    }
}
