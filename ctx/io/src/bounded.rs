//! What comes from outside is read up to a limit, and refused beyond it with a sentence that names the limit.
//!
//! A configuration that is `/dev/zero`, a hook's standard input that never ends, a log of 10 GB in place of a key: reading
//! them whole takes the machine's memory, and the program with it. The errors are [`io::Error`]s of kind
//! [`FileTooLarge`](io::ErrorKind::FileTooLarge), so that callers name the file as for any other error.
//!
//! Files of the kernel (`/proc`, `/sys`) are not from outside.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::path::Path;

/// Kibibytes.
const KIB: u64 = 1 << 10;
/// Mebibytes.
const MIB: u64 = 1 << 20;

/// The most that is read of a configuration, a recipe or a scenario: 4 MiB. Thousands of lines are 100 KiB.
pub const CONFIG: u64 = 4 * MIB;
/// The most that is read of a file of keys: 1 MiB, ten thousand of them.
pub const KEYS: u64 = MIB;
/// The most that is read of a file with a number in it, such as a process number: 4 KiB.
pub const NUMBER: u64 = 4 * KIB;
/// The most that is read of a program's own small state: 16 MiB.
pub const STATE: u64 = 16 * MIB;
/// The most that is read of a script, and the longest request over a control socket: 16 MiB.
pub const REQUEST: u64 = 16 * MIB;
/// The longest answer over a control socket: 64 MiB.
pub const ANSWER: u64 = 64 * MIB;
/// The most that is read of a domain's XML: 16 MiB. libvirt itself takes no more than 10 MB.
pub const XML: u64 = 16 * MIB;
/// The most that is read of an image in one piece: 4 GiB.
pub const IMAGE: u64 = 4096 * MIB;
/// How much is shown of the end of a program's log: 64 KiB.
pub const TAIL: u64 = 64 * KIB;
/// The most that is read of a log of records: 4 GiB.
pub const LOG: u64 = 4096 * MIB;

/// There is more than the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge {
    /// The most that is read, in bytes.
    pub limit: u64,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "it has more than {}, the most that is read", Size(self.limit))
    }
}

impl std::error::Error for TooLarge {}

impl From<TooLarge> for io::Error {
    fn from(error: TooLarge) -> Self {
        io::Error::new(io::ErrorKind::FileTooLarge, error)
    }
}

/// A number of bytes for a person: `16 MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bytes if bytes >= MIB && bytes.is_multiple_of(MIB) => write!(out, "{} MiB", bytes / MIB),
            bytes if bytes >= KIB && bytes.is_multiple_of(KIB) => write!(out, "{} KiB", bytes / KIB),
            bytes => write!(out, "{bytes} bytes"),
        }
    }
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// What opening and reading return, and [`TooLarge`].
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_from(File::open(path)?, limit)
}

/// Reads a file of text of at most `limit` bytes.
///
/// # Errors
/// As [`read`], and [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub fn read_to_string(path: &Path, limit: u64) -> io::Result<String> {
    text(read(path, limit)?)
}

/// Reads the last `most` bytes of a text, what is not UTF-8 replaced: what a program said last in its log.
///
/// # Errors
/// What opening and reading return.
pub fn tail(path: &Path, most: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads at most `limit` bytes to the end.
///
/// # Errors
/// What reading returns, and [`TooLarge`].
pub fn read_from(from: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(TooLarge { limit }.into()) } else { Ok(bytes) }
}

/// Reads text of at most `limit` bytes to the end.
///
/// # Errors
/// As [`read_from`], and [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub fn read_text_from(from: impl Read, limit: u64) -> io::Result<String> {
    text(read_from(from, limit)?)
}

/// Reads a line of at most `limit` bytes, without its newline; what there is where the end comes first.
///
/// # Errors
/// What reading returns, and [`TooLarge`].
pub fn read_line(from: impl BufRead, limit: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    // One more for the newline.
    from.take(limit.saturating_add(1)).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    if line.len() as u64 > limit { Err(TooLarge { limit }.into()) } else { Ok(line) }
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::new(io::ErrorKind::InvalidData, format!("it is not UTF-8 at byte {at}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_read_and_one_byte_more_is_not() {
        assert_eq!(read_from(&b"1234"[..], 4).unwrap(), b"1234");
        let error = read_from(&b"12345"[..], 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(error.to_string(), "it has more than 4 bytes, the most that is read");
        assert!(read_text_from(&b"a\xff"[..], 4).unwrap_err().to_string().contains("at byte 1"));
    }

    #[test]
    fn what_never_ends_is_refused() {
        let error = read(Path::new("/dev/zero"), KEYS).unwrap_err().to_string();
        assert!(error.contains("1 MiB"), "{error}");
        let error = read_line(io::BufReader::new(io::repeat(b'x')), 4 * KIB).unwrap_err().to_string();
        assert!(error.contains("4 KiB"), "{error}");
    }

    #[test]
    fn a_tail_is_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "ä12345").unwrap();
        assert_eq!(tail(file.path(), 5).unwrap(), "12345");
        assert_eq!(tail(file.path(), 6).unwrap(), "\u{fffd}12345");
        assert_eq!(tail(file.path(), 100).unwrap(), "ä12345");
    }

    #[test]
    fn a_line_ends_at_its_newline() {
        for (text, line) in [(&b"1234\n5"[..], &b"1234"[..]), (b"1234", b"1234"), (b"\n", b""), (b"", b"")] {
            assert_eq!(read_line(text, 4).unwrap(), line);
        }
        assert!(read_line(&b"12345\n"[..], 4).is_err());
    }
}
