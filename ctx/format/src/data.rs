//! The files of one class, in memory.
//!
//! Context data is small (keys, addresses, scripts): it is gathered whole, so that an image is built
//! from one consistent state and never from files that change underneath.

use std::collections::BTreeMap;

use crate::class::{ClassName, Priority};
use crate::manifest::{Entry, FORMAT, InstanceId, Manifest, Mode, file_below_file};
use crate::path::RelPath;

/// One file of context data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct File {
    /// Its bytes.
    pub content: Vec<u8>,
    /// Its permission bits in the guest.
    pub mode: Mode,
}

impl File {
    /// A file that only root can read in the guest.
    pub fn private(content: impl Into<Vec<u8>>) -> Self {
        Self { content: content.into(), mode: Mode::PRIVATE }
    }
}

/// Everything that one image says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContextData {
    /// The class of all files.
    pub class: ClassName,
    /// Its rank in the guest's union.
    pub priority: Priority,
    /// Grows with every image of this class for this instance.
    pub generation: u64,
    /// Whom it is for.
    pub instance_id: InstanceId,
    /// The files, by path from the root of the class.
    pub files: BTreeMap<RelPath, File>,
}

/// Two entries that cannot both be in one tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("class `{class}` has `{path}` as a file and as the directory of another file: rename one of them")]
pub struct TreeConflict {
    /// The class.
    pub class: ClassName,
    /// The path of the file.
    pub path: String,
}

impl ContextData {
    /// The manifest of this data; hashes every file.
    pub fn manifest(&self) -> Manifest {
        Manifest {
            format: FORMAT,
            class: self.class.clone(),
            priority: self.priority,
            generation: self.generation,
            instance_id: self.instance_id.clone(),
            files: self
                .files
                .iter()
                .map(|(path, file)| (path.clone(), Entry::of(&file.content, file.mode)))
                .collect(),
        }
    }

    /// Checks that the paths make a tree.
    ///
    /// # Errors
    /// [`TreeConflict`] when one file lies below another.
    pub fn check_tree(&self) -> Result<(), TreeConflict> {
        match file_below_file(&self.files) {
            Some(path) => Err(TreeConflict { class: self.class.clone(), path: path.to_owned() }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_below_a_file_is_a_conflict() {
        let path = |text: &str| text.parse::<RelPath>().unwrap();
        let mut data = ContextData {
            class: "service".parse().unwrap(),
            priority: Priority(100),
            generation: 1,
            instance_id: "i".parse().unwrap(),
            files: [(path("a/b"), File::private("x")), (path("c"), File::private(""))].into(),
        };
        data.check_tree().unwrap();
        data.manifest().verify_file("a/b", b"x").unwrap();
        data.files.insert(path("a"), File::default());
        assert_eq!(data.check_tree().unwrap_err().path, "a");
    }
}
