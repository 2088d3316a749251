//! Files that are there whole or not at all.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use super::error::{Doing as _, StoreError};

/// Writes a file beside its place, syncs and renames it: a reader sees the old or the new one.
/// A file that already has these bytes is left alone.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut beside =
        tempfile::Builder::new().prefix(".").suffix(".partial").tempfile_in(folder).doing("write", path)?;
    beside.write_all(bytes).doing("write", path)?;
    // Results are for everyone to read; a temporary file is made for its owner alone.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    beside.as_file().set_permissions(mode).doing("write", path)?;
    beside.as_file().sync_all().doing("sync", path)?;
    beside.persist(path).map_err(|error| error.error).doing("write", path)?;
    sync_dir(folder)
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(path: &Path) -> Result<(), StoreError> {
    File::open(path).and_then(|folder| folder.sync_all()).doing("sync", path)
}
