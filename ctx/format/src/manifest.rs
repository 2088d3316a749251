//! The manifest, `/.ctx/manifest.json` on the image: what the image claims to hold.
//!
//! It is the only file that a reader trusts to describe the others. A reader parses it, reads every
//! file under [`DATA_DIR`] and asks [`Manifest::verify`]: the set of files, their sizes and their
//! SHA-256 must be exactly those named, so an image that was cut short or mixed with another one is
//! refused as a whole. The generation only grows for one class and instance; which generation a
//! guest has seen is the guest's to remember ([`Manifest::succeeds`]).

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256 as Hasher};

use crate::class::{ClassName, Priority};
use crate::path::RelPath;

/// Where the manifest lies on the image, from its root.
pub const MANIFEST_PATH: &str = ".ctx/manifest.json";

/// The directory on the image that holds the files of the class.
pub const DATA_DIR: &str = "data";

/// The only format version so far. A reader refuses what it does not know.
pub const FORMAT: u32 = 1;

/// The largest manifest that is read: 16 MiB, about 100,000 files. It bounds the memory that a
/// device of unknown origin can make a guest allocate.
pub const MAX_MANIFEST: usize = 16 << 20;

/// What an image holds and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The version of this format, [`FORMAT`].
    pub format: u32,
    /// The class of all files on the image.
    pub class: ClassName,
    /// Its rank among the guest's classes.
    pub priority: Priority,
    /// Grows by at least one with every new image of this class for this instance.
    pub generation: u64,
    /// Whom the image is for; unchanged by a recontextualization.
    pub instance_id: InstanceId,
    /// Every file under [`DATA_DIR`], and nothing else.
    pub files: BTreeMap<RelPath, Entry>,
}

/// One file of the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// SHA-256 of its content.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: Mode,
}

impl Entry {
    /// The entry of a file with this content.
    pub fn of(content: &[u8], mode: Mode) -> Self {
        Self { sha256: Sha256::of(content), size: content.len() as u64, mode }
    }
}

/// Why a manifest, or an image against its manifest, is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not the JSON of a manifest.
    #[error("the manifest is not valid (line {line}, column {column}): {message}")]
    Syntax {
        /// Line in the manifest, from 1.
        line: usize,
        /// Column in the line, from 1.
        column: usize,
        /// What the parser says.
        message: String,
    },
    /// A version that this program does not know.
    #[error("the manifest has format {found}, this program knows {FORMAT}: use a newer one")]
    Format {
        /// The version found.
        found: u32,
    },
    /// Over [`MAX_MANIFEST`].
    #[error("the manifest has {size} bytes, more than the {MAX_MANIFEST} allowed")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// A path is a file and also the directory of another.
    #[error("`{path}` is named as a file and as the directory of another file")]
    FileIsDirectory {
        /// The path of the file.
        path: String,
    },
    /// Named in the manifest, not on the image.
    #[error("`{path}` is in the manifest but not on the image")]
    Missing {
        /// The path of the file.
        path: RelPath,
    },
    /// On the image, not named in the manifest.
    #[error("`{path}` is on the image but not in the manifest")]
    Unexpected {
        /// The path of the file.
        path: String,
    },
    /// Another size than the manifest says.
    #[error("`{path}` has {found} bytes, the manifest says {expected}")]
    Size {
        /// The path of the file.
        path: String,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes on the image.
        found: u64,
    },
    /// Another content than the manifest says.
    #[error("`{path}` is not what the manifest says: SHA-256 {found} in place of {expected}")]
    Digest {
        /// The path of the file.
        path: String,
        /// SHA-256 by the manifest.
        expected: Sha256,
        /// SHA-256 of what is there.
        found: Sha256,
    },
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] on anything that is not a manifest of this format: unknown or missing
    /// fields, another version, invalid names or paths, a file below a file, more than
    /// [`MAX_MANIFEST`] bytes.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        /// Read first, so that a newer format is named as such and not as an unknown field.
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        if json.len() > MAX_MANIFEST {
            return Err(ManifestError::TooLarge { size: json.len() });
        }
        let syntax = |error: serde_json::Error| ManifestError::Syntax {
            line: error.line(),
            column: error.column(),
            message: error.to_string(),
        };
        let Version { format } = serde_json::from_slice(json).map_err(syntax)?;
        if format != FORMAT {
            return Err(ManifestError::Format { found: format });
        }
        let manifest: Self = serde_json::from_slice(json).map_err(syntax)?;
        match file_below_file(&manifest.files) {
            Some(path) => Err(ManifestError::FileIsDirectory { path: path.to_owned() }),
            None => Ok(manifest),
        }
    }

    /// The manifest as JSON, the same bytes for the same value, with a newline at the end.
    pub fn to_json(&self) -> Vec<u8> {
        // A map with string keys, numbers and strings: nothing in it can fail to serialize.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }

    /// Whether this manifest may follow one of generation `seen` (anti-rollback).
    pub fn succeeds(&self, seen: u64) -> bool {
        self.generation > seen
    }

    /// Checks the content of one file.
    ///
    /// # Errors
    /// [`ManifestError::Unexpected`], [`ManifestError::Size`] or [`ManifestError::Digest`].
    pub fn verify_file(&self, path: &str, content: &[u8]) -> Result<&Entry, ManifestError> {
        self.verify_chunks(path, std::iter::once(content))
    }

    /// Checks the content of one file that lies in pieces.
    ///
    /// # Errors
    /// As [`Manifest::verify_file`].
    pub fn verify_chunks<'a>(
        &self,
        path: &str,
        chunks: impl Iterator<Item = &'a [u8]>,
    ) -> Result<&Entry, ManifestError> {
        let entry =
            self.files.get(path).ok_or_else(|| ManifestError::Unexpected { path: path.to_owned() })?;
        let (mut hasher, mut size) = (Hasher::new(), 0);
        for chunk in chunks {
            size += chunk.len() as u64;
            // Past the end nothing matters but how long it is.
            if size <= entry.size {
                hasher.update(chunk);
            }
        }
        if size != entry.size {
            return Err(ManifestError::Size { path: path.to_owned(), expected: entry.size, found: size });
        }
        let found = Sha256(hasher.finalize().into());
        if found != entry.sha256 {
            return Err(ManifestError::Digest { path: path.to_owned(), expected: entry.sha256, found });
        }
        Ok(entry)
    }

    /// Checks a whole image: `files` are all files found under [`DATA_DIR`], each once.
    ///
    /// # Errors
    /// The first file that is missing, too many, or not what the manifest says.
    pub fn verify<P, C>(&self, files: &BTreeMap<P, C>) -> Result<(), ManifestError>
    where
        P: Borrow<str> + Ord,
        C: AsRef<[u8]>,
    {
        for (path, content) in files {
            self.verify_file(path.borrow(), content.as_ref())?;
        }
        match self.files.keys().find(|path| !files.contains_key(path.as_str())) {
            Some(path) => Err(ManifestError::Missing { path: path.clone() }),
            None => Ok(()),
        }
    }
}

/// The first path that is a file although another file lies below it.
pub(crate) fn file_below_file<V>(files: &BTreeMap<RelPath, V>) -> Option<&str> {
    files.keys().flat_map(RelPath::parents).find(|parent| files.contains_key(*parent))
}

/// Whom an image is for: set when the instance is made, kept for its life. At most 128 printable
/// ASCII characters without spaces; a domain's UUID is usual.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InstanceId(String);

/// Why a string is not an [`InstanceId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{id:?} is not an instance id: use 1 to 128 printable ASCII characters without spaces, like a UUID")]
pub struct InstanceIdError {
    /// The string as given.
    pub id: String,
}

impl InstanceId {
    /// Checks `id`.
    ///
    /// # Errors
    /// [`InstanceIdError`] when it is empty, too long or not printable ASCII.
    pub fn new(id: impl Into<String>) -> Result<Self, InstanceIdError> {
        let id = id.into();
        if (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(id))
        } else {
            Err(InstanceIdError { id })
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for InstanceId {
    type Err = InstanceIdError;
    fn from_str(id: &str) -> Result<Self, Self::Err> {
        Self::new(id)
    }
}

impl TryFrom<String> for InstanceId {
    type Error = InstanceIdError;
    fn try_from(id: String) -> Result<Self, Self::Error> {
        Self::new(id)
    }
}

impl From<InstanceId> for String {
    fn from(id: InstanceId) -> Self {
        id.0
    }
}

/// Permission bits of a file, written as octal text in JSON (`"0600"`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mode(u16);

/// Why a string or number is not a [`Mode`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{mode:?} is not a file mode: use octal permission bits from 0000 to 0777")]
pub struct ModeError {
    /// The mode as given.
    pub mode: String,
}

impl Mode {
    /// Readable by its owner alone: what context data gets unless something else is asked for,
    /// since it may hold secrets.
    pub const PRIVATE: Self = Self(0o600);

    /// Checks `bits`: permission bits only, no set-user-id, set-group-id or sticky bit.
    ///
    /// # Errors
    /// [`ModeError`] when any other bit is set.
    pub fn new(bits: u16) -> Result<Self, ModeError> {
        if bits <= 0o777 { Ok(Self(bits)) } else { Err(ModeError { mode: format!("{bits:04o}") }) }
    }

    /// The permission bits.
    pub fn bits(self) -> u16 {
        self.0
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self::PRIVATE
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl fmt::Debug for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mode({self})")
    }
}

impl FromStr for Mode {
    type Err = ModeError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ModeError { mode: text.to_owned() };
        if !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        u16::from_str_radix(text, 8).ok().and_then(|bits| Self::new(bits).ok()).ok_or_else(error)
    }
}

impl TryFrom<String> for Mode {
    type Error = ModeError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mode> for String {
    fn from(mode: Mode) -> Self {
        mode.to_string()
    }
}

/// A SHA-256 digest (FIPS 180-4), written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256([u8; 32]);

/// Why a string is not a [`Sha256`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a SHA-256 digest of 64 lower-case hexadecimal digits")]
pub struct Sha256Error {
    /// The string as given.
    pub text: String,
}

impl Sha256 {
    /// The digest of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(Hasher::digest(content).into())
    }

    /// The digest's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha256({self})")
    }
}

impl FromStr for Sha256 {
    type Err = Sha256Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || Sha256Error { text: text.to_owned() };
        // Upper case is refused so that one digest has one spelling.
        let digit = |b: u8| match b {
            b'0'..=b'9' => Ok(b - b'0'),
            b'a'..=b'f' => Ok(b - b'a' + 10),
            _ => Err(error()),
        };
        let bytes = text.as_bytes();
        if bytes.len() != 64 {
            return Err(error());
        }
        let mut digest = [0; 32];
        for (to, pair) in digest.iter_mut().zip(bytes.chunks_exact(2)) {
            *to = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(digest))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = Sha256Error;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(digest: Sha256) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest() -> Manifest {
        let file = |content: &[u8]| Entry::of(content, Mode::PRIVATE);
        Manifest {
            format: FORMAT,
            class: "infrastructure".parse().unwrap(),
            priority: Priority(200),
            generation: 7,
            instance_id: "6f1c".parse().unwrap(),
            files: [
                ("endpoints/storage".parse().unwrap(), file(b"198.18.2.10\n")),
                ("site".parse().unwrap(), file(b"local\n")),
            ]
            .into(),
        }
    }

    #[test]
    fn the_bytes_on_the_image_are_settled() {
        insta::assert_snapshot!(String::from_utf8(manifest().to_json()).unwrap(), @r#"
        {
          "format": 1,
          "class": "infrastructure",
          "priority": 200,
          "generation": 7,
          "instance_id": "6f1c",
          "files": {
            "endpoints/storage": {
              "sha256": "0767edcaa07f94b484293236b7fb797f2af234a130117df0ebcab793331443f7",
              "size": 12,
              "mode": "0600"
            },
            "site": {
              "sha256": "efb83f2a277e9f49b38efd505f5cbb93885e721b6bd16b788937c9396174c006",
              "size": 6,
              "mode": "0600"
            }
          }
        }
        "#);
    }

    #[test]
    fn what_was_written_is_read_back() {
        assert_eq!(Manifest::parse(&manifest().to_json()).unwrap(), manifest());
    }

    fn with(key: &str, value: serde_json::Value) -> Vec<u8> {
        let mut json = serde_json::to_value(manifest()).unwrap();
        json[key] = value;
        serde_json::to_vec(&json).unwrap()
    }

    #[test]
    fn a_newer_format_is_named_as_such() {
        let error = Manifest::parse(&with("format", 2.into())).unwrap_err();
        assert!(matches!(error, ManifestError::Format { found: 2 }), "{error}");
    }

    #[test]
    fn unknown_fields_and_bad_values_are_refused() {
        let entry = serde_json::to_value(Entry::of(b"", Mode::PRIVATE)).unwrap();
        for (key, value) in [
            ("not_before", 1.into()),
            ("class", "No".into()),
            ("generation", (-1).into()),
            ("instance_id", "".into()),
            ("files", serde_json::json!({"../x": entry})),
            ("files", serde_json::json!({"x": {"sha256": "00", "size": 0, "mode": "0600"}})),
            ("files", serde_json::json!({"x": {"sha256": "0".repeat(64), "size": 0, "mode": "4755"}})),
        ] {
            let error = Manifest::parse(&with(key, value)).unwrap_err();
            assert!(matches!(error, ManifestError::Syntax { .. }), "{error}");
        }
        let error = Manifest::parse(&with("files", serde_json::json!({"a": entry, "a/b": entry})));
        assert!(matches!(error, Err(ManifestError::FileIsDirectory { path }) if path == "a"));
    }

    #[test]
    fn an_image_must_hold_exactly_what_its_manifest_names() {
        let good: BTreeMap<&str, &[u8]> =
            [("endpoints/storage", &b"198.18.2.10\n"[..]), ("site", b"local\n")].into();
        manifest().verify(&good).unwrap();

        let mut cut = good.clone();
        cut.insert("site", b"loc");
        assert!(matches!(manifest().verify(&cut), Err(ManifestError::Size { found: 3, .. })));
        let mut mixed = good.clone();
        mixed.insert("site", b"other\n");
        assert!(matches!(manifest().verify(&mixed), Err(ManifestError::Digest { .. })));
        let mut more = good.clone();
        more.insert("x", b"");
        assert!(matches!(manifest().verify(&more), Err(ManifestError::Unexpected { .. })));
        let mut less = good;
        less.remove("site");
        assert!(matches!(manifest().verify(&less), Err(ManifestError::Missing { .. })));
    }

    #[test]
    fn a_generation_only_grows() {
        assert!(manifest().succeeds(6));
        assert!(!manifest().succeeds(7));
        assert!(!manifest().succeeds(8));
    }

    proptest! {
        #[test]
        fn reading_never_panics(json in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Manifest::parse(&json);
        }

        #[test]
        fn digests_and_modes_read_back(content in any::<Vec<u8>>(), bits in 0u16..=0o777) {
            let digest = Sha256::of(&content);
            prop_assert_eq!(digest.to_string().parse::<Sha256>().unwrap(), digest);
            let mode = Mode::new(bits).unwrap();
            prop_assert_eq!(mode.to_string().parse::<Mode>().unwrap(), mode);
        }
    }
}
