//! A client of the QEMU Machine Protocol, as far as the bench needs it: commands, one at a time.
//!
//! Reference: QEMU's `docs/interop/qmp-spec.rst`.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::machine::Accelerator;

/// How long QEMU may take to answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why a command was not answered.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed or closed.
    #[error("QMP: {0}")]
    Io(#[from] std::io::Error),
    /// QEMU closed the connection.
    #[error("QMP: QEMU closed the connection")]
    Closed,
    /// No answer in time.
    #[error("QMP: no answer to {command} within {} s", limit.as_secs_f64())]
    Silent {
        /// What was asked.
        command: String,
        /// How long QEMU had.
        limit: Duration,
    },
    /// QEMU refused the command.
    #[error("QMP: {command}: {message}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's description.
        message: String,
    },
    /// Not JSON.
    #[error("QMP: {0}")]
    Json(#[from] serde_json::Error),
}

/// A connection that has left capabilities negotiation.
pub struct Qmp {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    limit: Duration,
}

impl Qmp {
    /// Connects to QEMU's socket.
    ///
    /// # Errors
    /// When nothing listens there, nobody answers, or the greeting is not QMP's.
    pub async fn connect(socket: &Path) -> Result<Qmp, QmpError> {
        Self::connect_within(socket, DEADLINE).await
    }

    async fn connect_within(socket: &Path, limit: Duration) -> Result<Qmp, QmpError> {
        let greeted = within(limit, "the connection", async {
            let (reader, writer) = UnixStream::connect(socket).await?.into_split();
            let mut qmp = Qmp { lines: BufReader::new(reader).lines(), writer, limit };
            qmp.lines.next_line().await?.ok_or(QmpError::Closed)?;
            Ok(qmp)
        });
        let mut qmp = greeted.await?;
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Executes one command and returns its `return` value; events in between are passed over.
    ///
    /// # Errors
    /// What QEMU refused, or that it did not answer.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        within(self.limit, command, async {
            self.writer.write_all(format!("{request}\n").as_bytes()).await?;
            loop {
                let line = self.lines.next_line().await?.ok_or(QmpError::Closed)?;
                let mut value: Value = serde_json::from_str(&line)?;
                if let Some(error) = value.get("error") {
                    let message = error["desc"].as_str().unwrap_or("no description").to_owned();
                    return Err(QmpError::Refused { command: command.to_owned(), message });
                }
                if value.get("return").is_some() {
                    return Ok(value["return"].take());
                }
            }
        })
        .await
    }

    /// The accelerator in use, as QEMU itself reports it.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub async fn accelerator(&mut self) -> Result<Accelerator, QmpError> {
        let kvm = self.execute("query-kvm", Value::Null).await?;
        Ok(if kvm["enabled"].as_bool() == Some(true) { Accelerator::Kvm } else { Accelerator::Tcg })
    }
}

/// What was asked and answered, if it was within the limit.
async fn within<T>(
    limit: Duration,
    command: &str,
    answer: impl Future<Output = Result<T, QmpError>>,
) -> Result<T, QmpError> {
    let silent = |_| QmpError::Silent { command: command.to_owned(), limit };
    timeout(limit, answer).await.map_err(silent)?
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    /// A QEMU that says `said` to whoever connects, and then nothing; nor does it read.
    fn qemu(said: &'static str) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(said.as_bytes()).await.unwrap();
            std::future::pending::<()>().await;
            drop(stream);
        });
        (folder, path)
    }

    #[tokio::test]
    async fn a_qemu_that_accepts_and_says_nothing_is_given_up() {
        let (_folder, path) = qemu("");
        let error = Qmp::connect_within(&path, SOON).await.err().unwrap();
        assert_eq!(error.to_string(), "QMP: no answer to the connection within 0.05 s");
    }

    #[tokio::test]
    async fn one_that_greets_and_then_says_nothing_too() {
        let (_folder, path) = qemu("{\"QMP\": {}}\n");
        let error = Qmp::connect_within(&path, SOON).await.err().unwrap();
        assert_eq!(error.to_string(), "QMP: no answer to qmp_capabilities within 0.05 s");
    }

    #[tokio::test]
    async fn one_that_does_not_read_is_not_written_to_without_end() {
        let (_folder, path) = qemu("{\"QMP\": {}}\n{\"return\": {}}\n");
        let mut qmp = Qmp::connect_within(&path, Duration::from_secs(600)).await.unwrap();
        qmp.limit = SOON;
        let text = "x".repeat(16 << 20);
        let error = qmp.execute("large", json!({ "text": text })).await.unwrap_err();
        assert_eq!(error.to_string(), "QMP: no answer to large within 0.05 s");
    }
}
