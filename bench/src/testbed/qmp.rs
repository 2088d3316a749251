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
    #[error("QMP: no answer to {0} within 30 s")]
    Silent(String),
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
}

impl Qmp {
    /// Connects to QEMU's socket.
    ///
    /// # Errors
    /// When nothing listens there, or the greeting is not QMP's.
    pub async fn connect(socket: &Path) -> Result<Qmp, QmpError> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        let mut qmp = Qmp { lines: BufReader::new(reader).lines(), writer };
        timeout(DEADLINE, qmp.lines.next_line())
            .await
            .map_err(|_| QmpError::Silent("the connection".into()))??
            .ok_or(QmpError::Closed)?;
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
        self.writer.write_all(format!("{request}\n").as_bytes()).await?;
        let answer = async {
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
        };
        timeout(DEADLINE, answer).await.map_err(|_| QmpError::Silent(command.to_owned()))?
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
