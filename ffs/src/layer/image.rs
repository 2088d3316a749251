//! An ISO 9660 image in sealed memory as a layer.
//!
//! An image with `/.ctx/manifest.json` is context data: the tree that shows is `/data`, and it must
//! be exactly what the manifest names, byte for byte. Any other image shows its root.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ctx_format::manifest::{DATA_DIR, MANIFEST_PATH, MAX_MANIFEST, Manifest, ManifestError};
use ctx_format::read::{self, Entry, Image, ReadError, Time};

use super::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta, WhiteoutName, whiteout_name};
use crate::sealed::Sealed;

/// Why an image cannot be a layer.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not an image, or a damaged one.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The manifest is wrong, or the image is not what it says.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Something in the data that no manifest can vouch for.
    #[error("`/{path}` of the context image is {what}: a manifest vouches for regular files only")]
    Unvouched {
        /// Its path in the image.
        path: String,
        /// What it is.
        what: &'static str,
    },
    /// Files that claim more bytes together than the image has.
    #[error("the files of the context image overlap: together they claim more than its {len} bytes")]
    Overlap {
        /// Length of the image in bytes.
        len: u64,
    },
    /// A plain image without a layer's name.
    #[error("the image has no /{MANIFEST_PATH}: only a named layer can show a plain image")]
    NotContext,
}

/// Makes a layer of an image.
///
/// `name` and `priority` say what the layer is to be called and how it ranks; where they are `None`
/// the manifest decides, and an image without one is refused.
///
/// # Errors
/// [`ImageError`].
pub fn layer(
    image: Sealed,
    name: Option<&str>,
    priority: Option<u16>,
    origin: &str,
) -> Result<Layer, ImageError> {
    let index = read::index(image.bytes())?;
    let image = Arc::new(image);
    if let Some(manifest) = manifest(&index, image.bytes())? {
        let empty = Entry { name: DATA_DIR.into(), ..empty_dir() };
        let data = index.root.get(DATA_DIR).unwrap_or(&empty);
        verify(&manifest, data, image.bytes())?;
        return Ok(Layer {
            name: name.unwrap_or(manifest.class.as_str()).to_owned(),
            priority: priority.unwrap_or(manifest.priority.0),
            origin: origin.to_owned(),
            generation: Some(manifest.generation),
            root: tree(data, &image),
        });
    }
    let name = name.ok_or(ImageError::NotContext)?;
    Ok(Layer {
        name: name.to_owned(),
        priority: priority.unwrap_or(0),
        origin: origin.to_owned(),
        generation: None,
        root: tree(&index.root, &image),
    })
}

/// The class that an image's manifest states, if it has one.
pub(crate) fn class(image: &[u8]) -> Option<String> {
    let index = read::index(image).ok()?;
    manifest(&index, image).ok()?.map(|manifest| manifest.class.as_str().to_owned())
}

fn empty_dir() -> Entry {
    Entry {
        name: Vec::new(),
        kind: read::Kind::Dir(Vec::new()),
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        size: 0,
        device: (0, 0),
        id: 0,
    }
}

fn manifest(index: &Image, bytes: &[u8]) -> Result<Option<Manifest>, ImageError> {
    let Some(entry) = index.root.get(MANIFEST_PATH) else { return Ok(None) };
    if entry.size > MAX_MANIFEST as u64 {
        let size = usize::try_from(entry.size).unwrap_or(usize::MAX);
        return Err(ManifestError::TooLarge { size }.into());
    }
    let Some(json) = entry.content(bytes) else {
        return Err(ImageError::Unvouched { path: MANIFEST_PATH.to_owned(), what: "not a regular file" });
    };
    Ok(Some(Manifest::parse(&json)?))
}

/// Checks that the tree is exactly what the manifest names.
fn verify(manifest: &Manifest, data: &Entry, image: &[u8]) -> Result<(), ImageError> {
    let mut found = 0;
    // A crafted image could name one range a million times: what is hashed stays within its length.
    let mut left = image.len() as u64;
    let mut stack: Vec<(String, &Entry)> = data
        .children()
        .iter()
        .map(|entry| (String::from_utf8_lossy(&entry.name).into_owned(), entry))
        .collect();
    while let Some((path, entry)) = stack.pop() {
        let unvouched = |what| ImageError::Unvouched { path: format!("{DATA_DIR}/{path}"), what };
        match &entry.kind {
            read::Kind::Dir(children) => {
                stack.extend(
                    children
                        .iter()
                        .map(|child| (format!("{path}/{}", String::from_utf8_lossy(&child.name)), child)),
                );
            }
            read::Kind::File(_) => {
                left = left.checked_sub(entry.size).ok_or(ImageError::Overlap { len: image.len() as u64 })?;
                let content = entry.content(image).ok_or(unvouched("outside of it"))?;
                manifest.verify_file(&path, &content)?;
                found += 1;
            }
            read::Kind::Symlink(_) => return Err(unvouched("a symbolic link")),
            _ => return Err(unvouched("a special file")),
        }
    }
    // Names are unique in an indexed image: as many files as the manifest names are all of them,
    // if each was found in it.
    if found == manifest.files.len() {
        return Ok(());
    }
    match manifest.files.keys().find(|path| data.get(path.as_str()).is_none()) {
        Some(path) => Err(ManifestError::Missing { path: path.clone() }.into()),
        None => Ok(()),
    }
}

fn tree(dir: &Entry, image: &Arc<Sealed>) -> Arc<LayerDir> {
    let mut links = Links::default();
    links.count(dir);
    links.tree(dir, image)
}

/// Files of several names: how many each has, and the leaf that they share.
#[derive(Default)]
struct Links(HashMap<u64, (u32, Option<Arc<Leaf>>)>);

impl Links {
    fn count(&mut self, dir: &Entry) {
        for child in dir.children() {
            match child.kind {
                read::Kind::Dir(_) => self.count(child),
                _ => self.0.entry(child.id).or_default().0 += 1,
            }
        }
    }

    fn tree(&mut self, dir: &Entry, image: &Arc<Sealed>) -> Arc<LayerDir> {
        let mut made = LayerDir::new(meta(dir));
        for child in dir.children() {
            match whiteout_name(&child.name) {
                WhiteoutName::Opaque => made.opaque = true,
                WhiteoutName::Ignored => {}
                WhiteoutName::Hides(hidden) => {
                    made.entries.insert(hidden.into(), LayerNode::Whiteout);
                }
                WhiteoutName::Plain => {
                    let node = self.node(child, image);
                    // A whiteout of the same name came first in order and gives way: the layer has it.
                    made.entries.insert(child.name.clone().into(), node);
                }
            }
        }
        Arc::new(made)
    }

    fn node(&mut self, entry: &Entry, image: &Arc<Sealed>) -> LayerNode {
        let content = match &entry.kind {
            read::Kind::Dir(_) => return LayerNode::Dir(self.tree(entry, image)),
            read::Kind::CharDevice if entry.device == (0, 0) => return LayerNode::Whiteout,
            read::Kind::File(ranges) => Content::Sealed {
                image: image.clone(),
                ranges: ranges.iter().map(|range| (range.start, range.len)).collect(),
            },
            read::Kind::Symlink(target) => Content::Target(target.clone().into()),
            _ => Content::Empty,
        };
        let (links, shared) = self.0.entry(entry.id).or_default();
        let leaf = shared.get_or_insert_with(|| {
            Arc::new(Leaf::new(Meta { links: (*links).max(1), ..meta(entry) }, content))
        });
        LayerNode::Leaf(leaf.clone())
    }
}

fn meta(entry: &Entry) -> Meta {
    let kind = match &entry.kind {
        read::Kind::Dir(_) => Kind::Dir,
        read::Kind::File(_) => Kind::File,
        read::Kind::Symlink(_) => Kind::Symlink,
        read::Kind::CharDevice => Kind::CharDevice,
        read::Kind::BlockDevice => Kind::BlockDevice,
        read::Kind::Fifo => Kind::Fifo,
        read::Kind::Socket => Kind::Socket,
    };
    let since = Duration::from_secs(entry.mtime.secs.unsigned_abs());
    let mtime = if entry.mtime.secs < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(since)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(since + Duration::from_nanos(entry.mtime.nanos.into()))
    };
    Meta {
        kind,
        perm: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        size: entry.size,
        blocks: entry.size.div_ceil(512),
        links: 1,
        mtime: mtime.unwrap_or(SystemTime::UNIX_EPOCH),
        ctime: mtime.unwrap_or(SystemTime::UNIX_EPOCH),
        device: entry.device,
    }
}
