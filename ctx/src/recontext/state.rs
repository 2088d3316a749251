//! What must be known after a crash, on disk.
//!
//! `STATE/domains/UUID.json` holds the journal of each of a domain's devices,
//! `STATE/images/UUID/TARGET.GENERATION.iso` the images. A file that is attached is never written
//! again or renamed over: every generation has a name of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use ctx_io::{bounded, durable};
use serde::{Deserialize, Serialize};

use super::plan::Journal;

/// The state directory of a daemon.
#[derive(Debug, Clone)]
pub struct StateDir {
    root: PathBuf,
}

/// What is known of one domain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DomainState {
    /// The journal of each device by its target name.
    pub devices: BTreeMap<String, Journal>,
}

/// A file of the state directory that could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", path.display())]
pub struct StateError {
    /// Which file.
    pub path: PathBuf,
    /// What the system says.
    pub error: io::Error,
}

impl StateDir {
    /// Opens the directory and makes what is missing in it.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be made.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        // The hypervisor opens images as a user of its own: it must get through, but not list.
        for (path, mode) in
            [(root.to_owned(), 0o711), (root.join("images"), 0o711), (root.join("domains"), 0o700)]
        {
            make_dir(&path, mode)?;
        }
        Ok(Self { root: root.to_owned() })
    }

    /// The state of a domain; empty when there is none. A file that cannot be understood counts as
    /// none: the next generation is then bounded by the clock and what the domain brought along.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be read.
    pub fn load(&self, uuid: &str) -> Result<DomainState, StateError> {
        let path = self.domain_file(uuid);
        match bounded::read(&path, bounded::STATE) {
            Ok(json) => Ok(serde_json::from_slice(&json).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "state that cannot be understood is not used");
                DomainState::default()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DomainState::default()),
            Err(error) => Err(StateError { path, error }),
        }
    }

    /// Keeps the journal of one device, durably.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be written.
    pub fn store(&self, uuid: &str, target: &str, journal: &Journal) -> Result<(), StateError> {
        let mut state = self.load(uuid)?;
        state.devices.insert(target.to_owned(), journal.clone());
        let path = self.domain_file(uuid);
        let json = serde_json::to_vec_pretty(&state).unwrap_or_default();
        durable::write(&path, &json).map_err(|error| StateError { path, error })
    }

    /// The name of the image of a device and generation.
    pub fn image(&self, uuid: &str, target: &str, generation: u64) -> PathBuf {
        self.images(uuid).join(format!("{target}.{generation}.iso"))
    }

    /// The generation of an image of ours for this device, by its name.
    pub fn generation_of(&self, uuid: &str, target: &str, image: &str) -> Option<u64> {
        let name = Path::new(image).strip_prefix(self.images(uuid)).ok()?.to_str()?;
        name.strip_prefix(target)?.strip_prefix('.')?.strip_suffix(".iso")?.parse().ok()
    }

    /// Writes an image.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be written.
    pub fn write_image(&self, path: &Path, image: &[u8]) -> Result<(), StateError> {
        if let Some(parent) = path.parent() {
            make_dir(parent, 0o711)?;
        }
        durable::write(path, image).map_err(|error| StateError { path: path.to_owned(), error })
    }

    /// Removes the images of a device except `keep`: they may hold secrets. Best effort.
    pub fn prune(&self, uuid: &str, target: &str, keep: Option<&Path>) {
        let Ok(items) = fs::read_dir(self.images(uuid)) else { return };
        for path in items.flatten().map(|item| item.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // Also what a crash left behind while an image was written.
            let ours =
                name.trim_start_matches('.').strip_prefix(target).is_some_and(|rest| rest.starts_with('.'));
            if ours && Some(path.as_path()) != keep {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Removes all images of a domain that is gone. Best effort.
    pub fn forget_images(&self, uuid: &str) {
        let _ = fs::remove_dir_all(self.images(uuid));
    }

    /// Removes the images of every domain that is not in `running`. Best effort.
    pub fn sweep(&self, running: &[String]) {
        let Ok(items) = fs::read_dir(self.root.join("images")) else { return };
        for item in items.flatten() {
            let name = item.file_name();
            if !running.iter().any(|uuid| name.to_str() == Some(uuid)) {
                let _ = fs::remove_dir_all(item.path());
            }
        }
    }

    fn images(&self, uuid: &str) -> PathBuf {
        self.root.join("images").join(uuid)
    }

    fn domain_file(&self, uuid: &str) -> PathBuf {
        self.root.join("domains").join(format!("{uuid}.json"))
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), StateError> {
    let fail = |error| StateError { path: path.to_owned(), error };
    if path.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(mode).create(path).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journals_and_images_are_kept_by_device() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        assert_eq!(state.load("u").unwrap(), DomainState::default());
        let journal = Journal { generation: 3, attached: Some(3) };
        state.store("u", "sdb", &journal).unwrap();
        state.store("u", "sdc", &Journal::default()).unwrap();
        assert_eq!(state.load("u").unwrap().devices["sdb"], journal);

        let [old, new, other] = [("sdb", 2), ("sdb", 3), ("sdbx", 2)].map(|(target, generation)| {
            let path = state.image("u", target, generation);
            state.write_image(&path, b"iso").unwrap();
            path
        });
        assert_eq!(state.generation_of("u", "sdb", new.to_str().unwrap()), Some(3));
        for foreign in ["/elsewhere/sdb.3.iso", "sdb.3.iso", other.to_str().unwrap()] {
            assert_eq!(state.generation_of("u", "sdb", foreign), None, "{foreign}");
        }
        state.prune("u", "sdb", Some(&new));
        assert!(!old.exists() && new.exists() && other.exists());
        state.sweep(&["u".into()]);
        assert!(new.exists());
        state.sweep(&[]);
        assert!(!new.exists());
    }

    #[test]
    fn state_that_is_not_understood_does_not_stop_a_run() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        fs::write(dir.path().join("domains/u.json"), "{").unwrap();
        assert_eq!(state.load("u").unwrap(), DomainState::default());
    }
}
