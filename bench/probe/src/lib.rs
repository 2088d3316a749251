//! The heartbeat that the bench's probe sends from inside a guest: one datagram, one JSON object.

use serde::{Deserialize, Serialize};

/// The most of a file that a beat carries, in bytes. Longer files are cut; a datagram stays below
/// the smallest MTU that matters.
pub const CONTENT: usize = 256;

/// One beat: what an ordinary program in the guest read just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beat {
    /// Counts from 0; a gap is a datagram that was lost.
    pub seq: u64,
    /// The guest's `CLOCK_MONOTONIC` after the read, in nanoseconds.
    pub mono_ns: u64,
    /// The guest's `CLOCK_REALTIME` after the read, in nanoseconds since 1970.
    pub real_ns: u64,
    /// The beginning of the file, without white space at its end; empty when it could not be read.
    pub content: String,
    /// Why it could not be read.
    pub error: Option<String>,
}

impl Beat {
    /// The datagram.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// A beat out of a datagram.
    ///
    /// # Errors
    /// When it is something else.
    pub fn decode(datagram: &[u8]) -> Result<Beat, serde_json::Error> {
        serde_json::from_slice(datagram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_survives_its_datagram() {
        let beat =
            Beat { seq: 7, mono_ns: 1, real_ns: u64::MAX, content: "site \"b\"\n é".into(), error: Some("ENOENT".into()) };
        assert_eq!(Beat::decode(&beat.encode()).unwrap(), beat);
        assert!(Beat::decode(b"{\"seq\":1}").is_err());
    }
}
