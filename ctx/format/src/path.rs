//! A relative path that cannot leave the tree it is in.
//!
//! Paths come from configuration, from programs and, in the guest, from a device that somebody else
//! attached. They are checked once, here, and carry their proof as a type afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest path in bytes. `PATH_MAX` is 4096 with the NUL; the rest is left for the mount point.
pub const MAX_PATH: usize = 3072;

/// The longest component in bytes: what Linux's isofs can show of a Rock Ridge name
/// (`fs/isofs/rock.c` cuts at 254).
pub const MAX_COMPONENT: usize = 254;

/// A relative, normalised, UTF-8 path of regular components, `/` between them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(String);

/// Why a string is not a [`RelPath`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("path {path:?} cannot be context data: {reason}")]
pub struct RelPathError {
    /// The path as given.
    pub path: String,
    /// What is wrong with it.
    pub reason: RelPathReason,
}

/// What is wrong with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RelPathReason {
    /// No path at all.
    #[error("it is empty")]
    Empty,
    /// Starts with `/`.
    #[error("it is absolute; make it relative to the root of the class")]
    Absolute,
    /// `a//b` or `a/`.
    #[error("it has an empty component; write single slashes and none at the end")]
    EmptyComponent,
    /// `.` or `..`.
    #[error("it has a `.` or `..` component; name the file directly")]
    Dots,
    /// NUL, newline and other control characters.
    #[error("it has a control character")]
    Control,
    /// More than [`MAX_PATH`] bytes.
    #[error("it is longer than {MAX_PATH} bytes")]
    TooLong,
    /// A component of more than [`MAX_COMPONENT`] bytes.
    #[error("a component is longer than {MAX_COMPONENT} bytes")]
    ComponentTooLong,
}

impl RelPath {
    /// Checks `path`.
    ///
    /// # Errors
    /// [`RelPathError`] with the first rule that it breaks.
    pub fn new(path: impl Into<String>) -> Result<Self, RelPathError> {
        let path = path.into();
        match Self::check(&path) {
            Ok(()) => Ok(Self(path)),
            Err(reason) => Err(RelPathError { path, reason }),
        }
    }

    fn check(path: &str) -> Result<(), RelPathReason> {
        if path.is_empty() {
            return Err(RelPathReason::Empty);
        }
        if path.starts_with('/') {
            return Err(RelPathReason::Absolute);
        }
        if path.len() > MAX_PATH {
            return Err(RelPathReason::TooLong);
        }
        if path.chars().any(char::is_control) {
            return Err(RelPathReason::Control);
        }
        for component in path.split('/') {
            match component {
                "" => return Err(RelPathReason::EmptyComponent),
                "." | ".." => return Err(RelPathReason::Dots),
                long if long.len() > MAX_COMPONENT => return Err(RelPathReason::ComponentTooLong),
                _ => {}
            }
        }
        Ok(())
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its components, outermost first; at least one.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// The directories above it, outermost first, without the root: `a`, `a/b` for `a/b/c`.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for RelPath {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

impl std::borrow::Borrow<str> for RelPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl FromStr for RelPath {
    type Err = RelPathError;
    fn from_str(path: &str) -> Result<Self, Self::Err> {
        Self::new(path)
    }
}

impl TryFrom<String> for RelPath {
    type Error = RelPathError;
    fn try_from(path: String) -> Result<Self, Self::Error> {
        Self::new(path)
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> Self {
        path.0
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Component, Path};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_way_out_of_the_tree_is_refused() {
        use RelPathReason::*;
        for (path, reason) in [
            ("", Empty),
            ("/etc/passwd", Absolute),
            ("a//b", EmptyComponent),
            ("a/", EmptyComponent),
            (".", Dots),
            ("a/../b", Dots),
            ("a/.", Dots),
            ("a\0b", Control),
            ("a\nb", Control),
        ] {
            assert_eq!(RelPath::new(path).unwrap_err().reason, reason, "{path:?}");
        }
        assert_eq!(RelPath::new("x".repeat(255)).unwrap_err().reason, ComponentTooLong);
        assert_eq!(RelPath::new("x/".repeat(2000) + "x").unwrap_err().reason, TooLong);
    }

    #[test]
    fn parents_are_outermost_first() {
        let path = RelPath::new("a/b/c").unwrap();
        assert_eq!(path.parents().collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(RelPath::new("a").unwrap().parents().count(), 0);
    }

    proptest! {
        /// What is accepted is exactly what the standard library sees as normal components.
        #[test]
        fn accepted_paths_have_only_normal_components(text in "[a./\\x00-\\x02é]{0,12}") {
            if let Ok(path) = RelPath::new(text.clone()) {
                prop_assert!(Path::new(&text).components().all(|c| matches!(c, Component::Normal(_))));
                let rebuilt = path.components().collect::<Vec<_>>().join("/");
                prop_assert_eq!(rebuilt, text);
            }
        }
    }
}
