//! Lines of `events.jsonl`: written with a checksum, read up to a torn last one.
//!
//! A line is written with its newline by one call. So a program that is killed in the middle leaves a last line without a
//! newline, and nothing else: a line that has one and is bad was changed afterwards, wherever it stands.

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Doing as _, StoreError};

/// Kinds of events that the store itself writes; others are free.
pub mod kind {
    /// The folder was made.
    pub const RUN_STARTED: &str = "run_started";
    /// A run that was cut off goes on.
    pub const RUN_RESUMED: &str = "run_resumed";
    /// The run has ended.
    pub const RUN_ENDED: &str = "run_ended";
    /// A trial begins; the payload is the trial.
    pub const TRIAL_STARTED: &str = "trial_started";
    /// A trial has ended; the payload has `order`, `outcome` and `reason`.
    pub const TRIAL_ENDED: &str = "trial_ended";
    /// Samples; the payload is a list of them.
    pub const SAMPLES: &str = "samples";
    /// Something was seen in a trial; the payload has the trial's `order` and the observation.
    pub const OBSERVED: &str = "observed";
    /// A stream of a trial was written; the payload has `order`, `name`, `file`, `rows` and `sha256`.
    pub const STREAM: &str = "stream";
    /// The machines are up; the payload is what they are. One for each boot of the run.
    pub const ENVIRONMENT: &str = "environment";
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Its number, from 0 without gaps.
    pub seq: u64,
    /// When, in UTC by the wall clock, e.g. `2026-11-22T13:15:00.123456Z`.
    pub t_utc: String,
    /// When, in nanoseconds of `CLOCK_MONOTONIC`; comparable within one boot.
    pub t_mono_ns: u64,
    /// What kind of thing: one of [`kind`] or a driver's own.
    pub kind: String,
    /// What is to be said about it.
    pub payload: Value,
}

const CRC: &str = ",\"crc32\":\"";

impl Event {
    /// The line with its checksum and newline.
    pub(super) fn to_line(&self) -> String {
        // An Event has string keys and no maps with others, so it always serializes.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.pop();
        let crc = crc32fast::hash(line.as_bytes());
        format!("{line}{CRC}{crc:08x}\"}}\n")
    }

    /// The payload as what it should be. `run` is the folder of the run, for the message.
    ///
    /// # Errors
    /// It is something else.
    pub fn read<T: DeserializeOwned>(&self, run: &Path) -> Result<T, StoreError> {
        T::deserialize(&self.payload).map_err(|error| StoreError::Damaged {
            path: run.join(super::EVENTS),
            line: usize::try_from(self.seq).unwrap_or(usize::MAX).saturating_add(1),
            what: format!("its payload is no `{}`: {error}", self.kind),
        })
    }

    fn from_line(line: &str) -> Result<Self, String> {
        let (body, tail) = line.rsplit_once(CRC).ok_or("it has no checksum")?;
        let expected = tail.strip_suffix("\"}").ok_or("it does not end as an event does")?;
        let actual = format!("{:08x}", crc32fast::hash(body.as_bytes()));
        if expected != actual {
            return Err(format!("its checksum is {actual} and should be {expected}"));
        }
        serde_json::from_str(&format!("{body}}}")).map_err(|error| format!("it is not an event: {error}"))
    }
}

/// What was read from a log.
#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    /// The events, in order.
    pub events: Vec<Event>,
    /// Bytes of the lines that are whole; what follows is a torn one.
    pub whole_bytes: u64,
    /// The torn last line, if there is one.
    pub torn: Option<Torn>,
}

/// The last line of a log whose writer was killed while it wrote it: it has no newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The log.
    pub path: PathBuf,
    /// Number of the line, from 1.
    pub line: usize,
    /// How much of it was written, in bytes.
    pub bytes: u64,
}

impl fmt::Display for Torn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, bytes } = self;
        write!(f, "{}:{line}: the run was cut off in the middle of this line ({bytes} bytes)", path.display())
    }
}

/// Reads a log up to its torn last line, if it has one.
///
/// # Errors
/// It cannot be read, or a line that ends with a newline is bad: then with its number.
pub fn read_log(path: &Path) -> Result<Log, StoreError> {
    let bytes = ctx_io::bounded::read(path, ctx_io::bounded::LOG).doing("read", path)?;
    let mut log = Log { events: Vec::new(), whole_bytes: 0, torn: None };
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let damaged = |what: String| StoreError::Damaged { path: path.to_owned(), line: index + 1, what };
        let Some(text) = line.strip_suffix(b"\n") else {
            log.torn = Some(Torn { path: path.to_owned(), line: index + 1, bytes: line.len() as u64 });
            break;
        };
        let event = std::str::from_utf8(text)
            .map_err(|error| format!("it is not text: {error}"))
            .and_then(Event::from_line)
            .map_err(damaged)?;
        if event.seq != index as u64 {
            return Err(damaged(format!("event {} stands where {index} should", event.seq)));
        }
        log.events.push(event);
        log.whole_bytes += line.len() as u64;
    }
    Ok(log)
}

/// Positions in the plan of the trials that ended; one that was done again is there once.
pub(crate) fn ended_trials(events: &[Event]) -> BTreeSet<u32> {
    events
        .iter()
        .filter(|event| event.kind == kind::TRIAL_ENDED)
        .filter_map(|event| u32::try_from(event.payload.get("order")?.as_u64()?).ok())
        .collect()
}

/// Both clocks at one moment.
pub(super) struct Now {
    wall_us: u64,
    mono_ns: u64,
}

impl Now {
    pub(super) fn read() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Linux always has this clock; without it the times would just be zero.
        let mono = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        Self {
            wall_us: u64::try_from(wall.as_micros()).unwrap_or(u64::MAX),
            mono_ns: u64::try_from(mono.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    pub(super) const fn mono_ns(&self) -> u64 {
        self.mono_ns
    }

    /// `2026-11-22T13:15:00.123456Z`
    pub(super) fn utc(&self) -> String {
        let ((year, month, day), (hour, minute, second)) = civil(self.wall_us / 1_000_000);
        let micros = self.wall_us % 1_000_000;
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
    }

    /// `20261122T131500Z`, for names.
    pub(super) fn compact_utc(&self) -> String {
        let ((year, month, day), (hour, minute, second)) = civil(self.wall_us / 1_000_000);
        format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
    }
}

/// Date and time of day of a Unix time, by the proleptic Gregorian calendar.
fn civil(seconds: u64) -> ((u64, u64, u64), (u64, u64, u64)) {
    // Years begin in March here, so that the leap day is the last; 719 468 days lie between
    // 0000-03-01 and 1970-01-01.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let time = seconds % 86_400;
    ((year, month, day), (time / 3600, time / 60 % 60, time % 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // Checked with `date -u -d @…`.
        for (seconds, text) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_795_353_300, "20261122T131500Z"),
            (4_107_542_399, "21000228T235959Z"),
            (4_107_542_400, "21000301T000000Z"),
        ] {
            let now = Now { wall_us: seconds * 1_000_000, mono_ns: 0 };
            assert_eq!(now.compact_utc(), text);
        }
        let now = Now { wall_us: 1_795_353_300_000_042, mono_ns: 0 };
        assert_eq!(now.utc(), "2026-11-22T13:15:00.000042Z");
    }

    #[test]
    fn a_line_reads_back_whatever_is_in_it() {
        let event = Event {
            seq: 3,
            t_utc: "2026-11-22T13:15:00.000042Z".into(),
            t_mono_ns: 9,
            kind: "note".into(),
            payload: serde_json::json!({"text": "a\nb ,\"crc32\":\"00000000\"}", "n": 0.1}),
        };
        let line = event.to_line();
        assert_eq!(line.matches('\n').count(), 1);
        assert_eq!(Event::from_line(line.trim_end()), Ok(event));
        let changed = line.replace("0.1", "0.2");
        assert!(Event::from_line(changed.trim_end()).unwrap_err().contains("checksum"));
    }
}
