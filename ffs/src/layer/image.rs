//! An ISO 9660 image in sealed memory as a layer.
//!
//! An image with `/.ctx/manifest.json` is context data: the tree that shows is `/data`, and it must
//! be exactly what the manifest names, byte for byte. Any other image shows its root. Files that are stored
//! compressed are decompressed here, once, into sealed memory of their own.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ctx_format::check::{Checked, Claim};
use ctx_format::manifest::{DATA_DIR, MANIFEST_PATH};
use ctx_format::read::{self, Entry, ReadError, Time, Zisofs, ZisofsError};

use super::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta, WhiteoutName, whiteout_name};
use crate::memory::{Limit, TooMuch};
use crate::sealed::{Sealed, Writer};
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
    /// Compressed files that are too large.
    #[error(transparent)]
    TooMuch(#[from] TooMuch),
    /// A compressed file that is damaged.
    #[error("the compressed file `/{path}` of the image is damaged: {source}")]
    Compressed {
        /// Its path in the image.
        path: String,
        /// What is wrong.
        source: ZisofsError,
    },
    /// Compressed files that share what is stored, which would be decompressed again and again.
    #[error(
        "the compressed files of the image overlap: together they decompress {stored} bytes of an image of {len}"
    )]
    Overlap {
        /// Bytes that the files name.
        stored: u64,
        /// Length of the image in bytes.
        len: u64,
    },
    /// No memory for what is decompressed.
    #[error("cannot hold what the image has compressed in memory: {0}")]
    Memory(#[from] std::io::Error),
}

impl ImageError {
    /// What the image claims to be, true or not.
    pub fn claim(&self) -> Option<&Claim> {
        match self {
            Self::Refused(refusal) => refusal.claim.as_ref(),
            _ => None,
        }
    }
}

/// Makes a layer of an image, as [`layer_within`], whatever it holds.
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
    layer_within(image, name, priority, origin, trust, &Limit::NONE)
}

/// Makes a layer of an image.
///
/// `name` and `priority` say what the layer is to be called and how it ranks; where they are `None`
/// the manifest decides, and an image without one is refused. What the manifest says the image is comes
/// back beside the layer. What is stored compressed and would not fit under the limit is not decompressed.
///
/// # Errors
/// [`ImageError`].
pub fn layer_within(
    image: Sealed,
    name: Option<&str>,
    priority: Option<u16>,
    origin: &str,
    trust: &Trust,
    limit: &Limit,
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
            // A manifest vouches for no compressed file.
            root: tree(data, &image, None),
        };
        return Ok((layer, Some(Claim { class: manifest.class, generation: manifest.generation })));
    }
    let name = name.ok_or(ImageError::NotContext)?;
    let content = Decompressed::of(&index.root, image.bytes(), limit)?;
    let layer = Layer {
        name: name.to_owned(),
        priority: priority.unwrap_or(0),
        origin: origin.to_owned(),
        class: None,
        generation: None,
        vouched: None,
        root: tree(&index.root, &image, content),
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

fn tree<'a>(dir: &'a Entry, image: &Arc<Sealed>, decompressed: Option<Decompressed<'a>>) -> Arc<LayerDir> {
    let mut links = Links { files: HashMap::new(), decompressed };
    links.count(dir);
    links.tree(dir, image)
}

/// What compressed files have, one after the other.
struct Decompressed<'a> {
    content: Arc<Sealed>,
    /// Where that of each file begins, by how it is stored and its size: files of the same content share it.
    starts: HashMap<(&'a Zisofs, u64), u64>,
}

impl<'a> Decompressed<'a> {
    /// Decompresses all files; `None` when none is compressed.
    fn of(root: &'a Entry, image: &[u8], limit: &Limit) -> Result<Option<Self>, ImageError> {
        let mut files = Vec::new();
        compressed(root, &"".into(), &mut files);
        // Where each will begin is known before anything is decompressed.
        let (mut starts, mut len) = (HashMap::new(), 0);
        files.retain(|(_, entry, zisofs)| match starts.entry((*zisofs, entry.size)) {
            Slot::Vacant(slot) => {
                slot.insert(len);
                len += entry.size;
                true
            }
            Slot::Occupied(_) => false,
        });
        if files.is_empty() {
            return Ok(None);
        }
        limit.check(image.len() as u64, len)?;
        let damaged = |(prefix, entry, _): &(Rc<str>, &Entry, &Zisofs), source| ImageError::Compressed {
            path: format!("{prefix}{}", String::from_utf8_lossy(&entry.name)),
            source,
        };
        let mut stored = 0_u64;
        for file @ (_, entry, zisofs) in &files {
            let more = zisofs.stored_len(image, entry.size).map_err(|source| damaged(file, source))?;
            stored = stored.saturating_add(more);
        }
        if stored > Zisofs::may_store(image) {
            return Err(ImageError::Overlap { stored, len: image.len() as u64 });
        }
        let mut content = Writer::default();
        for file @ (_, entry, zisofs) in &files {
            for block in zisofs.blocks(image, entry.size) {
                content.append(&block.map_err(|source| damaged(file, source))?)?;
            }
        }
        Ok(Some(Self { content: Arc::new(content.seal()?), starts }))
    }

    fn content(&self, entry: &'a Entry, zisofs: &'a Zisofs) -> Option<Content> {
        let start = *self.starts.get(&(zisofs, entry.size))?;
        let ranges = if entry.size == 0 { [].into() } else { [(start, entry.size)].into() };
        Some(Content::Sealed { image: self.content.clone(), ranges })
    }
}

/// Compressed files, each with what stands before its name in its path.
fn compressed<'a>(dir: &'a Entry, prefix: &Rc<str>, into: &mut Vec<(Rc<str>, &'a Entry, &'a Zisofs)>) {
    for child in dir.children() {
        match &child.kind {
            read::Kind::Dir(_) => {
                let inside = format!("{prefix}{}/", String::from_utf8_lossy(&child.name));
                compressed(child, &inside.into(), into);
            }
            read::Kind::Compressed(zisofs) => into.push((prefix.clone(), child, zisofs)),
            _ => {}
        }
    }
}

/// Files of several names: how many each has, and the leaf that they share.
struct Links<'a> {
    files: HashMap<u64, (u32, Option<Arc<Leaf>>)>,
    decompressed: Option<Decompressed<'a>>,
}

impl<'a> Links<'a> {
    fn count(&mut self, dir: &Entry) {
        for child in dir.children() {
            match child.kind {
                read::Kind::Dir(_) => self.count(child),
                _ => self.files.entry(child.id).or_default().0 += 1,
            }
        }
    }

    fn tree(&mut self, dir: &'a Entry, image: &Arc<Sealed>) -> Arc<LayerDir> {
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

    fn node(&mut self, entry: &'a Entry, image: &Arc<Sealed>) -> LayerNode {
        let content = match &entry.kind {
            read::Kind::Dir(_) => return LayerNode::Dir(self.tree(entry, image)),
            read::Kind::CharDevice if entry.device == (0, 0) => return LayerNode::Whiteout,
            read::Kind::File(ranges) => Content::Sealed {
                image: image.clone(),
                ranges: ranges.iter().map(|range| (range.start, range.len)).collect(),
            },
            read::Kind::Compressed(zisofs) => {
                let decompressed = self.decompressed.as_ref().and_then(|all| all.content(entry, zisofs));
                decompressed.unwrap_or(Content::Empty)
            }
            read::Kind::Symlink(target) => Content::Target(target.clone().into()),
            _ => Content::Empty,
        };
        let (links, shared) = self.files.entry(entry.id).or_default();
        let leaf = shared.get_or_insert_with(|| {
            Arc::new(Leaf::new(Meta { links: (*links).max(1), ..meta(entry) }, content))
        });
        LayerNode::Leaf(leaf.clone())
    }
}

fn meta(entry: &Entry) -> Meta {
    let kind = match &entry.kind {
        read::Kind::Dir(_) => Kind::Dir,
        read::Kind::File(_) | read::Kind::Compressed(_) => Kind::File,
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
