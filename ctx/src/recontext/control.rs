//! The socket on which runs are asked for: a JSON line in, a JSON line out.
//!
//! ```text
//! → {"op":"trigger","domain":"g1","reason":"new key"}
//! ← {"ok":true,"records":[{…}]}
//! → {"op":"status"}
//! ← {"ok":true,"status":{…}}
//! ← {"ok":false,"error":"…"}
//! ```
//!
//! A connection may ask many things, one after the other. A question has at most 64 KiB, an answer at most 64 MiB; after a
//! longer question the connection is closed, since where the next one begins is not known. The socket is root's alone (0600): who can
//! write to it decides when a guest gets new data, not what is in it.

use std::path::Path;

use ctx_io::bounded::{self, Size, TooLarge};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::record::Record;

/// The longest question, in bytes: a name and a reason.
pub(super) const QUESTION: u64 = 64 << 10;

/// Reads a line of at most `limit` bytes, without its newline; `None` at the end.
///
/// # Errors
/// What reading returns, and [`TooLarge`].
pub(super) async fn read_line(
    from: &mut (impl AsyncBufRead + Unpin),
    limit: u64,
) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    // One more for the newline.
    if from.take(limit + 1).read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.len() as u64 > limit { Err(TooLarge { limit }.into()) } else { Ok(Some(line)) }
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// Recontextualize a domain now.
    Trigger {
        /// Its name or UUID.
        domain: String,
        /// Why, for the log.
        reason: Option<String>,
    },
    /// How the daemon stands.
    Status,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Whether it was done. A run that failed is an answer with a record that says so.
    pub ok: bool,
    /// What is wrong with the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What the run did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<Vec<Record>>,
    /// How the daemon stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

impl Answer {
    pub(super) fn error(error: impl Into<String>) -> Self {
        Self { error: Some(error.into()), ..Self::default() }
    }

    /// The answer as a line; one that nobody would read says so instead.
    pub(super) fn to_line(&self) -> Vec<u8> {
        // Plain values with string keys: serializing cannot fail.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        if line.len() as u64 > bounded::ANSWER {
            let error = format!("the answer has more than {}, the limit", Size(bounded::ANSWER));
            line = serde_json::to_vec(&Self::error(error)).unwrap_or_default();
        }
        line.push(b'\n');
        line
    }
}

/// How a daemon stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// The host's name.
    pub host: String,
    /// The libvirt that it follows.
    pub uri: String,
    /// Whether that connection stands.
    pub connected: bool,
    /// UUIDs of domains with a run under way.
    pub running: Vec<String>,
    /// Runs done since the start.
    pub done: u64,
    /// Runs skipped since the start.
    pub skipped: u64,
    /// Runs failed since the start.
    pub failed: u64,
    /// The last record of each device since the start.
    pub last: Vec<Record>,
}

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No daemon there.
    #[error("{path}: {error}; is `ctx daemon` running, and are you root?")]
    Connect {
        /// The socket.
        path: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// It went away, or is another program.
    #[error("{path}: no answer: {message}")]
    Answer {
        /// The socket.
        path: String,
        /// What happened.
        message: String,
    },
}

/// Asks the daemon at `socket`.
///
/// # Errors
/// [`ControlError`] when there is no daemon or no answer.
pub async fn ask(socket: &Path, question: &Ask) -> Result<Answer, ControlError> {
    let path = socket.display().to_string();
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|error| ControlError::Connect { path: path.clone(), error })?;
    let fail = |message: String| ControlError::Answer { path: path.clone(), message };
    let mut line = serde_json::to_vec(question).map_err(|error| fail(error.to_string()))?;
    if line.len() as u64 > QUESTION {
        return Err(fail(format!("the question has more than {}, the limit", Size(QUESTION))));
    }
    line.push(b'\n');
    let mut stream = BufReader::new(stream);
    stream.write_all(&line).await.map_err(|error| fail(error.to_string()))?;
    let answer = read_line(&mut stream, bounded::ANSWER)
        .await
        .map_err(|error| fail(error.to_string()))?
        .unwrap_or_default();
    serde_json::from_slice(&answer).map_err(|error| fail(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_is_settled() {
        let ask = |text: &str| serde_json::from_str::<Ask>(text);
        assert_eq!(ask(r#"{"op":"status"}"#).unwrap(), Ask::Status);
        assert_eq!(
            ask(r#"{"op":"trigger","domain":"g1"}"#).unwrap(),
            Ask::Trigger { domain: "g1".into(), reason: None }
        );
        assert!(ask(r#"{"op":"trigger","domain":"g1","when":"now"}"#).is_err());
        assert!(ask(r#"{"op":"stop"}"#).is_err());
        let answer = serde_json::to_string(&Answer::error("no such domain")).unwrap();
        assert_eq!(answer, r#"{"ok":false,"error":"no such domain"}"#);
    }
}
