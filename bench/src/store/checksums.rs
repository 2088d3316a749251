//! `checksums.sha256`: SHA-256 of every file of a run, as `sha256sum -c` reads it.

use std::{
    collections::BTreeMap,
    fs,
    io::{ErrorKind, Read as _},
    path::{Path, PathBuf},
};

use ctx_io::{bounded, durable::is_leftover};
use sha2::{Digest as _, Sha256};

use super::{
    CHECKSUMS,
    error::{Doing as _, StoreError},
    file::write_whole,
};
use crate::model::hex;

/// A file that is not as the checksums say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Its bytes are others.
    #[error("{0} was changed")]
    Changed(String),
    /// It is gone.
    #[error("{0} is missing")]
    Missing(String),
    /// It is not in the list.
    #[error("{0} is not in the list of checksums")]
    Added(String),
}

impl Mismatch {
    /// The file's path in the run's folder.
    pub fn path(&self) -> &str {
        match self {
            Self::Changed(path) | Self::Missing(path) | Self::Added(path) => path,
        }
    }
}

/// SHA-256 of a file, in hex.
pub(crate) fn digest(path: &Path) -> Result<String, StoreError> {
    // In pieces: raw output may be large.
    let (mut file, mut hasher, mut piece) =
        (fs::File::open(path).doing("read", path)?, Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece).doing("read", path)? {
            0 => return Ok(hex(&hasher.finalize())),
            length => hasher.update(&piece[..length]),
        }
    }
}

/// Every file below a folder, by its path in it, without the list itself and files being written.
fn files(folder: &Path) -> Result<BTreeMap<String, PathBuf>, StoreError> {
    let mut found = BTreeMap::new();
    let mut folders = vec![(folder.to_owned(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        for entry in fs::read_dir(&folder).doing("read", &folder)? {
            let entry = entry.doing("read", &folder)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            if entry.file_type().doing("read", &entry.path())?.is_dir() {
                folders.push((entry.path(), format!("{path}/")));
            } else if path != CHECKSUMS && !name.ends_with(".partial") && !is_leftover(&entry.file_name()) {
                found.insert(path, entry.path());
            }
        }
    }
    Ok(found)
}

fn store(folder: &Path, list: &BTreeMap<String, String>) -> Result<(), StoreError> {
    let lines: Vec<String> = list.iter().map(|(path, digest)| format!("{digest}  {path}\n")).collect();
    write_whole(&folder.join(CHECKSUMS), lines.concat().as_bytes())
}

/// Lists every file of a run.
pub(super) fn write(folder: &Path) -> Result<(), StoreError> {
    let list = files(folder)?.into_iter().map(|(path, file)| Ok((path, digest(&file)?)));
    store(folder, &list.collect::<Result<_, StoreError>>()?)
}

fn read(folder: &Path) -> Result<Option<BTreeMap<String, String>>, StoreError> {
    let path = folder.join(CHECKSUMS);
    let text = match bounded::read_to_string(&path, bounded::STATE) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.doing("read", &path)?,
    };
    let mut list = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let Some((digest, name)) = line.split_once("  ") else {
            let what = "it is not a checksum and a path".to_owned();
            return Err(StoreError::Damaged { path, line: index + 1, what });
        };
        list.insert(name.to_owned(), digest.to_owned());
    }
    Ok(Some(list))
}

/// Lists files that were derived again, and leaves the lines of all others as they are: what was
/// measured keeps the checksum that it had when it was measured. Does nothing before the run ends.
pub(crate) fn refresh(folder: &Path, derived: &[String]) -> Result<(), StoreError> {
    let Some(mut list) = read(folder)? else { return Ok(()) };
    for path in derived {
        list.insert(path.clone(), digest(&folder.join(path))?);
    }
    store(folder, &list)
}

/// The files of a run that are not as its checksums say; none at all before the run has ended.
///
/// # Errors
/// A file cannot be read.
pub fn verify(folder: &Path) -> Result<Vec<Mismatch>, StoreError> {
    let Some(mut list) = read(folder)? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for (path, file) in files(folder)? {
        match list.remove(&path) {
            None => found.push(Mismatch::Added(path)),
            Some(expected) if expected != digest(&file)? => found.push(Mismatch::Changed(path)),
            Some(_) => {}
        }
    }
    found.extend(list.into_keys().map(Mismatch::Missing));
    Ok(found)
}
