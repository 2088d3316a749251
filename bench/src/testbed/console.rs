//! A machine's serial console: kept whole in a file, its last lines at hand, and read for the line
//! that says that the machine is ready.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::sync::watch;
use tokio::time::timeout;

/// What a machine writes to its console when its services answer; the images have the unit that does it.
pub const READY: &str = "bench: ready after";

/// Lines kept for an error message.
const TAIL: usize = 25;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Booting,
    Ready,
    Closed,
}

/// The console of one machine.
pub struct Console {
    tail: Arc<Mutex<VecDeque<String>>>,
    state: watch::Receiver<State>,
}

impl Console {
    /// Starts copying `stream` to `file`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub async fn follow(
        stream: impl AsyncRead + Unpin + Send + 'static,
        file: &Path,
    ) -> std::io::Result<Console> {
        let mut file = tokio::fs::File::create(file).await?;
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (sender, state) = watch::channel(State::Booting);
        let lines = Arc::clone(&tail);
        tokio::spawn(async move {
            let mut reader = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(reader.read_until(b'\n', &mut line).await, Ok(n) if n > 0) {
                // The console is evidence, not a result: a full disk must not stop the machine.
                let _ = file.write_all(&line).await;
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                if text.contains(READY) {
                    sender.send_replace(State::Ready);
                }
                let mut tail = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(text);
                line.clear();
            }
            let _ = file.flush().await;
            sender.send_replace(State::Closed);
        });
        Ok(Console { tail, state })
    }

    /// Waits until the machine says that it is ready.
    ///
    /// # Errors
    /// A sentence: it ended, or the deadline passed.
    pub async fn ready(&self, deadline: Duration) -> Result<(), String> {
        let mut state = self.state.clone();
        let seen = timeout(deadline, state.wait_for(|s| *s != State::Booting)).await;
        match seen {
            Ok(Ok(state)) if *state == State::Ready => Ok(()),
            Ok(_) => Err("it ended while it was booting".to_owned()),
            Err(_) => Err(format!("it did not say {READY} within {} s", deadline.as_secs())),
        }
    }

    /// Its last lines.
    pub fn tail(&self) -> String {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_is_seen_and_the_tail_is_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let text: String = (0..40).map(|i| format!("line {i}\r\n")).collect();
        let stream = std::io::Cursor::new(format!("{text}bench: ready after 9 s\r\nlast\n").into_bytes());
        let console = Console::follow(stream, &dir.path().join("console")).await.unwrap();
        // The stream has ended, so its final state may be either; both come after the text.
        let mut state = console.state.clone();
        state.wait_for(|s| *s == State::Closed).await.unwrap();
        assert!(console.tail().ends_with("    bench: ready after 9 s\n    last"));
        assert!(!console.tail().contains("line 10\n"));
    }

    #[tokio::test]
    async fn a_machine_that_ends_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let stream = std::io::Cursor::new(b"Kernel panic\n".to_vec());
        let console = Console::follow(stream, &dir.path().join("console")).await.unwrap();
        let error = console.ready(Duration::from_secs(60)).await.unwrap_err();
        assert!(error.contains("ended"), "{error}");
        assert!(console.tail().contains("Kernel panic"));
    }
}
