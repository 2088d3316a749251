//! Classes of context data.
//!
//! A class says who is responsible for a set of files (paper, section "Contextualization classes"):
//! the *service* class belongs to the owner of the virtual machine and stays the same wherever it
//! runs, the *infrastructure* class belongs to the site and is replaced when the machine moves.
//! A class's priority decides whose file is seen where two classes hold the same path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::number::{Number, NumberError};

/// The longest class name, in bytes. It is a component of file names on both sides.
pub const MAX_CLASS_NAME: usize = 32;

/// The name of a class: lower-case letters, digits and inner hyphens, at most [`MAX_CLASS_NAME`]
/// bytes, so that it can stand in a file name, a unit name or an XML attribute unquoted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClassName(String);

/// Why a string is not a class name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is not a class name: use 1 to {MAX_CLASS_NAME} lower-case letters, digits and hyphens, \
     with a letter or digit at both ends, like `infrastructure`"
)]
pub struct ClassNameError {
    /// The string as given.
    pub name: String,
}

impl ClassName {
    /// Checks `name`.
    ///
    /// # Errors
    /// [`ClassNameError`] when it is empty, too long or has other characters.
    pub fn new(name: impl Into<String>) -> Result<Self, ClassNameError> {
        let name = name.into();
        let bytes = name.as_bytes();
        let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
        let ends = !matches!((bytes.first(), bytes.last()), (None | Some(b'-'), _) | (_, Some(b'-')));
        if ends && bytes.len() <= MAX_CLASS_NAME && bytes.iter().all(inner) {
            Ok(Self(name))
        } else {
            Err(ClassNameError { name })
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClassName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ClassName {
    type Err = ClassNameError;
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl TryFrom<String> for ClassName {
    type Error = ClassNameError;
    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(name)
    }
}

impl From<ClassName> for String {
    fn from(name: ClassName) -> Self {
        name.0
    }
}

/// The rank of a class in the guest's union: where two classes hold one path, the file of the
/// higher priority is seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Priority(pub u16);

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Priority {
    type Err = NumberError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // In its range it fits.
        text.parse().map(|number: Number<0, 65535>| Self(u16::try_from(number.get()).unwrap_or(u16::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_field_are_accepted() {
        for good in ["service", "infrastructure", "a", "vpn-2", &"x".repeat(MAX_CLASS_NAME)] {
            assert_eq!(ClassName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn names_that_would_need_quoting_are_refused() {
        for bad in ["", "-a", "a-", "-", "A", "a b", "a/b", "a.b", "ä", "a\0", &"x".repeat(33)] {
            let error = ClassName::new(bad).unwrap_err();
            assert_eq!(error.name, bad);
            assert!(serde_json::from_value::<ClassName>(bad.into()).is_err());
        }
    }
}
