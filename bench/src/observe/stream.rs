//! Streams of a trial as they are stored: one CSV file each, compressed with gzip, with a header.
//!
//! The bench dates all rows (`at_ns`, nanoseconds of its `CLOCK_MONOTONIC`, as events have them). A beat has 20 rows a
//! second; a trial of a minute takes some ten kibibytes.

use std::io::{self, Read as _};

use bench_probe::{Beat, Seen};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::arrivals::Arrival;
use super::moment;
use crate::store::{StoreError, StoredStream};

/// Name of the stream of heartbeats.
pub const BEATS: &str = "beats";
/// Name of the stream of answers to pings.
pub const PINGS: &str = "pings";

/// The most bytes of one stream, decompressed.
const LIMIT: u64 = 1 << 30;

/// A heartbeat that arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beaten {
    /// When the kernel got it: nanoseconds of the bench's `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// [`Beat::seq`].
    pub seq: u64,
    /// [`Beat::skipped`].
    pub skipped: u64,
    /// [`Beat::mono_ns`].
    pub mono_ns: u64,
    /// [`Beat::real_ns`].
    pub real_ns: u64,
    /// [`Beat::read_ns`].
    pub read_ns: u64,
    /// The name of the error, where reading failed; empty where it did not.
    pub error: String,
    /// Length in bytes of what was read.
    pub len: u64,
    /// Its hash.
    pub digest: String,
    /// The first bytes of it.
    pub head: String,
}

impl Beaten {
    /// What a program in the guest read, without the line's end; `None` where reading failed.
    pub fn content(&self) -> Option<&str> {
        self.error.is_empty().then(|| self.head.trim_end())
    }
}

impl From<Arrival<Beat>> for Beaten {
    fn from(arrival: Arrival<Beat>) -> Self {
        let Beat { seq, skipped, mono_ns, real_ns, read_ns, seen } = arrival.value;
        let (error, len, digest, head) = match seen {
            Seen::Content { digest, len, head } => (String::new(), len, digest, head),
            Seen::Error(error) => (error, 0, String::new(), String::new()),
        };
        let at_ns = moment::nanoseconds(arrival.at);
        Beaten { at_ns, seq, skipped, mono_ns, real_ns, read_ns, error, len, digest, head }
    }
}

/// An answer to a ping that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinged {
    /// When `ping` had it: nanoseconds of the bench's `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// The number of the question.
    pub sequence: u64,
}

impl From<Arrival<u64>> for Pinged {
    fn from(arrival: Arrival<u64>) -> Self {
        Pinged { at_ns: moment::nanoseconds(arrival.at), sequence: arrival.value }
    }
}

/// The file of a stream.
///
/// # Errors
/// None that is known: rows of numbers and texts always make CSV, and memory takes it.
pub fn write(rows: &[impl Serialize], name: &str) -> Result<Vec<u8>, StoreError> {
    let mut writer = csv::Writer::from_writer(GzEncoder::new(Vec::new(), Compression::default()));
    let written = rows.iter().try_for_each(|row| writer.serialize(row).map_err(io::Error::other));
    written
        .and_then(|()| writer.into_inner().map_err(csv::IntoInnerError::into_error))
        .and_then(GzEncoder::finish)
        .map_err(|source| StoreError::Io { doing: "compress the stream", path: name.into(), source })
}

/// The rows of a stored stream.
///
/// # Errors
/// It is not a stream, a row is not as it should be, or it is longer than 1 GiB.
pub fn read<T: DeserializeOwned>(stored: &StoredStream) -> Result<Vec<T>, StoreError> {
    let damaged = |line: u64, what: String| StoreError::Damaged {
        path: stored.path.clone(),
        line: usize::try_from(line).unwrap_or(usize::MAX),
        what,
    };
    let mut text = Vec::new();
    let mut whole = GzDecoder::new(stored.bytes.as_slice()).take(LIMIT + 1);
    whole.read_to_end(&mut text).map_err(|error| damaged(1, format!("it is not gzip: {error}")))?;
    if text.len() as u64 > LIMIT {
        return Err(damaged(1, format!("it has more than {LIMIT} bytes")));
    }
    csv::Reader::from_reader(text.as_slice())
        .into_deserialize()
        .map(|row: Result<T, csv::Error>| {
            row.map_err(|error| damaged(error.position().map_or(1, csv::Position::line), error.to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn beat(at_ns: u64, error: &str, head: &str) -> Beaten {
        Beaten {
            at_ns,
            seq: at_ns / 50,
            skipped: 0,
            mono_ns: at_ns + 7,
            real_ns: u64::MAX,
            read_ns: 90_000,
            error: error.to_owned(),
            len: head.len() as u64,
            digest: "af63dc4c8601ec8c".to_owned(),
            head: head.to_owned(),
        }
    }

    fn stored(bytes: Vec<u8>) -> StoredStream {
        StoredStream { path: PathBuf::from("streams/trial-0/beats.csv.gz"), bytes }
    }

    #[test]
    fn rows_read_back_whatever_the_guest_read() {
        let rows = [beat(50, "", "remote\n"), beat(100, "ENOENT", ""), beat(150, "", "a,\"b\"\r\n\u{fffd}")];
        assert_eq!(read::<Beaten>(&stored(write(&rows, BEATS).unwrap())).unwrap(), rows);
        assert_eq!(rows[0].content(), Some("remote"));
        assert_eq!(rows[1].content(), None);
        let pings = [Pinged { at_ns: u64::MAX, sequence: 0 }];
        assert_eq!(read::<Pinged>(&stored(write(&pings, PINGS).unwrap())).unwrap(), pings);
        assert!(read::<Pinged>(&stored(write(&[] as &[Pinged], PINGS).unwrap())).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_stream_is_told_with_its_line() {
        assert!(read::<Beaten>(&stored(b"at_ns\n1\n".to_vec())).unwrap_err().to_string().contains("gzip"));
        let mut cut = write(&[beat(50, "", "x")], BEATS).unwrap();
        cut.truncate(cut.len() / 2);
        assert!(read::<Beaten>(&stored(cut)).is_err());
        let pings = stored(write(&[Pinged { at_ns: 1, sequence: 2 }], PINGS).unwrap());
        let error = read::<Beaten>(&pings).unwrap_err().to_string();
        assert!(error.contains("beats.csv.gz:2: "), "{error}");
    }

    #[test]
    fn an_hour_of_beats_is_small() {
        // Times with the jitter of real ones: the low bits do not compress.
        let jitter = |n: u64| n * 50_000_000 + (n * 2_654_435_761) % 1_000_003;
        let rows: Vec<_> = (0..72_000).map(|n| beat(jitter(n), "", "remote\n")).collect();
        let bytes = write(&rows, BEATS).unwrap().len();
        assert!(bytes < 2 << 20, "{bytes} bytes");
    }
}
