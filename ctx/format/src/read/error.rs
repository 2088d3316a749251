//! Why an image is refused.

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
    /// Content or metadata that would lie outside the image.
    #[error(
        "`/{path}` lies outside the image: bytes {start} to {end} of {len}{}",
        truncated(*declared, *len)
    )]
    OutOfRange {
        /// Path of the file or directory.
        path: String,
        /// First byte.
        start: u64,
        /// Byte after the last one.
        end: u64,
        /// Length of the image in bytes.
        len: u64,
        /// Length of the volume in bytes by its descriptor, true or not.
        declared: u64,
    },
    /// Something that would show programs other content than was meant, and that Linux does not support either.
    #[error("`/{path}` of the image is {what}, which is not supported: {advice}")]
    Unsupported {
        /// Path of the file or directory, empty for the volume itself.
        path: String,
        /// What it is.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// One of [`Limits`](super::Limits).
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

pub(super) fn unsupported(path: &[Vec<u8>], what: impl Into<String>, advice: &'static str) -> ReadError {
    ReadError::Unsupported { path: text(path), what: what.into(), advice }
}

/// What is to be said of an image that is shorter than its descriptor says.
fn truncated(declared: u64, len: u64) -> String {
    if declared <= len {
        return String::new();
    }
    format!(", though its volume descriptor says {declared}: the image is truncated, copy it again")
}
