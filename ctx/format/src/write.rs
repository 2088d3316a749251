//! Context data in, an ISO 9660 image out: the same bytes for the same data, every time.
//!
//! ISO 9660 because every hypervisor can attach it and every guest can read it. Rock Ridge carries
//! the names and modes for Unix guests, Joliet the names for others. The layout is
//! `/.ctx/manifest.json` and `/data/**`; everything belongs to root, directories are 0700, and all
//! times are one fixed time, so an image can be compared, cached and signed by its digest.

use std::collections::HashSet;

use hadris_fs::{Content, NoClock, Node, Owner, PathError, Permissions, SetAttr, Tree};
use hadris_iso::{IsoId, IsoLevel};

use crate::data::{ContextData, TreeConflict};
use crate::manifest::{DATA_DIR, MANIFEST_PATH, MAX_MANIFEST, Mode};
use crate::path::RelPath;
use crate::sign::{SIGNATURE_PATH, SecretKey};

/// The volume label of an image, by which a guest tells what it is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Label {
    /// Data that a machine starts with and keeps, like the service class.
    #[default]
    Ctx,
    /// Data that is replaced while the machine runs, like the infrastructure class.
    Rectx,
}

impl Label {
    /// The label as it stands in the volume descriptor.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ctx => "CTX",
            Self::Rectx => "RECTX",
        }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Label {
    type Err = LabelError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "CTX" => Ok(Self::Ctx),
            "RECTX" => Ok(Self::Rectx),
            _ => Err(LabelError { label: text.to_owned() }),
        }
    }
}

/// Why a string is not a [`Label`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{label}` is not a label: use CTX (initial data) or RECTX (data replaced at run time)")]
pub struct LabelError {
    /// The label as given.
    pub label: String,
}

/// How to write an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageOptions {
    /// The volume label.
    pub label: Label,
}

/// Why an image was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The paths do not make a tree.
    #[error(transparent)]
    Tree(#[from] TreeConflict),
    /// No reader would accept the manifest.
    #[error("the manifest of {files} files has {size} bytes, readers take {MAX_MANIFEST}: split the class")]
    ManifestTooLarge {
        /// How many files there are.
        files: usize,
        /// The manifest's size in bytes.
        size: usize,
    },
    /// Directories have numbers of 16 bits in an image.
    #[error(
        "the image would have {directories} directories, and ISO 9660 can number {MAX_DIRECTORIES}: put more files into \
         fewer directories, or split the class"
    )]
    TooManyDirectories {
        /// How many there would be, the root and those of the manifest and the data included.
        directories: usize,
    },
    /// The image writer refused.
    #[error("the ISO image cannot be written: {0}")]
    Iso(String),
}

impl From<PathError> for WriteError {
    fn from(error: PathError) -> Self {
        Self::Iso(error.to_string())
    }
}

/// What the descriptors, directories and their padding take beside the files, at most, for a small
/// tree. Only a hint for the first allocation; the image grows when it is not enough.
const OVERHEAD: usize = 512 << 10;

/// Directories of an image, its root included. Path tables number them with 16 bits (ECMA-119, 9.4); Linux reads
/// none, others do. One is kept for the directory to which those are moved that are nested too deep.
pub const MAX_DIRECTORIES: usize = 65_534;

/// The mode of every directory on an image.
pub const DIR_MODE: u16 = 0o700;

/// The image of `data`, in memory.
///
/// # Errors
/// [`WriteError`] when the paths do not make a tree or the data is larger than ISO 9660 level 3 or
/// a reader allows.
pub fn write_iso(data: &ContextData, options: &ImageOptions) -> Result<Vec<u8>, WriteError> {
    write_signed_iso(data, options, None)
}

/// The image of `data`, in memory, with `key`'s signature of its manifest where one is given.
///
/// # Errors
/// As [`write_iso`].
pub fn write_signed_iso(
    data: &ContextData,
    options: &ImageOptions,
    key: Option<&SecretKey>,
) -> Result<Vec<u8>, WriteError> {
    data.check_tree()?;
    let manifest = data.manifest().to_json();
    if manifest.len() > MAX_MANIFEST {
        return Err(WriteError::ManifestTooLarge { files: data.files.len(), size: manifest.len() });
    }
    check_directories(data)?;
    let payload: usize = data.files.values().map(|file| file.content.len().next_multiple_of(2048)).sum();
    let mut image = Vec::with_capacity(payload + manifest.len() + OVERHEAD);

    let mut tree = Tree::new();
    put(&mut tree, MANIFEST_PATH, &manifest, Mode::PRIVATE)?;
    let signature = key.map(|key| key.sign(&manifest));
    if let Some(signature) = &signature {
        put(&mut tree, SIGNATURE_PATH, signature, Mode::PRIVATE)?;
    }
    // Also when there is no file: a reader looks for it.
    put_dir(&mut tree, DATA_DIR)?;
    for (path, file) in &data.files {
        for parent in path.parents() {
            put_dir(&mut tree, &format!("{DATA_DIR}/{parent}"))?;
        }
        put(&mut tree, &format!("{DATA_DIR}/{path}"), &file.content, file.mode)?;
    }
    hadris_iso::sync::write(&mut image, &tree, &iso_options(*options))?;
    Ok(image)
}

/// Checks that the image's directories can be numbered.
fn check_directories(data: &ContextData) -> Result<(), WriteError> {
    let parents: HashSet<_> = data.files.keys().flat_map(RelPath::parents).collect();
    // The root, and those of the manifest and of the data.
    let directories = parents.len() + 3;
    if directories > MAX_DIRECTORIES { Err(WriteError::TooManyDirectories { directories }) } else { Ok(()) }
}

/// An image without anything in it: no manifest, so no reader takes it for context data. It stands in a
/// device until there is data for it.
///
/// # Errors
/// None in practice; the image writer's type has one.
pub fn empty_iso() -> Result<Vec<u8>, WriteError> {
    let mut image = Vec::new();
    hadris_iso::sync::write(&mut image, &Tree::new(), &labelled("EMPTY"))?;
    Ok(image)
}

fn iso_options(options: ImageOptions) -> hadris_iso::IsoOptions {
    labelled(options.label.as_str())
}

fn labelled(label: &str) -> hadris_iso::IsoOptions {
    hadris_iso::IsoOptions::new()
        .with_id(IsoId::Volume, label)
        .with_id(IsoId::Application, "CTX")
        .with_level(IsoLevel::L3)
        .with_joliet()
        .with_rock_ridge()
        .with_time(NoClock::TIME)
}

fn put(tree: &mut Tree, path: &str, content: &[u8], mode: Mode) -> Result<(), PathError> {
    if let Some((parent, _)) = path.rsplit_once('/') {
        put_dir(tree, parent)?;
    }
    tree.insert(path, Node::file(Content::bytes(content)).with_attrs(attrs(mode.bits())))
}

fn put_dir(tree: &mut Tree, path: &str) -> Result<(), PathError> {
    match tree.get(path) {
        Some(_) => Ok(()),
        None => tree.insert(path, Node::dir().with_attrs(attrs(DIR_MODE))),
    }
}

fn attrs(mode: u16) -> SetAttr {
    SetAttr::new().with_permissions(Permissions::new(mode.into())).with_owner(Owner::new(0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::Priority;
    use crate::data::File;

    #[test]
    fn an_image_without_anything_is_an_image_without_a_manifest() {
        let image = empty_iso().unwrap();
        assert_eq!(image, empty_iso().unwrap());
        assert!(crate::read::index(&image).unwrap().root.get(MANIFEST_PATH).is_none());
    }

    fn data(files: &[(&str, &str)]) -> ContextData {
        ContextData {
            class: "infrastructure".parse().unwrap(),
            priority: Priority(200),
            generation: 3,
            instance_id: "i-1".parse().unwrap(),
            files: files.iter().map(|(path, text)| (path.parse().unwrap(), File::private(*text))).collect(),
        }
    }

    #[test]
    fn the_label_is_in_the_volume_descriptor() {
        for label in [Label::Ctx, Label::Rectx] {
            let image = write_iso(&data(&[]), &ImageOptions { label }).unwrap();
            // ECMA-119 8.4: the primary descriptor is sector 16, its volume identifier bytes 40..72.
            let descriptor = &image[16 * 2048..17 * 2048];
            assert_eq!(&descriptor[..6], b"\x01CD001");
            assert_eq!(String::from_utf8_lossy(&descriptor[40..72]).trim_end(), label.as_str());
            assert_eq!(label.as_str().parse(), Ok(label));
        }
        assert!("CONTEXT".parse::<Label>().is_err());
    }

    #[test]
    fn only_what_is_said_changes_the_bytes() {
        let options = ImageOptions::default();
        let one = write_iso(&data(&[("a/b", "x"), ("c", "y")]), &options).unwrap();
        assert_eq!(one, write_iso(&data(&[("c", "y"), ("a/b", "x")]), &options).unwrap());
        assert_ne!(one, write_iso(&data(&[("a/b", "x"), ("c", "z")]), &options).unwrap());
    }

    #[test]
    fn a_file_below_a_file_is_refused() {
        let error = write_iso(&data(&[("a", ""), ("a/b", "")]), &ImageOptions::default()).unwrap_err();
        assert!(matches!(error, WriteError::Tree(_)), "{error}");
    }

    #[test]
    fn too_many_directories_are_called_that() {
        let many = |count| {
            let files = (0..count).map(|n| (format!("d{n}/f").parse().unwrap(), File::private(""))).collect();
            ContextData { files, ..data(&[]) }
        };
        check_directories(&many(MAX_DIRECTORIES - 3)).unwrap();
        let error = write_iso(&many(66_000), &ImageOptions::default()).unwrap_err().to_string();
        let expected = "the image would have 66003 directories, and ISO 9660 can number 65534: ";
        assert!(error.starts_with(expected), "{error}");
    }
}
