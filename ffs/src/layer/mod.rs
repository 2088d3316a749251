//! Layers: immutable snapshots of trees, from directories and from images.
//!
//! A layer is read once into a tree of names and attributes; file content stays where it is (in
//! sealed memory, or behind a directory's descriptor) and is fetched when a program reads. A layer
//! never changes: when its source does, a new snapshot takes its place in a new generation.

pub mod device;
pub mod dir;
pub mod image;
pub mod load;
mod scan;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use ctx_format::ClassName;
use ctx_format::manifest::Sha256;
use ctx_format::sign::KeyId;
use serde::{Deserialize, Serialize};

use crate::sealed::Sealed;

/// Bytes of content that are compared at most between two generations, a fraction of a second's worth:
/// names of a crafted image can share their bytes, a million times.
pub const COMPARED: u64 = 1 << 30;

/// A name in a directory, as bytes.
pub type Name = Box<[u8]>;

/// One layer of the union.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Unique among the layers of a mount; the class of a context image.
    pub name: String,
    /// Layers of higher priority hide lower ones; between equals the later name (by bytes) wins, so
    /// that the order never depends on which arrived first.
    pub priority: u16,
    /// Where it came from, for people.
    pub origin: String,
    /// The class that the image's manifest states, if it has one.
    pub class: Option<ClassName>,
    /// The generation that the image's manifest states, if it has one.
    pub generation: Option<u64>,
    /// Who vouches for the image; none where there are no keys, or no manifest.
    pub vouched: Option<Vouched>,
    /// Its tree.
    pub root: Arc<LayerDir>,
}

/// Who vouches for an image, and for what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vouched {
    /// SHA-256 of the manifest.
    pub manifest: Sha256,
    /// The key that signed it.
    pub key: KeyId,
}

/// A directory of one layer.
#[derive(Debug)]
pub struct LayerDir {
    /// Its attributes.
    pub meta: Meta,
    /// Hides what lower layers have in the directory of this path.
    pub opaque: bool,
    /// Its extended attributes.
    pub xattrs: Xattrs,
    /// Its entries by name.
    pub entries: BTreeMap<Name, LayerNode>,
}

/// Extended attributes: names and values. Those of overlayfs itself (`trusted.overlay.*`,
/// `user.overlay.*`) are not among them: they say how to merge, not what to show.
pub type Xattrs = Box<[(Name, Box<[u8]>)]>;

/// What a name in a layer stands for.
#[derive(Debug, Clone)]
pub enum LayerNode {
    /// A directory.
    Dir(Arc<LayerDir>),
    /// Anything else that is visible.
    Leaf(Arc<Leaf>),
    /// Hides what lower layers have under this name (overlayfs's whiteout).
    Whiteout,
}

/// A file, link or special file of one layer.
#[derive(Debug)]
pub struct Leaf {
    /// Its attributes.
    pub meta: Meta,
    /// Its extended attributes.
    pub xattrs: Xattrs,
    /// What it holds.
    pub content: Content,
}

/// Attributes, as stat(2) has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// Type bits, as in `st_mode & S_IFMT`.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub perm: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content or of a link's target.
    pub size: u64,
    /// Space that it takes in its source, in blocks of 512 bytes: less than `size` for sparse files.
    pub blocks: u64,
    /// Names that it has in its layer; for directories the merge counts.
    pub links: u32,
    /// Last modification.
    pub mtime: SystemTime,
    /// Last change of anything.
    pub ctime: SystemTime,
    /// Major and minor number of a device.
    pub device: (u32, u32),
}

/// The type of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Directory.
    Dir,
    /// Regular file.
    File,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Named pipe.
    Fifo,
    /// Socket.
    Socket,
}

/// Where the content of a leaf is.
#[derive(Debug)]
pub enum Content {
    /// In sealed memory (of an image, or of the small files of a directory layer): ranges of it, in
    /// order.
    Sealed {
        /// The image, shared by all its files.
        image: Arc<Sealed>,
        /// Offset and length of each range.
        ranges: Box<[(u64, u64)]>,
    },
    /// In a large file of a directory layer, held open since the layer was read: a rename or an
    /// unlink in the directory does not reach it.
    Held {
        /// The file.
        file: File,
        /// What the file was when the layer was read.
        stamp: Stamp,
        /// Whether it has no disk behind it, once that is known: asking may wait for the disk.
        in_memory: OnceLock<bool>,
    },
    /// In a file of a directory layer that could not be held: opened for each read.
    Path {
        /// The layer's directory.
        root: Arc<OwnedFd>,
        /// The file, from there.
        path: PathBuf,
        /// What the file was when the layer was read.
        stamp: Stamp,
    },
    /// The target of a symbolic link.
    Target(Box<[u8]>),
    /// Nothing, as in a device or pipe.
    Empty,
}

/// Tells whether a file is still the one that was seen: the fields that the kernel changes with any
/// replacement or write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Device and inode number.
    pub inode: (u64, u64),
    /// Size in bytes.
    pub size: u64,
    /// Change time: seconds and nanoseconds.
    pub ctime: (i64, i64),
}

impl Meta {
    /// A directory of root's that everybody may read: the root of a mount that has no layer.
    pub fn bare_dir() -> Self {
        Self {
            kind: Kind::Dir,
            perm: 0o755,
            uid: 0,
            gid: 0,
            size: 0,
            blocks: 0,
            links: 1,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            device: (0, 0),
        }
    }
}

impl LayerDir {
    /// An empty directory.
    pub fn new(meta: Meta) -> Self {
        Self { meta, opaque: false, xattrs: Xattrs::default(), entries: BTreeMap::new() }
    }
}

impl Leaf {
    /// A leaf without extended attributes.
    pub fn new(meta: Meta, content: Content) -> Self {
        Self { meta, xattrs: Xattrs::default(), content }
    }

    /// Whether a program that reads both cannot tell them apart (attributes aside), as far as that is
    /// found out within a budget of bytes ([`COMPARED`]).
    ///
    /// Equal content keeps its inode across generations: caches stay warm and nobody is told of a
    /// change that is none.
    pub fn same_content(&self, other: &Self, budget: &mut u64) -> bool {
        if self.meta.kind != other.meta.kind
            || self.meta.size != other.meta.size
            || self.meta.device != other.meta.device
        {
            return false;
        }
        match (&self.content, &other.content) {
            (Content::Sealed { image: a, ranges: x }, Content::Sealed { image: b, ranges: y }) => {
                let mut within = || match budget.checked_sub(self.meta.size) {
                    Some(left) => {
                        *budget = left;
                        true
                    }
                    None => false,
                };
                (Arc::ptr_eq(a, b) && x == y) || (within() && chunks_equal(a.chunks(x), b.chunks(y)))
            }
            (
                Content::Path { stamp: a, .. } | Content::Held { stamp: a, .. },
                Content::Path { stamp: b, .. } | Content::Held { stamp: b, .. },
            ) => a == b,
            (Content::Target(a), Content::Target(b)) => a == b,
            (Content::Empty, Content::Empty) => true,
            _ => false,
        }
    }
}

/// Compares two byte strings that come in pieces cut at different places.
fn chunks_equal<'a>(mut a: impl Iterator<Item = &'a [u8]>, mut b: impl Iterator<Item = &'a [u8]>) -> bool {
    let (mut x, mut y): (&[u8], &[u8]) = (&[], &[]);
    loop {
        if x.is_empty() {
            x = a.find(|chunk| !chunk.is_empty()).unwrap_or_default();
        }
        if y.is_empty() {
            y = b.find(|chunk| !chunk.is_empty()).unwrap_or_default();
        }
        let len = x.len().min(y.len());
        if len == 0 {
            return x.is_empty() && y.is_empty();
        }
        if x[..len] != y[..len] {
            return false;
        }
        (x, y) = (&x[len..], &y[len..]);
    }
}

/// Turns names that say "whiteout" into what they mean: `.wh.NAME` hides NAME, `.wh..wh..opq` makes
/// its directory opaque (the AUFS convention that image layers use, since ISO 9660 tools drop
/// character devices). Returns `None` for such names.
pub(crate) fn whiteout_name(name: &[u8]) -> WhiteoutName<'_> {
    match name.strip_prefix(b".wh.") {
        Some(b".wh..opq") => WhiteoutName::Opaque,
        // `.wh.` alone names nothing, and AUFS keeps its own files under `.wh..wh.`.
        Some(b"") => WhiteoutName::Ignored,
        Some(rest) if rest.starts_with(b".wh.") => WhiteoutName::Ignored,
        Some(hidden) => WhiteoutName::Hides(hidden),
        None => WhiteoutName::Plain,
    }
}

/// What a name says about whiteouts.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WhiteoutName<'a> {
    /// An ordinary name.
    Plain,
    /// Hides this name in lower layers.
    Hides(&'a [u8]),
    /// Makes the directory opaque.
    Opaque,
    /// Bookkeeping of another program: not shown.
    Ignored,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_compare_by_content() {
        let split = |text: &'static [u8], at: usize| [&text[..at], &text[at..]].into_iter();
        assert!(chunks_equal(split(b"abcdef", 2), split(b"abcdef", 5)));
        assert!(chunks_equal(split(b"abc", 0), split(b"abc", 3)));
        assert!(!chunks_equal(split(b"abcdef", 2), split(b"abcdeX", 5)));
        assert!(!chunks_equal(split(b"abc", 1), split(b"abcd", 1)));
    }

    #[test]
    fn no_more_is_compared_than_the_budget_allows() {
        let leaf = |bytes: &[u8]| {
            let image = Arc::new(Sealed::read_from(&mut &bytes[..], 10).unwrap());
            let len = bytes.len() as u64;
            let ranges = Box::new([(0, len)]);
            Leaf::new(
                Meta { kind: Kind::File, size: len, ..Meta::bare_dir() },
                Content::Sealed { image, ranges },
            )
        };
        let (a, b, other) = (leaf(b"abcd"), leaf(b"abcd"), leaf(b"abcX"));
        let mut budget = 10;
        assert!(a.same_content(&b, &mut budget));
        assert!(!a.same_content(&other, &mut budget));
        assert!(!a.same_content(&b, &mut budget), "2 bytes are left of the budget");
        assert!(a.same_content(&a, &mut budget), "the same bytes need no comparison");
        assert_eq!(budget, 2);
    }

    #[test]
    fn whiteout_names() {
        assert_eq!(whiteout_name(b"a"), WhiteoutName::Plain);
        assert_eq!(whiteout_name(b".wh.a"), WhiteoutName::Hides(b"a"));
        assert_eq!(whiteout_name(b".wh..hidden"), WhiteoutName::Hides(b".hidden"));
        assert_eq!(whiteout_name(b".wh..wh..opq"), WhiteoutName::Opaque);
        assert_eq!(whiteout_name(b".wh..wh.plnk"), WhiteoutName::Ignored);
    }
}
