//! Runs a program for as long as it may take and no longer.

use std::io::{self, BufRead as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

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
    let readers = [
        child.stdout.take().map(|stream| spawn_reader(stream, enough, sender.clone())),
        child.stderr.take().map(|stream| spawn_reader(stream, enough, sender)),
    ];
    // Both streams end when the program does; what is waited for is that, not a clock.
    let mut open = readers.iter().flatten().count();
    while open > 0 && receiver.recv_timeout(limit.saturating_sub(begun.elapsed())) == Ok(Said::All) {
        open -= 1;
    }
    let ended = open == 0;
    let status = if ended { Some(child.wait()?) } else { end(&mut child)? };
    let output =
        readers.into_iter().flatten().filter_map(|reader| reader.join().ok()).collect::<Vec<_>>().concat();
    Ok(Outcome { status, output, took: begun.elapsed() })
}

/// What a reader reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    /// A line that says enough.
    Enough,
    /// The stream has ended.
    All,
}

/// Nothing when it had to be killed.
fn end(child: &mut Child) -> io::Result<Option<ExitStatus>> {
    child.kill()?;
    child.wait()?;
    Ok(None)
}

fn spawn_reader(
    stream: impl io::Read + Send + 'static,
    enough: impl Fn(&str) -> bool + Send + 'static,
    said: mpsc::Sender<Said>,
) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let (mut stream, mut bytes, mut from) =
            (io::BufReader::new(stream.take(ctx_io::bounded::STATE)), Vec::new(), 0);
        // What was read before an error is still worth showing.
        while matches!(stream.read_until(b'\n', &mut bytes), Ok(count) if count > 0) {
            if enough(&String::from_utf8_lossy(&bytes[from..])) {
                let _ = said.send(Said::Enough);
            }
            from = bytes.len();
        }
        let _ = said.send(Said::All);
        String::from_utf8_lossy(&bytes).into_owned()
    })
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
