//! An ISO 9660 image in sealed memory as a layer.
//!
//! An image with `/.ctx/manifest.json` is context data: the tree that shows is `/data`, and it must
//! be exactly what the manifest names, byte for byte. Any other image shows its root.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ctx_format::check::{Checked, Claim};
use ctx_format::manifest::{DATA_DIR, MANIFEST_PATH};
use ctx_format::read::{self, Entry, ReadError, Time};

use super::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta, WhiteoutName, whiteout_name};
use crate::sealed::Sealed;
use crate::trust::{Refusal, Trust};

/// Why an image cannot be a layer.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Not an image, or a damaged one.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The image is not what its manifest says, or not to be trusted.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A plain image without a layer's name.
    #[error("the image has no /{MANIFEST_PATH}: only a named layer can show a plain image")]
    NotContext,
}

impl ImageError {
    /// What the image claims to be, true or not.
    pub fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Refused(refusal) => refusal.claim.as_ref(),
            Self::Read(_) | Self::NotContext => None,
        }
    }
}

/// Makes a layer of an image.
///
/// `name` and `priority` say what the layer is to be called and how it ranks; where they are `None`
/// the manifest decides, and an image without one is refused. What the manifest says the image is comes
/// back beside the layer.
///
/// # Errors
/// [`ImageError`].
pub fn layer(
    image: Sealed,
    name: Option<&str>,
    priority: Option<u16>,
    origin: &str,
    trust: &Trust,
) -> Result<(Layer, Option<Claim>), ImageError> {
    let index = read::index(image.bytes())?;
    let image = Arc::new(image);
    if let Some((Checked { manifest, .. }, vouched)) = trust.admit(&index, image.bytes())? {
        let empty = Entry { name: DATA_DIR.into(), ..empty_dir() };
        let data = index.root.get(DATA_DIR).unwrap_or(&empty);
        let layer = Layer {
            name: name.unwrap_or(manifest.class.as_str()).to_owned(),
            priority: priority.unwrap_or(manifest.priority.0),
            origin: origin.to_owned(),
            class: Some(manifest.class.clone()),
            generation: Some(manifest.generation),
            vouched,
            root: tree(data, &image),
        };
        return Ok((layer, Some(Claim { class: manifest.class, generation: manifest.generation })));
    }
    let name = name.ok_or(ImageError::NotContext)?;
    let layer = Layer {
        name: name.to_owned(),
        priority: priority.unwrap_or(0),
        origin: origin.to_owned(),
        class: None,
        generation: None,
        vouched: None,
        root: tree(&index.root, &image),
    };
    Ok((layer, None))
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
