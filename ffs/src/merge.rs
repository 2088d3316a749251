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
//! A number therefore never stands for two contents, and the kernel may cache data forever. The names
//! of one file in a layer share its number.
//!
//! What a program sees is what overlayfs would show (`tests/overlay.rs` compares the two on random
//! layers), but for what is in this table:
//!
//! | | overlayfs | here | why |
//! |---|---|---|---|
//! | modification time of a directory | that of the highest layer | the latest of its layers, then that of the last switch that changed its listing | programs that watch times must see a switch |
//! | links of a directory | 1 where layers merge | 2 and its subdirectories | what find(1) and fts(3) take it for on local disks |
//! | size and blocks of a directory | those of a layer | 0 | the merged one is in no layer |
//! | opaque mark on a layer's root | has no effect | hides the layers below | one layer can replace all others |
//! | whiteouts by name (`.wh.x`, `.wh..wh..opq`) | plain files | whiteouts | ISO 9660 tools drop devices |
//! | whiteout by attribute | counts in directories marked `x` | counts everywhere | the mark is easily lost in copies |
//! | whiteouts in a directory of one layer | listed, and not found | not listed | |
//! | access time | that of the file | the modification time | reading changes nothing |
//! | a write to a file of a layer | seen at once, undefined | small files: seen when the layer is read again; large ones: at once | one moment of all layers |

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use crate::layer::{COMPARED, Layer, LayerDir, LayerNode, Leaf, Meta, Name};
use crate::prefetch::Asked;

/// The inode number of the root, by FUSE's rules.
pub const ROOT: u64 = 1;

/// Gives out inode numbers; none is used twice in the life of a mount.
#[derive(Debug)]
pub struct Inodes {
    next: AtomicU64,
    /// Files of several names, by the address of their leaf: all names share one inode, in whatever
    /// generation they come up. An entry is good while its file lives, which keeps the leaf in place.
    linked: Mutex<HashMap<usize, Weak<File>>>,
}

impl Default for Inodes {
    fn default() -> Self {
        Self { next: AtomicU64::new(ROOT + 1), linked: Mutex::default() }
    }
}

impl Inodes {
    pub(crate) fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The file that other names of a leaf have, if there is one.
    fn linked(&self, leaf: &Arc<Leaf>) -> Option<Arc<File>> {
        let linked = self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        linked.get(&(Arc::as_ptr(leaf) as usize))?.upgrade()
    }

    fn link(&self, file: &Arc<File>) {
        let mut linked = self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        linked.insert(Arc::as_ptr(&file.leaf) as usize, Arc::downgrade(file));
    }

    /// Goes on where another program stopped: at the number `next`, with files of several names.
    pub(crate) fn resume(next: u64, linked: impl IntoIterator<Item = Arc<File>>) -> Self {
        let inodes = Self { next: next.into(), linked: Mutex::default() };
        linked.into_iter().for_each(|file| inodes.link(&file));
        inodes
    }

    /// The next number, and the files of several names.
    pub(crate) fn state(&self) -> (u64, Vec<Arc<File>>) {
        let linked = self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        (self.next.load(Ordering::Relaxed), linked.values().filter_map(Weak::upgrade).collect())
    }

    /// Drops what no generation has any more.
    fn tidy(&self) {
        let mut linked = self.linked.lock().unwrap_or_else(PoisonError::into_inner);
        linked.retain(|_, file| file.strong_count() > 0);
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
    /// How often the kernel asked for a name in it.
    pub(crate) asked: Asked,
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
        Self { ino, meta, entries: Vec::new(), subdirs: 0, sources: Vec::new(), asked: Asked::default() }
    }

    /// A directory of these parts; the entries are sorted by name.
    pub(crate) fn of(
        ino: u64,
        meta: Meta,
        entries: Vec<(Name, Node)>,
        sources: impl IntoIterator<Item = (Arc<str>, Arc<LayerDir>)>,
    ) -> Self {
        let subdirs = entries.iter().filter(|(_, node)| matches!(node, Node::Dir(_))).count();
        let sources = sources.into_iter().map(|(layer, dir)| Source { layer, dir }).collect();
        let subdirs = u32::try_from(subdirs).unwrap_or(u32::MAX);
        Self { ino, meta, entries, subdirs, sources, asked: Asked::default() }
    }

    /// What it was merged from, highest first.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<LayerDir>)> {
        self.sources.iter().map(|source| (&source.layer, &source.dir))
    }

    /// The entry of a name.
    pub fn get(&self, name: &[u8]) -> Option<&Node> {
        let at = self.entries.binary_search_by(|(have, _)| (**have).cmp(name)).ok()?;
        Some(&self.entries[at].1)
    }

    /// Its extended attributes: those of the highest layer that has it.
    pub(crate) fn xattrs(&self) -> &[(Name, Box<[u8]>)] {
        self.sources.first().map_or(&[], |source| &source.dir.xattrs)
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
    inodes.tidy();
    Merge { inodes, now, taken: HashSet::new(), budget: COMPARED }.dir(sources, before, Some(ROOT))
}

struct Merge<'a> {
    inodes: &'a Inodes,
    now: SystemTime,
    /// Numbers that a file of several names had before, and that one of its names has kept.
    taken: HashSet<u64>,
    /// Bytes of content that may still be compared; what is not compared counts as changed, which costs
    /// a cache and an event.
    budget: u64,
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
    fn dir(&mut self, sources: Vec<Source>, before: Option<&Arc<Dir>>, ino: Option<u64>) -> Arc<Dir> {
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
        let ino = before.map(|dir| dir.ino).or(ino).unwrap_or_else(|| self.inodes.next());
        Arc::new(Dir::of(ino, meta, entries, sources.into_iter().map(|source| (source.layer, source.dir))))
    }

    fn node(&mut self, pending: Pending, before: Option<&Node>) -> Option<Node> {
        match pending {
            Pending::Hidden => None,
            Pending::Dir { sources, .. } => {
                let before = match before {
                    Some(Node::Dir(dir)) => Some(dir),
                    _ => None,
                };
                Some(Node::Dir(self.dir(sources, before, None)))
            }
            Pending::Leaf(layer, leaf) => Some(Node::File(self.file(layer, leaf, before))),
        }
    }
}

impl Merge<'_> {
    fn file(&mut self, layer: Arc<str>, leaf: Arc<Leaf>, before: Option<&Node>) -> Arc<File> {
        let before = match before {
            Some(Node::File(file)) => Some(file),
            _ => None,
        };
        if let Some(before) = before
            && Arc::ptr_eq(&before.leaf, &leaf)
            && before.layer == layer
        {
            return before.clone();
        }
        let links = leaf.meta.links > 1;
        if links && let Some(file) = self.inodes.linked(&leaf).filter(|file| file.layer == layer) {
            return file;
        }
        let same = before.filter(|before| before.leaf.same_content(&leaf, &mut self.budget));
        // Names that shared a number and no longer share a file: the first of them keeps it.
        let was_linked = before.is_some_and(|before| before.leaf.meta.links > 1);
        let ino = match same.map(|before| before.ino) {
            Some(ino) if !was_linked || self.taken.insert(ino) => ino,
            _ => self.inodes.next(),
        };
        let file = Arc::new(File { ino, leaf, layer });
        if links {
            self.inodes.link(&file);
        }
        file
    }
}

impl Pending {
    /// What is known of a name that no higher layer has.
    fn new(layer: &Arc<str>, node: &LayerNode) -> Self {
        match node {
            LayerNode::Whiteout => Self::Hidden,
            LayerNode::Leaf(leaf) => Self::Leaf(layer.clone(), leaf.clone()),
            LayerNode::Dir(dir) => {
                let sources = vec![Source { layer: layer.clone(), dir: dir.clone() }];
                Self::Dir { sources, open: !dir.opaque }
            }
        }
    }

    /// Takes in what a lower layer has.
    fn add(&mut self, layer: &Arc<str>, node: &LayerNode) {
        let Self::Dir { sources, open: open @ true } = self else { return };
        *open = match node {
            LayerNode::Dir(dir) => {
                sources.push(Source { layer: layer.clone(), dir: dir.clone() });
                !dir.opaque
            }
            LayerNode::Leaf(_) | LayerNode::Whiteout => false,
        };
    }
}

fn pending(sources: &[Source]) -> BTreeMap<Name, Pending> {
    let Some((highest, lower)) = sources.split_first() else { return BTreeMap::new() };
    let new = |(name, node): (&Name, &LayerNode)| (name.clone(), Pending::new(&highest.layer, node));
    // In order, and so without a search for each.
    let mut names: BTreeMap<Name, Pending> = highest.dir.entries.iter().map(new).collect();
    for source in lower {
        for (name, node) in &source.dir.entries {
            match names.get_mut(name) {
                Some(pending) => pending.add(&source.layer, node),
                None => drop(names.insert(name.clone(), Pending::new(&source.layer, node))),
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
pub(crate) mod tests;
