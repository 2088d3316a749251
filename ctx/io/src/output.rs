//! Standard output and standard error that never panic, in place of `println!` and `eprintln!`.
//!
//! `println!` panics when the reader has gone (`ffs status | head -1`) and when the device is full. Here a failed write is
//! remembered, the rest of the output is dropped, and the program goes on to its end:
//!
//! - **The reader has gone** (EPIPE): the program ends quietly, with the exit status that it would have had. It is not cut
//!   off where it prints: `bench gate A B | head -1` still says by its status that B is worse, and a run that is measured
//!   for an hour does not end because nobody watches.
//! - **Any other error** (ENOSPC, EIO): [`end`] says what failed, and the program ends with status 1.
//! - **Standard error**: what cannot be written is dropped, since there is nobody left to tell. A daemon outlives its
//!   terminal.
//!
//! Use [`outln!`](crate::outln) and [`errln!`](crate::errln); `main` returns what [`end`] gives; [`stderr`] is the writer for
//! `tracing`, whose own would panic when standard error is gone.

use std::error::Error;
use std::fmt::{Arguments, Display};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a message waits for room in a standard error that does not block, in milliseconds; then it is dropped.
const PATIENCE_MS: u16 = 1000;

/// The exit status of wrong usage (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;

/// Why nothing more is written to standard output.
static LOST: Mutex<Option<io::Error>> = Mutex::new(None);

/// Writes a line to standard output, formatted as by `format!`.
#[macro_export]
macro_rules! outln {
    ($($words:tt)*) => { $crate::output::line(::std::format_args!($($words)*)) };
}

/// Writes a line to standard error, formatted as by `format!`.
#[macro_export]
macro_rules! errln {
    ($($words:tt)*) => { $crate::output::error_line(::std::format_args!($($words)*)) };
}

/// Writes a line to standard output; see [`outln!`](crate::outln).
pub fn line(words: Arguments<'_>) {
    text(&format!("{words}\n"));
}

/// Writes a line to standard error; see [`errln!`](crate::errln).
pub fn error_line(words: Arguments<'_>) {
    let text = format!("{words}\n");
    let _ = stderr().write_all(text.as_bytes());
}

/// Writes text to standard output as it is.
pub fn text(text: &str) {
    bytes(text.as_bytes());
}

/// Writes bytes to standard output as they are.
pub fn bytes(bytes: &[u8]) {
    let mut lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    if lost.is_none() {
        *lost = write_all(io::stdout().as_fd(), bytes, PollTimeout::NONE).err();
    }
}

/// The status to end with: `code`, or 1 when output was lost to anything but a reader who has gone, which is then said.
/// `program` is the name that messages begin with.
#[must_use = "the exit status says whether the output is whole"]
pub fn end(program: &str, code: ExitCode) -> ExitCode {
    let lost = LOST.lock().unwrap_or_else(PoisonError::into_inner);
    match lost.as_ref().and_then(complaint) {
        None => code,
        Some(error) => {
            errln!("{program}: cannot write to standard output: {error}; what was written is not all of it");
            ExitCode::FAILURE
        }
    }
}

/// What is to be said about lost output: nothing about a reader who has gone.
fn complaint(error: &io::Error) -> Option<&dyn Display> {
    (error.kind() != ErrorKind::BrokenPipe).then_some(error)
}

/// An error with its causes, outermost first. A cause that was already said is left out: many errors have the words of
/// their source in their own.
#[must_use]
pub fn reason(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

/// Something that was asked for makes no sense, which is found only after the command line was parsed.
#[derive(Debug)]
pub struct Misuse(pub String);

impl Display for Misuse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Misuse {}

/// The status to end with because of an error: 64 for a [`Misuse`], else 1.
#[must_use = "wrong usage has a status of its own"]
pub fn status(error: &(dyn Error + 'static)) -> ExitCode {
    if error.is::<Misuse>() { ExitCode::from(USAGE) } else { ExitCode::FAILURE }
}

/// Prints what clap has to say (help, version, wrong usage) and gives the status to end with: 64 for wrong usage.
#[must_use = "wrong usage has a status of its own"]
pub fn usage(program: &str, error: &clap::Error) -> ExitCode {
    let said = error.render();
    let words = |terminal: bool| if terminal { said.ansi().to_string() } else { said.to_string() };
    if error.use_stderr() {
        let _ = stderr().write_all(words(coloured(&io::stderr())).as_bytes());
        return ExitCode::from(USAGE);
    }
    text(&words(coloured(&io::stdout())));
    end(program, ExitCode::SUCCESS)
}

/// Whether a stream shows colours, as most programs see it (<https://no-color.org>).
fn coloured(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    stream.is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb")
}

/// Standard error as a writer that never fails; what cannot be written is dropped.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

/// Standard error for a logger: `with_writer(ctx_io::output::stderr)`.
pub fn stderr() -> Stderr {
    Stderr
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = write_all(io::stderr().as_fd(), bytes, PollTimeout::from(PATIENCE_MS));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes everything. A descriptor that does not block, as another program may have left it, is waited for.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8], patience: PollTimeout) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => match poll(&mut [PollFd::new(to, PollFlags::POLLOUT)], patience) {
                Ok(0) => return Err(ErrorKind::WouldBlock.into()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use super::*;

    #[derive(Debug)]
    struct Outer(&'static str, io::Error);

    impl Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        let said = |outer| reason(&Outer(outer, io::Error::other("no such disc")));
        assert_eq!(said("cannot read"), "cannot read: no such disc");
        assert_eq!(said("cannot read (no such disc); insert it"), "cannot read (no such disc); insert it");
    }

    #[test]
    fn a_reader_who_has_gone_is_no_complaint_and_a_full_device_is() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let error = write_all(writer.as_fd(), b"x", PollTimeout::NONE).unwrap_err();
        assert!(complaint(&error).is_none(), "{error}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let error = write_all(full.as_fd(), b"x", PollTimeout::NONE).unwrap_err();
        assert!(complaint(&error).unwrap().to_string().contains("No space left"), "{error}");
    }

    #[test]
    fn a_pipe_that_does_not_block_gets_everything() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (mut reader, writer) = io::pipe().unwrap();
        fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        // More than a pipe holds.
        let text = vec![b'x'; 1 << 20];
        let expected = text.clone();
        let reading = std::thread::spawn(move || {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            read
        });
        write_all(writer.as_fd(), &text, PollTimeout::NONE).unwrap();
        drop(writer);
        assert!(reading.join().unwrap() == expected);
    }

    #[test]
    fn a_log_that_nobody_reads_is_waited_for_only_so_long() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (_reader, writer) = io::pipe().unwrap();
        fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let error = write_all(writer.as_fd(), &vec![b'x'; 1 << 20], PollTimeout::from(1_u16)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
}
