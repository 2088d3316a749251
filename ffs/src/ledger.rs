//! What was last accepted of each class, and the file that keeps it.
//!
//! Several mounts may share the file, and a mount may be unable to write it for a while. So what a process knows and what the
//! file says are joined, and of each class the later entry counts. Later is the one with more rollbacks, and between equals
//! the higher generation. A rollback counts up, so neither a file without it nor a process that has not heard of it undoes it.
//! A change is read, join, change and write, all under a lock.
//!
//! An entry that was never rolled back has no count in the file, as before rollbacks were counted. A program of that time
//! refuses a file with counts, and names the field: to go back to it, remove the file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use ctx_format::ClassName;
use ctx_format::manifest::Sha256;
use ctx_io::{bounded, durable};
use serde::{Deserialize, Serialize};

use crate::trust::{Reason, TrustError};

/// How long a change waits for another process, which holds the lock for the time of a write.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it tries: flock(2) knows no deadline.
const EACH: Duration = Duration::from_millis(10);

/// An image, as far as the ledger is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) generation: u64,
    /// SHA-256 of the manifest.
    pub(crate) manifest: Sha256,
}

/// What was last accepted of each class, as it lies in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ledger {
    accepted: BTreeMap<ClassName, Accepted>,
}

/// Ordered by the fields: the greater is the later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Accepted {
    /// How often the class was rolled back.
    #[serde(default, skip_serializing_if = "is_zero")]
    rollbacks: u64,
    generation: u64,
    /// SHA-256 of the manifest.
    manifest: Sha256,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Accepted {
    fn image(self) -> Image {
        Image { generation: self.generation, manifest: self.manifest }
    }
}

impl Ledger {
    /// Whether an image may follow what was accepted.
    pub(crate) fn judge(&self, class: &ClassName, image: Image) -> Result<(), Reason> {
        let Some(last) = self.accepted.get(class) else { return Ok(()) };
        let (class, generation) = (class.clone(), image.generation);
        if generation < last.generation {
            return Err(Reason::Older { class, found: generation, accepted: last.generation });
        }
        if generation == last.generation && last.manifest != image.manifest {
            return Err(Reason::Other { class, generation });
        }
        Ok(())
    }

    /// Accepts an image.
    ///
    /// # Errors
    /// As of [`Ledger::judge`]; nothing has changed then.
    pub(crate) fn accept(&mut self, class: &ClassName, image: Image) -> Result<(), Reason> {
        self.judge(class, image)?;
        let rollbacks = self.accepted.get(class).map_or(0, |last| last.rollbacks);
        self.insert(class, image, rollbacks);
        Ok(())
    }

    /// Accepts an image that a rollback shows again, whatever was accepted after it.
    pub(crate) fn roll_back(&mut self, class: &ClassName, image: Image) {
        let rollbacks = match self.accepted.get(class) {
            Some(last) if last.image() == image => return,
            Some(last) => last.rollbacks.saturating_add(1),
            None => 0,
        };
        self.insert(class, image, rollbacks);
    }

    fn insert(&mut self, class: &ClassName, image: Image, rollbacks: u64) {
        let Image { generation, manifest } = image;
        self.accepted.insert(class.clone(), Accepted { rollbacks, generation, manifest });
    }

    /// Takes in what another ledger says: of each class, the later entry counts.
    pub(crate) fn join(&mut self, other: &Self) {
        for (class, theirs) in &other.accepted {
            let own = self.accepted.entry(class.clone()).or_insert(*theirs);
            *own = (*own).max(*theirs);
        }
    }
}

/// Reads the file; a ledger without entries where there is none.
pub(crate) fn read(path: &Path) -> Result<Ledger, TrustError> {
    match bounded::read(path, bounded::STATE) {
        Ok(json) => serde_json::from_slice(&json)
            .map_err(|source| TrustError::State { path: path.to_owned(), source }),
        // No directory either: whether one can be made is found out at the first image.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Ledger::default())
        }
        Err(source) => Err(TrustError::Read { path: path.to_owned(), source }),
    }
}

/// Writes the file. The lock must be held, and the file read since it is.
pub(crate) fn write(path: &Path, ledger: &Ledger, _lock: &File) -> io::Result<()> {
    let mut json = serde_json::to_vec_pretty(ledger)?;
    json.push(b'\n');
    durable::write(path, &json)
}

/// Keeps others from changing the file, until what is returned is dropped. The lock is on a file beside it (`NAME.lock`), which
/// only its owner can open: the file itself is replaced at each write.
pub(crate) fn lock(path: &Path) -> io::Result<File> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // Whoever comes over a link waits for the same lock.
    let mut name = path.canonicalize().unwrap_or_else(|_| path.to_owned()).into_os_string();
    name.push(".lock");
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(name)?;
    lock_until(&file, Instant::now() + PATIENCE)?;
    Ok(file)
}

fn lock_until(file: &File, deadline: Instant) -> io::Result<()> {
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "another process holds its lock"));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(EACH),
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
