//! What ping and iperf3 measured, read from what they print.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Round trips as iputils' ping saw them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// Packets sent.
    pub sent: u32,
    /// Packets that came back.
    pub received: u32,
    /// Shortest round trip, in ms.
    pub min: f64,
    /// Mean, in ms.
    pub avg: f64,
    /// Longest, in ms.
    pub max: f64,
    /// ping's mdev: the population standard deviation, in ms.
    pub mdev: f64,
    /// Median of the single round trips, in ms: what verdicts use, since on a busy machine a few late ones move the mean.
    /// The mean where ping was quiet.
    pub median: f64,
}

/// One direction of a TCP test by iperf3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Iperf {
    /// TCP payload that arrived, in bit/s.
    pub rate: f64,
    /// Segments that were sent again.
    pub retransmits: u64,
    /// How long it took, in s.
    pub seconds: f64,
}

/// A path between two machines as it was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Path {
    /// Round trips.
    pub ping: Ping,
    /// From the machine that measures to the other.
    pub up: Iperf,
    /// From the other to the machine that measures.
    pub down: Iperf,
}

impl Path {
    /// The slower direction's rate, in bit/s.
    pub fn rate(&self) -> f64 {
        self.up.rate.min(self.down.rate)
    }

    /// The median round trip.
    pub fn round_trip(&self) -> Duration {
        Duration::try_from_secs_f64(self.ping.median / 1000.0).unwrap_or_default()
    }
}

/// Output of ping or iperf3 that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MeasureError {
    /// No packet came back.
    #[error("ping: none of {sent} packets came back: is the other machine up, and on this network?")]
    Silent {
        /// Packets sent.
        sent: u32,
    },
    /// The text is not what the program prints.
    #[error("{program}: cannot read its output: {reason}")]
    Unreadable {
        /// `ping` or `iperf3`.
        program: &'static str,
        /// Why.
        reason: String,
    },
    /// iperf3 says what went wrong in its own words.
    #[error("iperf3: {0}")]
    Iperf(String),
}

impl Ping {
    /// Reads the output of iputils' `ping -c N`, quiet or not.
    ///
    /// # Errors
    /// [`MeasureError`] when nothing came back or the text is something else.
    pub fn parse(text: &str) -> Result<Self, MeasureError> {
        let unreadable = |reason: &str| MeasureError::Unreadable { program: "ping", reason: reason.into() };
        let line = text
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .ok_or_else(|| unreadable("no line with \"packets transmitted\""))?;
        let count = |field: &str| {
            let words = field.split_whitespace().next()?;
            words.parse::<u32>().ok()
        };
        let mut fields = line.split(',');
        let sent = fields.next().and_then(count).ok_or_else(|| unreadable(line))?;
        let received = fields.next().and_then(count).ok_or_else(|| unreadable(line))?;
        if received == 0 {
            return Err(MeasureError::Silent { sent });
        }
        let line = text
            .lines()
            .find(|line| line.starts_with("rtt ") || line.starts_with("round-trip "))
            .ok_or_else(|| unreadable("no line with \"rtt min/avg/max/mdev\""))?;
        let numbers = line.split('=').nth(1).and_then(|rest| rest.split_whitespace().next());
        let numbers: Vec<f64> =
            numbers.unwrap_or_default().split('/').filter_map(|n| n.parse().ok()).collect();
        let [min, avg, max, mdev] = numbers[..] else { return Err(unreadable(line)) };
        let times =
            text.split("time=").skip(1).filter_map(|rest| rest.split_whitespace().next()?.parse().ok());
        let median = median(times.collect()).unwrap_or(avg);
        Ok(Self { sent, received, min, avg, max, mdev, median })
    }

    /// Share of the packets that did not come back, 0 to 1.
    pub fn loss(&self) -> f64 {
        1.0 - f64::from(self.received) / f64::from(self.sent.max(1))
    }
}

fn median(mut times: Vec<f64>) -> Option<f64> {
    times.sort_by(f64::total_cmp);
    let middle = times.len() / 2;
    match times.len() {
        0 => None,
        n if n % 2 == 1 => Some(times[middle]),
        _ => Some(f64::midpoint(times[middle - 1], times[middle])),
    }
}

impl Iperf {
    /// Reads the output of `iperf3 -c … -J`.
    ///
    /// # Errors
    /// [`MeasureError`] with iperf3's own words, or when the text is something else.
    pub fn parse(text: &str) -> Result<Self, MeasureError> {
        #[derive(Deserialize)]
        struct Report {
            error: Option<String>,
            #[serde(default)]
            end: End,
        }
        #[derive(Deserialize, Default)]
        struct End {
            sum_sent: Option<Sum>,
            sum_received: Option<Sum>,
        }
        #[derive(Deserialize)]
        struct Sum {
            bits_per_second: f64,
            seconds: f64,
            #[serde(default)]
            retransmits: u64,
        }
        let unreadable = |reason: String| MeasureError::Unreadable { program: "iperf3", reason };
        let report: Report = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
        if let Some(error) = report.error {
            return Err(MeasureError::Iperf(error));
        }
        let received = report.end.sum_received.ok_or_else(|| unreadable("no end.sum_received".into()))?;
        Ok(Self {
            rate: received.bits_per_second,
            retransmits: report.end.sum_sent.map_or(0, |sent| sent.retransmits),
            seconds: received.seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_ping() {
        let text = "50 packets transmitted, 50 received, 0% packet loss, time 9839ms\n\
                    rtt min/avg/max/mdev = 50.694/52.161/53.657/0.666 ms\n";
        let ping = Ping::parse(text).unwrap();
        assert_eq!((ping.sent, ping.received), (50, 50));
        assert_eq!((ping.min, ping.avg, ping.max, ping.mdev), (50.694, 52.161, 53.657, 0.666));
        assert!((ping.median - ping.avg).abs() < 1e-9);
    }

    #[test]
    fn the_median_does_not_follow_a_late_packet() {
        let text = "64 bytes from 198.18.1.1: icmp_seq=1 ttl=64 time=1.00 ms\n\
                    64 bytes from 198.18.1.1: icmp_seq=2 ttl=64 time=300 ms\n\
                    64 bytes from 198.18.1.1: icmp_seq=4 ttl=64 time=1.20 ms\n\
                    4 packets transmitted, 3 received, +1 errors, 25% packet loss, time 3ms\n\
                    rtt min/avg/max/mdev = 1.000/100.733/300.000/140.9 ms, pipe 2\n";
        // "+1 errors" stands between the counts and the loss.
        let ping = Ping::parse(text).unwrap();
        assert!((ping.median - 1.2).abs() < 1e-9);
        assert!((ping.loss() - 0.25).abs() < 1e-9);
    }

    #[test]
    fn silence_and_nonsense_are_errors() {
        let text = "20 packets transmitted, 0 received, 100% packet loss, time 19ms\n";
        assert_eq!(Ping::parse(text).unwrap_err(), MeasureError::Silent { sent: 20 });
        assert!(Ping::parse("ping: unknown host").is_err());
        assert!(Ping::parse("x packets transmitted, y received").is_err());
    }

    #[test]
    fn a_real_report_of_iperf3() {
        let iperf = Iperf::parse(include_str!("fixtures/iperf3.json")).unwrap();
        assert!((4e6..5e6).contains(&iperf.rate), "{iperf:?}");
        assert!((2.0..6.0).contains(&iperf.seconds), "{iperf:?}");
    }

    #[test]
    fn an_error_of_iperf3_is_handed_on() {
        let text = r#"{"start":{},"intervals":[],"end":{},"error":"unable to connect to server: Connection refused"}"#;
        let error = Iperf::parse(text).unwrap_err().to_string();
        assert_eq!(error, "iperf3: unable to connect to server: Connection refused");
        assert!(Iperf::parse("").is_err());
    }
}
