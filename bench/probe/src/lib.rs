//! A heartbeat from inside a guest: what a program there reads, at a steady rate.
//!
//! The bench receives the beats on its own clock. A gap between beats is time in which the guest did
//! not run (downtime); the first beat with new content is the time at which a program sees it.

pub mod schedule;

use serde::{Deserialize, Serialize};

/// Content is carried verbatim up to this many bytes; the rest is in the hash.
pub const HEAD_MAX: usize = 200;

/// One beat: one datagram.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Counts every beat sent or tried, from 0: a missing number is a lost datagram.
    pub seq: u64,
    /// Beats that were due before this one and left out, since the start: time that the guest or the
    /// program did not run.
    pub skipped: u64,
    /// `CLOCK_MONOTONIC` of the guest when the file had been read, in nanoseconds.
    pub mono_ns: u64,
    /// `CLOCK_REALTIME` of the guest at the same moment, in nanoseconds since 1970.
    pub real_ns: u64,
    /// How long open, read and close took, in nanoseconds.
    pub read_ns: u64,
    /// What was read.
    pub seen: Seen,
}

/// What reading the file gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// Its content.
    Content {
        /// FNV-1a hash of all of it, as 16 hexadecimal digits: equal content, equal hash.
        digest: String,
        /// Length in bytes.
        len: u64,
        /// The first [`HEAD_MAX`] bytes, with replacement characters where they are not UTF-8.
        head: String,
    },
    /// Reading failed; the name of the error, like `ENOENT`.
    Error(String),
}

/// Why a datagram is not a beat.
#[derive(Debug)]
pub struct NotABeat(serde_json::Error);

impl std::fmt::Display for NotABeat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not a beat of bench-probe: {}", self.0)
    }
}

impl std::error::Error for NotABeat {}

impl Beat {
    /// The datagram.
    pub fn encode(&self) -> Vec<u8> {
        // Numbers and strings: serializing cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// [`NotABeat`] for anything that [`Beat::encode`] did not make.
    pub fn decode(datagram: &[u8]) -> Result<Self, NotABeat> {
        serde_json::from_slice(datagram).map_err(NotABeat)
    }
}

impl Seen {
    /// Describes content.
    pub fn content(bytes: &[u8]) -> Self {
        let head = &bytes[..bytes.len().min(HEAD_MAX)];
        Self::Content {
            digest: format!("{:016x}", fnv1a(bytes)),
            len: bytes.len() as u64,
            head: String::from_utf8_lossy(head).into_owned(),
        }
    }
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo; offset basis and prime of draft-eastlake-fnv).
pub fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_read_back() {
        for seen in [
            Seen::content(b"{\"site\": \"local\"}\n"),
            Seen::content(&[0xff; 5000]),
            Seen::Error("EIO".into()),
        ] {
            let beat = Beat { seq: 7, skipped: 2, mono_ns: u64::MAX, real_ns: 1, read_ns: 9, seen };
            let datagram = beat.encode();
            // One datagram in one Ethernet frame: never fragmented.
            assert!(datagram.len() < 1400, "{}", datagram.len());
            assert_eq!(Beat::decode(&datagram).unwrap(), beat);
        }
        assert!(Beat::decode(b"hello").is_err());
    }

    #[test]
    fn the_hash_is_fnv1a() {
        // Test vectors of the FNV draft.
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
