//! Sentinels for clocks that run wrong.
//!
//! An emulated machine on a busy runner may calibrate its clock wrongly, and then every duration it
//! measures is off by the same factor. So whenever a number comes from another machine's clock, the
//! bench compares that clock with its own over the same span, and a number of a wrong clock is kept
//! as an invalid sample.

use std::time::{Duration, Instant};

use bench_probe::Beat;
use serde::{Deserialize, Serialize};

use super::arrivals::Arrival;
use super::moment;
use crate::exec::{Exec, ExecError};

/// The most that a clock may differ in rate from the bench's.
const TOLERANCE: f64 = 0.03;

/// A reading of a machine's monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// When, on the bench's clock; the middle of question and answer.
    pub at_ns: u64,
    /// Half of the time between question and answer.
    pub uncertainty_ns: u64,
    /// What the machine's clock said.
    pub says_ns: u64,
}

/// Reads a machine's clock.
///
/// # Errors
/// The command's failure.
pub async fn read(machine: &impl Exec) -> Result<Reading, ExecError> {
    let asked = Instant::now();
    let text = machine.demand("read the clock", "cat /proc/uptime", Duration::from_secs(60)).await?;
    let uncertainty = asked.elapsed() / 2;
    let seconds = text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
    let says = Duration::try_from_secs_f64(seconds.unwrap_or(0.0)).unwrap_or_default();
    let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    Ok(Reading {
        at_ns: moment::nanoseconds(asked + uncertainty),
        uncertainty_ns: ns(uncertainty),
        says_ns: ns(says),
    })
}

/// How fast a machine's clock ran between two readings; `Err` with a sentence when it was wrong
/// beyond what the readings' own uncertainty explains.
///
/// # Errors
/// The sentence, for samples that came from that clock.
pub fn judge(machine: &str, first: Reading, last: Reading) -> Result<f64, String> {
    let seconds = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e9;
    // /proc/uptime has hundredths of a second.
    let slack = seconds(0, first.uncertainty_ns.saturating_add(last.uncertainty_ns)) + 0.02;
    verdict(machine, seconds(first.at_ns, last.at_ns), seconds(first.says_ns, last.says_ns), slack)
}

/// The same for the guest, by the time stamps of its heartbeat.
///
/// # Errors
/// The sentence, for samples that came from that clock.
pub fn judge_beats(beats: &[Arrival<Beat>]) -> Result<f64, String> {
    let Some((first, last)) = beats.first().zip(beats.last()) else {
        return Err("no heartbeat came, so the guest's clock could not be checked".into());
    };
    let real = last.at.duration_since(first.at).as_secs_f64();
    let said = last.value.mono_ns.saturating_sub(first.value.mono_ns) as f64 / 1e9;
    // A datagram may be late by some beats when the guest is busy.
    verdict("the guest", real, said, 0.5)
}

fn verdict(machine: &str, real: f64, said: f64, slack: f64) -> Result<f64, String> {
    let rate = if real > 0.0 { said / real } else { 1.0 };
    if (said - real).abs() <= real * TOLERANCE + slack {
        return Ok(rate);
    }
    Err(format!("the clock of {machine} ran at {rate:.3} of real time over {real:.1} s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_rate_is_told_and_a_late_answer_is_not_one() {
        let reading = |at: u64, says_ms: u64| Reading {
            at_ns: 1_000_000_000 * at,
            uncertainty_ns: 100_000_000,
            says_ns: 1_000_000 * says_ms,
        };
        assert!(judge("a", reading(0, 5000), reading(30, 35_100)).is_ok());
        let error = judge("a", reading(0, 5000), reading(30, 95_000)).unwrap_err();
        assert_eq!(error, "the clock of a ran at 3.000 of real time over 30.0 s");
    }
}
