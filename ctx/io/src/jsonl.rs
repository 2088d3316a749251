//! Logs of records, one JSON object a line, that survive a torn line.
//!
//! A power cut or a full disk leaves the first part of a line at the end of the file. A record that were appended there would
//! be lost with it, and readers that stop at a bad line would lose everything. So, for every log of this project:
//!
//! - **A writer never cuts.** Where the file does not end with a newline, its first record begins with one: the torn part
//!   becomes a line of its own. Nothing is removed, since what looks torn may be what another writer is just writing.
//!   The same after a write of its own that failed half way.
//! - **A record is one write(2)** to a file opened for appending, so that writers do not mix.
//! - **A reader skips what it cannot read.** A last line without a newline is torn, or still being written: that is no
//!   fault. A damaged line before it is reported with its number ([`Log::damaged`]), and all others are read. Empty lines
//!   mean nothing.
//!
//! The bench's `events.jsonl` has one writer, which holds a lock, and checksums over every line: there the torn part is cut
//! off, and a damaged line is an error, since results must not be altered.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::{bounded, durable};

/// A log that is open for appending.
#[derive(Debug)]
pub struct Appender {
    file: File,
    /// Whether the next record must begin with a newline, since the file ends within a line.
    torn: bool,
}

impl Appender {
    /// Opens a log, which is made with these permission bits when it is missing. A regular file or a character device, like
    /// a terminal; a pipe would hold up the writer whenever nobody reads.
    ///
    /// # Errors
    /// What open(2) returns; [`io::ErrorKind::InvalidInput`] for anything else than such a file or device.
    pub fn open(path: &Path, mode: u32) -> io::Result<Self> {
        let wrong = |kind: &str| {
            let what = format!("{kind} cannot be a log: name a regular file or a character device");
            io::Error::new(io::ErrorKind::InvalidInput, what)
        };
        // Does not wait for a reader of a pipe.
        let flags = OFlag::O_NONBLOCK.bits();
        let opened = OpenOptions::new().append(true).create(true).mode(mode).custom_flags(flags).open(path);
        let file = opened.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENXIO) => wrong("a pipe that nobody reads, or a socket,"),
            _ => error,
        })?;
        let kind = file.metadata()?.file_type();
        if kind.is_fifo() {
            return Err(wrong("a pipe"));
        }
        if !kind.is_file() && !kind.is_char_device() {
            return Err(wrong("a block device"));
        }
        // A terminal is waited for, as by everybody who writes to it.
        let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL)?);
        fcntl(&file, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        Ok(Self::resume(file))
    }

    /// Goes on in a log that another program opened for appending.
    pub fn resume(file: File) -> Self {
        // Where it cannot be told (it may be written and not read), it is taken for torn: an empty line means nothing.
        let torn = is_torn(&file).unwrap_or(true);
        Self { file, torn }
    }

    /// Appends a record.
    ///
    /// # Errors
    /// What write(2) returns; a record of which only a part was written is lost, and spoils no other.
    pub fn append(&mut self, record: &impl Serialize) -> io::Result<()> {
        let mut line = if self.torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut line, record)?;
        line.push(b'\n');
        // Until it is known to be whole.
        self.torn = true;
        self.file.write_all(&line)?;
        self.torn = false;
        Ok(())
    }

    /// Makes what was appended durable.
    ///
    /// # Errors
    /// What fdatasync(2) returns, unless that it is not supported.
    pub fn sync(&self) -> io::Result<()> {
        durable::sync_data(&self.file)
    }

    /// The file's descriptor, to hand it to another program.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Whether a file ends within a line; what is no regular file never does.
fn is_torn(file: &File) -> io::Result<bool> {
    let meta = file.metadata()?;
    if !meta.is_file() || meta.len() == 0 {
        return Ok(false);
    }
    // The same file, opened for reading.
    let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let mut last = [0];
    again.read_exact_at(&mut last, meta.len() - 1)?;
    Ok(last != *b"\n")
}

/// What was read of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log<T> {
    /// The records, in order.
    pub records: Vec<T>,
    /// The lines that are not records.
    pub damaged: Vec<Damaged>,
    /// Whether the last line has no end; it is not among the records.
    pub torn: bool,
}

/// A line that is not a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The log.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl std::fmt::Display for Damaged {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}:{}: not a record, left out: {}", self.path.display(), self.line, self.what)
    }
}

/// Reads a log.
///
/// # Errors
/// What reading returns; [`bounded::TooLarge`] beyond [`bounded::LOG`].
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Log<T>> {
    Ok(parse(path, &bounded::read(path, bounded::LOG)?))
}

/// Reads the bytes of a log; `path` is what messages call it.
pub fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Log<T> {
    let mut log = Log { records: Vec::new(), damaged: Vec::new(), torn: false };
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let Some(line) = line.strip_suffix(b"\n") else {
            log.torn = true;
            break;
        };
        if line.trim_ascii().is_empty() {
            continue;
        }
        match serde_json::from_slice(line) {
            Ok(record) => log.records.push(record),
            Err(error) => {
                log.damaged.push(Damaged { path: path.to_owned(), line: index + 1, what: error.to_string() });
            }
        }
    }
    log
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Note {
        text: String,
        number: u32,
    }

    fn note(number: u32) -> Note {
        Note { text: format!("a\nb{number}"), number }
    }

    #[test]
    fn a_log_cut_at_any_byte_loses_no_record_that_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Appender::open(&path, 0o600).unwrap();
        log.append(&note(1)).unwrap();
        log.append(&note(2)).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in 0..=whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let before: Log<Note> = read(&path).unwrap();
            assert!(before.damaged.is_empty(), "cut at {length}");
            Appender::open(&path, 0o600).unwrap().append(&note(3)).unwrap();
            let after: Log<Note> = read(&path).unwrap();
            // A line that lacks only its newline is whole.
            let found = after.records.len() + after.damaged.len();
            assert_eq!(found, before.records.len() + usize::from(before.torn) + 1, "cut at {length}");
            assert_eq!(after.records[..before.records.len()], before.records);
            assert_eq!(after.records.last(), Some(&note(3)), "cut at {length}");
        }
    }

    #[test]
    fn a_damaged_line_is_named_and_the_others_are_read() {
        let log: Log<Note> = parse(
            Path::new("log"),
            b"{\"text\":\"a\",\"number\":1}\n\xff\n\n{\"text\":\"b\",\"number\":2}\n{\"te",
        );
        assert_eq!(log.records.len(), 2);
        assert!(log.torn);
        let said: Vec<String> = log.damaged.iter().map(ToString::to_string).collect();
        assert!(said.len() == 1 && said[0].starts_with("log:2: not a record"), "{said:?}");
    }

    #[test]
    fn a_pipe_is_refused_whether_or_not_somebody_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let open = |path: PathBuf| {
            let (tx, rx) = std::sync::mpsc::channel();
            std::thread::spawn(move || tx.send(Appender::open(&path, 0o600)));
            rx.recv_timeout(std::time::Duration::from_secs(60)).expect("does not hang").unwrap_err()
        };
        let error = open(path.clone());
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with("a pipe that nobody reads"), "{error}");
        let flags = OFlag::O_NONBLOCK.bits();
        let _reader = OpenOptions::new().read(true).custom_flags(flags).open(&path).unwrap();
        let error = open(path);
        assert!(error.to_string().starts_with("a pipe cannot be a log: name a regular"), "{error}");
    }

    #[test]
    fn a_log_is_waited_for_when_it_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let log = Appender::open(&dir.path().join("log"), 0o600).unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&log.file, FcntlArg::F_GETFL).unwrap());
        assert!(flags.contains(OFlag::O_APPEND) && !flags.contains(OFlag::O_NONBLOCK), "{flags:?}");
    }

    #[test]
    fn what_is_no_file_is_written_to_as_it_is() {
        Appender::open(Path::new("/dev/null"), 0o600).unwrap().append(&note(1)).unwrap();
        let mut full = Appender::open(Path::new("/dev/full"), 0o600).unwrap();
        assert!(full.append(&note(1)).is_err() && full.torn);
    }
}
