//! Why an image is refused.

use std::convert::Infallible;

use hadris_fs::Error as IsoError;

use super::limits::Limits;
use super::memory::OVERWORK;

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No ISO 9660 volume descriptor where one belongs.
    #[error("not an ISO 9660 image ({len} bytes)")]
    NotIso {
        /// Length of the image in bytes.
        len: usize,
    },
    /// A structure in the image is damaged.
    #[error("damaged ISO 9660 image at `/{path}`: {reason}")]
    Damaged {
        /// Path in the image, empty for the volume itself.
        path: String,
        /// What the parser found.
        reason: String,
    },
    /// A directory that is its own ancestor, or is reached by two paths.
    #[error("directory `/{path}` of the image is reached twice")]
    Loop {
        /// The second path.
        path: String,
    },
    /// A name that no directory may hold.
    #[error("directory `/{dir}` of the image has an entry named {name:?}: {reason}")]
    Name {
        /// The directory.
        dir: String,
        /// The name, with replacement characters where it is not UTF-8.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// File content that would lie outside the image.
    #[error("`/{path}` lies outside the image: bytes {start} to {end} of {len}")]
    OutOfRange {
        /// Path of the file.
        path: String,
        /// First byte.
        start: u64,
        /// Byte after the last one.
        end: u64,
        /// Length of the image in bytes.
        len: u64,
    },
    /// One of [`Limits`].
    #[error("the image has more {what} than the {limit} allowed (at `/{path}`)")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// Where it was reached.
        path: String,
    },
}

/// A path as people read it.
pub(super) fn text(path: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&path.join(&b'/')).into_owned()
}

pub(super) fn bad_name(dir: &[Vec<u8>], name: &[u8], reason: &'static str) -> ReadError {
    ReadError::Name { dir: text(dir), name: String::from_utf8_lossy(name).into_owned(), reason }
}

pub(super) fn damaged(path: &[Vec<u8>], reason: &str) -> ReadError {
    ReadError::Damaged { path: text(path), reason: reason.to_owned() }
}

/// What the parser says, as an error about `path`.
#[allow(clippy::needless_pass_by_value)] // Made to be called from `map_err`.
pub(super) fn parser(limits: Limits, path: &[Vec<u8>], error: IsoError<Infallible>) -> ReadError {
    if error.message() == OVERWORK {
        return ReadError::Limit { what: "bytes of metadata to read", limit: limits.work, path: text(path) };
    }
    ReadError::Damaged { path: text(path), reason: error.to_string() }
}
