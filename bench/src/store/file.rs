//! Files that are there whole or not at all.

use std::path::Path;

use ctx_io::{bounded, durable};

use super::error::{Doing as _, StoreError};

/// Writes a file beside its place, syncs and renames it: a reader sees the old or the new one.
/// A file that already has these bytes is left alone.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    if bounded::read(path, bytes.len() as u64).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    // Results are for everyone to read.
    durable::write_with_mode(path, bytes, 0o644).doing("write", path)
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    durable::sync_dir(path).doing("sync", path)
}
