//! The union: layers in, one immutable tree out. Pure.
//!
//! For each path the highest layer that has it decides. Directories of the same path merge, from the
//! highest down to the first layer where the path is something else, is whited out, or is opaque;
//! so a file hides a directory below it and a directory hides a file, as on overlayfs.
//!
//! A merge takes the tree before as a hint. Where all sources of a directory are the same objects as
//! before, the old subtree is shared, so that a switch costs what has changed and not what there is.
//! Inode numbers carry meaning: a directory keeps its number while its path is a directory (watches
//! and working directories stay valid), anything else keeps it while its content is the same.
//! A number therefore never stands for two contents, and the kernel may cache data forever.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::layer::{Layer, LayerDir, LayerNode, Leaf, Meta, Name};

/// The inode number of the root, by FUSE's rules.
pub const ROOT: u64 = 1;

/// Bytes of content that one merge compares at most, a fraction of a second's worth: names of a crafted
/// image can share their bytes, a million times.
const COMPARED: u64 = 1 << 30;

/// Gives out inode numbers; none is used twice in the life of a mount.
#[derive(Debug)]
pub struct Inodes(AtomicU64);

impl Default for Inodes {
    fn default() -> Self {
        Self(AtomicU64::new(ROOT + 1))
    }
}

impl Inodes {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// A directory of the union.
#[derive(Debug)]
pub struct Dir {
    /// Its inode number.
    pub ino: u64,
    /// Attributes: those of the highest layer that has it. The modification time is that of the last
    /// change that a program could see in it.
    pub meta: Meta,
    /// Entries sorted by name.
    pub entries: Vec<(Name, Node)>,
    /// How many of them are directories.
    pub subdirs: u32,
    /// What it was merged from, highest first.
    sources: Vec<Source>,
}

/// A file, link or special file of the union.
#[derive(Debug)]
pub struct File {
    /// Its inode number.
    pub ino: u64,
    /// What it is.
    pub leaf: Arc<Leaf>,
    /// The name of the layer that it comes from.
    pub layer: Arc<str>,
}

/// What a name in the union stands for.
#[derive(Debug, Clone)]
pub enum Node {
    /// A directory.
    Dir(Arc<Dir>),
    /// Anything else.
    File(Arc<File>),
}

#[derive(Debug, Clone)]
struct Source {
    layer: Arc<str>,
    dir: Arc<LayerDir>,
}

impl Node {
    /// Its inode number.
    pub fn ino(&self) -> u64 {
        match self {
            Self::Dir(dir) => dir.ino,
            Self::File(file) => file.ino,
        }
    }

    /// Its attributes.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Dir(dir) => &dir.meta,
            Self::File(file) => &file.leaf.meta,
        }
    }
}

impl Dir {
    /// A directory that no layer has.
    pub(crate) fn empty(ino: u64, meta: Meta) -> Self {
        Self { ino, meta, entries: Vec::new(), subdirs: 0, sources: Vec::new() }
    }

    /// The entry of a name.
    pub fn get(&self, name: &[u8]) -> Option<&Node> {
        let at = self.entries.binary_search_by(|(have, _)| (**have).cmp(name)).ok()?;
        Some(&self.entries[at].1)
    }

    /// The names of the layers that have this directory, highest first.
    pub fn layers(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(|source| &*source.layer)
    }
}

/// Merges `layers`, in any order, into a tree.
///
/// `now` becomes the modification time of directories whose entries are not those of `before`.
pub fn merge(layers: &[Arc<Layer>], before: Option<&Arc<Dir>>, inodes: &Inodes, now: SystemTime) -> Arc<Dir> {
    let mut order: Vec<&Arc<Layer>> = layers.iter().collect();
    order.sort_by(|a, b| (b.priority, &b.name).cmp(&(a.priority, &a.name)));
    let mut sources = Vec::with_capacity(order.len());
    for layer in order {
        sources.push(Source { layer: layer.name.as_str().into(), dir: layer.root.clone() });
        if layer.root.opaque {
            break;
        }
    }
    Merge { inodes, now, compared: Cell::new(0) }.dir(sources, before, Some(ROOT))
}

struct Merge<'a> {
    inodes: &'a Inodes,
    now: SystemTime,
    /// Bytes of content that were compared.
    compared: Cell<u64>,
}

/// What is known of a name while layers are gone through from the highest down.
enum Pending {
    /// Hidden by a whiteout.
    Hidden,
    /// Decided: no lower layer matters.
    Leaf(Arc<str>, Arc<Leaf>),
    /// A directory; `open` while lower layers may still add to it.
    Dir { sources: Vec<Source>, open: bool },
}

impl Merge<'_> {
    fn dir(&self, sources: Vec<Source>, before: Option<&Arc<Dir>>, ino: Option<u64>) -> Arc<Dir> {
        if let Some(before) = before
            && before.sources.len() == sources.len()
            && before.sources.iter().zip(&sources).all(|(a, b)| Arc::ptr_eq(&a.dir, &b.dir))
        {
            return before.clone();
        }
        let entries: Vec<(Name, Node)> = pending(&sources)
            .into_iter()
            .filter_map(|(name, pending)| {
                let old = before.and_then(|dir| dir.get(&name));
                Some((name, self.node(pending, old)?))
            })
            .collect();
        let mut meta = sources.first().map_or_else(Meta::bare_dir, |source| source.dir.meta);
        if let Some(before) = before {
            meta.mtime = if same_entries(&before.entries, &entries) { before.meta.mtime } else { self.now };
        } else if let Some(latest) = sources.iter().map(|source| source.dir.meta.mtime).max() {
            meta.mtime = latest;
        }
        let subdirs = entries.iter().filter(|(_, node)| matches!(node, Node::Dir(_))).count();
        Arc::new(Dir {
            ino: before.map(|dir| dir.ino).or(ino).unwrap_or_else(|| self.inodes.next()),
            meta,
            entries,
            subdirs: u32::try_from(subdirs).unwrap_or(u32::MAX),
            sources,
        })
    }

    fn node(&self, pending: Pending, before: Option<&Node>) -> Option<Node> {
        match pending {
            Pending::Hidden => None,
            Pending::Dir { sources, .. } => {
                let before = match before {
                    Some(Node::Dir(dir)) => Some(dir),
                    _ => None,
                };
                Some(Node::Dir(self.dir(sources, before, None)))
            }
            Pending::Leaf(layer, leaf) => {
                let ino = match before {
                    Some(Node::File(file)) if Arc::ptr_eq(&file.leaf, &leaf) && file.layer == layer => {
                        return Some(Node::File(file.clone()));
                    }
                    Some(Node::File(file)) if self.same_content(&file.leaf, &leaf) => file.ino,
                    _ => self.inodes.next(),
                };
                Some(Node::File(Arc::new(File { ino, leaf, layer })))
            }
        }
    }
}

impl Merge<'_> {
    /// Whether content is known to be the same; what is not compared counts as changed, which costs a
    /// cache and an event.
    fn same_content(&self, a: &Leaf, b: &Leaf) -> bool {
        if a.meta.size == b.meta.size {
            self.compared.set(self.compared.get().saturating_add(b.meta.size));
        }
        self.compared.get() <= COMPARED && a.same_content(b)
    }
}

fn pending(sources: &[Source]) -> BTreeMap<Name, Pending> {
    let mut names: BTreeMap<Name, Pending> = BTreeMap::new();
    for source in sources {
        for (name, node) in &source.dir.entries {
            match (names.get_mut(name), node) {
                (None, LayerNode::Whiteout) => {
                    names.insert(name.clone(), Pending::Hidden);
                }
                (None, LayerNode::Leaf(leaf)) => {
                    names.insert(name.clone(), Pending::Leaf(source.layer.clone(), leaf.clone()));
                }
                (None, LayerNode::Dir(dir)) => {
                    let sources = vec![Source { layer: source.layer.clone(), dir: dir.clone() }];
                    names.insert(name.clone(), Pending::Dir { sources, open: !dir.opaque });
                }
                (Some(Pending::Dir { sources, open }), node) if *open => match node {
                    LayerNode::Dir(dir) => {
                        sources.push(Source { layer: source.layer.clone(), dir: dir.clone() });
                        *open = !dir.opaque;
                    }
                    LayerNode::Leaf(_) | LayerNode::Whiteout => *open = false,
                },
                (Some(_), _) => {}
            }
        }
    }
    names
}

/// Whether a listing shows the same: names, types and inode numbers.
fn same_entries(a: &[(Name, Node)], b: &[(Name, Node)]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|((x, m), (y, n))| x == y && m.ino() == n.ino())
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
