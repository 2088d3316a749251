//! Runs a program for as long as it may take and no longer.

use std::io::{self, BufRead as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::program::ended_within;

/// How long it may take to end and to close its output after a signal that it cannot ignore. A child of its own may keep the
/// output open: that is not waited for.
const KILLED: Duration = Duration::from_secs(2);

/// What came of it.
#[derive(Debug)]
pub(super) struct Outcome {
    /// How it ended; nothing when it was ended by us because its time was over.
    pub(super) status: Option<ExitStatus>,
    /// What it wrote on standard output and standard error.
    pub(super) output: String,
    /// How long it ran.
    pub(super) took: Duration,
}

impl Outcome {
    pub(super) fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The last line that says anything.
    pub(super) fn last_line(&self) -> &str {
        self.output.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default()
    }
}

/// The program dies with us, even when we are killed.
pub(super) fn command(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// Runs it to its end or until `limit`, whichever comes first, reading all that it writes.
pub(super) fn limited(command: &mut Command, limit: Duration) -> io::Result<Outcome> {
    until(command, limit, |_| false)
}

/// The same, and ends it as soon as it has written a line that says enough.
pub(super) fn until(
    command: &mut Command,
    limit: Duration,
    enough: impl Fn(&str) -> bool + Copy + Send + 'static,
) -> io::Result<Outcome> {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (sender, receiver) = mpsc::channel();
    let texts = [
        child.stdout.take().map(|stream| spawn_reader(stream, enough, sender.clone())),
        child.stderr.take().map(|stream| spawn_reader(stream, enough, sender)),
    ];
    // Both streams end when the program does; what is waited for is that, not a clock.
    let mut open = texts.iter().flatten().count();
    let mut all_read = |limit: Duration, or_enough: bool| {
        let begun = Instant::now();
        while open > 0 {
            match receiver.recv_timeout(limit.saturating_sub(begun.elapsed())) {
                Ok(Said::All) => open -= 1,
                Ok(Said::Enough) if !or_enough => {}
                _ => break,
            }
        }
        open == 0
    };
    let status = if all_read(limit, true) {
        ended_within(&mut child, limit.saturating_sub(begun.elapsed()))?
    } else {
        None
    };
    if status.is_none() {
        child.kill()?;
        ended_within(&mut child, KILLED)?;
        all_read(KILLED, false);
    }
    let output = texts.into_iter().flatten().map(|text| read_so_far(&text)).collect::<Vec<_>>().concat();
    Ok(Outcome { status, output, took: begun.elapsed() })
}

fn read_so_far(text: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&text.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

/// What a reader reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// A line that says enough.
    Enough,
    /// The stream has ended.
    All,
}

/// Reads a stream to its end. What it has read so far is there at any time.
fn spawn_reader(
    stream: impl io::Read + Send + 'static,
    enough: impl Fn(&str) -> bool + Send + 'static,
    said: mpsc::Sender<Said>,
) -> Arc<Mutex<Vec<u8>>> {
    let text = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&text);
    thread::spawn(move || {
        let mut stream = io::BufReader::new(stream.take(ctx_io::bounded::STATE));
        let mut line = Vec::new();
        // What was read before an error is still worth showing.
        while matches!(stream.read_until(b'\n', &mut line), Ok(count) if count > 0) {
            let says_enough = enough(&String::from_utf8_lossy(&line));
            shared.lock().unwrap_or_else(PoisonError::into_inner).append(&mut line);
            if says_enough {
                let _ = said.send(Said::Enough);
            }
        }
        let _ = said.send(Said::All);
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_in_time_is_read_whole() {
        let outcome =
            limited(command("sh").args(["-c", "echo out; echo err >&2; exit 3"]), Duration::from_secs(30))
                .unwrap();
        assert_eq!(outcome.status.unwrap().code(), Some(3));
        assert!(outcome.output.contains("out") && outcome.output.contains("err"));
    }

    #[test]
    fn a_child_that_keeps_the_output_open_is_not_waited_for() {
        // Its output was waited for although it has ended itself, for as long as the child lives.
        let script = "echo said; sleep 60 & exit 0";
        let outcome =
            until(command("sh").args(["-c", script]), Duration::from_secs(300), |line| line.contains("said"))
                .unwrap();
        assert_eq!(outcome.output, "said\n");
        assert!(outcome.took < Duration::from_secs(60));
    }

    #[test]
    fn what_closes_its_output_and_goes_on_is_ended() {
        let script = "exec >/dev/null 2>&1; trap '' TERM; while :; do sleep 1; done";
        let outcome = limited(command("sh").args(["-c", script]), Duration::from_millis(300)).unwrap();
        assert!(outcome.status.is_none());
    }

    #[test]
    fn what_has_said_enough_is_ended() {
        let script = "echo one; echo enough; exec sleep 600";
        let outcome = until(command("sh").args(["-c", script]), Duration::from_secs(300), |line| {
            line.contains("enough")
        })
        .unwrap();
        assert!(outcome.status.is_none());
        assert_eq!(outcome.output, "one\nenough\n");
    }

    #[test]
    fn what_does_not_end_is_ended_and_what_it_said_is_kept() {
        // A busy machine may take longer to start a program than a limit that is short.
        for limit in [300, 3_000, 30_000].map(Duration::from_millis) {
            let script = "echo hello; exec sleep 600";
            let outcome = limited(command("sh").args(["-c", script]), limit).unwrap();
            assert!(outcome.status.is_none() && outcome.took >= limit);
            if outcome.last_line() == "hello" {
                return;
            }
            assert_eq!(outcome.output, "");
        }
        panic!("it said nothing");
    }
}
