//! Reading an ISO 9660 image that is in memory, from whoever made it.
//!
//! An image is indexed once, whole, into an immutable [`Image`]: names, attributes, and for each
//! file the byte ranges that hold it. Nothing is extracted and nothing is read later, so the device
//! that the bytes came from can be gone. The tree is Rock Ridge's where there is one, else Joliet's,
//! else the plain one.
//!
//! Images may be hostile. `hadris-iso` parses the records; this module is what makes the result safe
//! to show to programs: every range lies inside the image, no directory is reached twice (no loops),
//! names are names (no `/`, no NUL, no `.` or `..`, none twice), and depth, number of entries,
//! lengths, memory and the work of parsing are bounded ([`Limits`]). An image that breaks a rule is
//! refused whole: a half-read configuration is worse than the one before.
//!
//! | module | one idea |
//! |---|---|
//! | `tree` | what an image holds |
//! | `error` | why it is refused |
//! | `limits` | how much it may ask for |
//! | `walk` | from the root to every entry, checked |
//! | `memory` | the image as the block device that the parser reads |

mod error;
mod limits;
mod memory;
#[cfg(test)]
mod tests;
mod tree;
mod walk;

use hadris_fs::MountOptions;
use hadris_iso::CacheOptions;
use hadris_iso::sync::IsoFs;

pub use error::ReadError;
pub use limits::Limits;
use memory::Memory;
pub use tree::{Entry, Image, Kind, Range, Time};
use walk::Walk;

/// Byte offset of the first volume descriptor (ECMA-119, 7.1.1: sixteen 2048-byte sectors before it).
const DESCRIPTORS: usize = 16 * 2048;

/// Indexes an image under the limits of [`Limits::for_len`].
///
/// # Errors
/// [`ReadError`]; never panics, whatever the bytes are.
pub fn index(image: &[u8]) -> Result<Image, ReadError> {
    index_within(image, Limits::for_len(image.len()))
}

/// Indexes an image.
///
/// # Errors
/// [`ReadError`]; never panics, whatever the bytes are.
pub fn index_within(image: &[u8], limits: Limits) -> Result<Image, ReadError> {
    if image.get(DESCRIPTORS + 1..DESCRIPTORS + 6) != Some(b"CD001") {
        return Err(ReadError::NotIso { len: image.len() });
    }
    let iso = IsoFs::mount(Memory::new(image, limits.work), MountOptions::new())
        .map_err(|error| error::parser(limits, &[], error.into_error()))?
        // Only the hard-link index: cached blocks would be work that is not counted.
        .with_cache(CacheOptions::new().with_blocks(0).with_records(0).with_links(limits.links()));
    Walk::new(iso, limits, image.len()).run()
}
