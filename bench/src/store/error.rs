//! What can go wrong with a run's folder, and what to do about it.

use std::{
    io,
    path::{Path, PathBuf},
};

/// What went wrong with a run's folder. Each is one sentence that ends with what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or folder could not be made, read or written.
    #[error("cannot {doing} {}: {source}; {}", path.display(), advice(source))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A run of this name is there already, and so are all its numbered variants.
    #[error("{} exists and is not overwritten; wait a second and start again", path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The run has ended.
    #[error("the run in {path} is finished: `bench report {path}` draws its report again, `bench run` starts a new one", path = path.display())]
    Finished {
        /// The folder.
        path: PathBuf,
    },
    /// Another program has the run open.
    #[error("another bench works on {}; wait for it or stop it", path.display())]
    Busy {
        /// The folder.
        path: PathBuf,
    },
    /// The folder has no manifest.
    #[error("{} is not the folder of a run (it has no manifest.json); give one such as results/<scenario>/<run>", path.display())]
    NotARun {
        /// The folder.
        path: PathBuf,
    },
    /// A stored file is not what was written.
    #[error("{}:{line}: {what}; the file was changed after it was written, restore it from a copy", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong there.
        what: String,
    },
    /// The run was written by a later version.
    #[error("{} has format {found} and this bench reads {known}; use a newer bench", path.display())]
    Format {
        /// The manifest.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format that is read.
        known: u32,
    },
    /// A name of a raw file that leaves the folder.
    #[error("`{name}` is not a name for a raw file; use plain names with slashes between, without ..")]
    Name {
        /// The name.
        name: String,
    },
    /// The payload of an event is not JSON.
    #[error("the payload of event `{kind}` is not JSON: {source}; give every map string keys")]
    Payload {
        /// The kind of event.
        kind: String,
        /// What is wrong.
        source: serde_json::Error,
    },
}

fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space, then go on with `bench resume RUN`"
        }
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            "choose a results folder that you can write to"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a file is in the way: move it, or choose another results folder"
        }
        io::ErrorKind::NotFound => "check the path",
        _ => "see to that and start again",
    }
}

/// Says what was being done, and to which file, when it failed.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, StoreError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, doing: &'static str, path: &Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { doing, path: path.to_owned(), source })
    }
}
