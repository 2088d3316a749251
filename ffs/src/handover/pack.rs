//! Live objects in, lists of the state out ([`Tree`]).
//!
//! An object is known by its address: all of them are held by generations or by what the kernel knows,
//! for as long as this takes.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::state::{self, At, Bytes, Time, Tree};
use crate::generation::Generation;
use crate::layer::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta, Stamp, Xattrs};
use crate::merge::{Dir, File, Inodes, Node};
use crate::sealed::Sealed;

/// Where each object is in its list.
#[derive(Default)]
pub(super) struct Packer {
    tree: Tree,
    places: HashMap<usize, At>,
    /// Sealed memory, as files.
    files: Vec<OwnedFd>,
    held: Vec<Arc<Dir>>,
}

fn address<T>(of: &Arc<T>) -> usize {
    Arc::as_ptr(of).cast::<()>() as usize
}

/// Adds to a list and returns the place. Lists end far below 2^32: each element is larger than a byte,
/// and all are in memory.
fn push<T>(list: &mut Vec<T>, value: T) -> At {
    list.push(value);
    At::try_from(list.len() - 1).unwrap_or(At::MAX)
}

impl Packer {
    /// The lists, and descriptors that they name.
    pub(super) fn finish(
        mut self,
        shown: state::Generation,
        before: Option<(state::Generation, state::Desired)>,
        inodes: &Inodes,
    ) -> (Tree, Vec<OwnedFd>) {
        let (next, linked) = inodes.state();
        self.tree.linked = linked.iter().map(|file| self.file(file)).collect();
        (Tree { shown, before, next_inode: next, ..self.tree }, self.files)
    }

    pub(super) fn generation(&mut self, generation: &Generation) -> state::Generation {
        let layers = generation.layers.iter().map(|layer| self.layer(layer)).collect();
        let earlier = generation.earlier.as_ref().map(|earlier| {
            let state = earlier.state.upgrade().map(|state| {
                let at = self.dir(&state);
                // Held until the end, so that its address stays its own.
                self.held.push(state);
                at
            });
            state::Earlier((&earlier.name).into(), state, earlier.dirs.clone())
        });
        state::Generation { number: generation.number, layers, root: self.dir(&generation.root), earlier }
    }

    pub(super) fn node(&mut self, node: &Node) -> state::Node {
        match node {
            Node::Dir(dir) => state::Node::Dir(self.dir(dir)),
            Node::File(file) => state::Node::File(self.file(file)),
        }
    }

    pub(super) fn dir(&mut self, dir: &Arc<Dir>) -> At {
        if let Some(at) = self.places.get(&address(dir)) {
            return *at;
        }
        let entries = dir.entries.iter().map(|(name, node)| (name.into(), self.node(node))).collect();
        let sources = dir.sources().map(|(layer, dir)| (layer.to_string(), self.layer_dir(dir))).collect();
        let at =
            push(&mut self.tree.dirs, state::Dir { ino: dir.ino, meta: meta(&dir.meta), entries, sources });
        self.places.insert(address(dir), at);
        at
    }

    fn file(&mut self, file: &Arc<File>) -> At {
        if let Some(at) = self.places.get(&address(file)) {
            return *at;
        }
        let leaf = self.leaf(&file.leaf);
        let at = push(&mut self.tree.files, state::File(file.ino, leaf, file.layer.to_string()));
        self.places.insert(address(file), at);
        at
    }

    fn layer(&mut self, layer: &Arc<Layer>) -> At {
        if let Some(at) = self.places.get(&address(layer)) {
            return *at;
        }
        let packed = state::Layer {
            name: layer.name.clone(),
            priority: layer.priority,
            origin: layer.origin.clone(),
            class: layer.class.clone(),
            generation: layer.generation,
            vouched: layer.vouched,
            root: self.layer_dir(&layer.root),
        };
        let at = push(&mut self.tree.layers, packed);
        self.places.insert(address(layer), at);
        at
    }

    fn layer_dir(&mut self, dir: &Arc<LayerDir>) -> At {
        if let Some(at) = self.places.get(&address(dir)) {
            return *at;
        }
        let entries = dir.entries.iter().map(|(name, node)| {
            let node = match node {
                LayerNode::Dir(dir) => state::LayerNode::Dir(self.layer_dir(dir)),
                LayerNode::Leaf(leaf) => state::LayerNode::Leaf(self.leaf(leaf)),
                LayerNode::Whiteout => state::LayerNode::Whiteout,
            };
            (name.into(), node)
        });
        let entries = entries.collect();
        let packed = state::LayerDir {
            meta: meta(&dir.meta),
            opaque: dir.opaque,
            xattrs: xattrs(&dir.xattrs),
            entries,
        };
        let at = push(&mut self.tree.layer_dirs, packed);
        self.places.insert(address(dir), at);
        at
    }

    fn leaf(&mut self, leaf: &Arc<Leaf>) -> At {
        if let Some(at) = self.places.get(&address(leaf)) {
            return *at;
        }
        let content = match &leaf.content {
            Content::Sealed { image, ranges } => state::Content::Sealed(self.sealed(image), ranges.to_vec()),
            Content::Held { file, stamp: of, .. } => state::Content::Held(file.as_raw_fd(), stamp(of)),
            Content::Path { root, path, stamp: of } => {
                let base = match self.places.get(&address(root)) {
                    Some(at) => *at,
                    None => push(&mut self.tree.bases, root.as_raw_fd()),
                };
                self.places.insert(address(root), base);
                state::Content::Path(base, path.as_os_str().as_bytes().into(), stamp(of))
            }
            Content::Target(target) => state::Content::Target(target.into()),
            Content::Empty => state::Content::Empty,
        };
        let at = push(&mut self.tree.leaves, state::Leaf(meta(&leaf.meta), xattrs(&leaf.xattrs), content));
        self.places.insert(address(leaf), at);
        at
    }

    fn sealed(&mut self, image: &Arc<Sealed>) -> At {
        if let Some(at) = self.places.get(&address(image)) {
            return *at;
        }
        // Without one the successor says so.
        let file = image.file().ok();
        let at = push(&mut self.tree.sealed, file.as_ref().map_or(-1, AsRawFd::as_raw_fd));
        self.files.extend(file);
        self.places.insert(address(image), at);
        at
    }
}

fn meta(meta: &Meta) -> state::Meta {
    let kind = match meta.kind {
        Kind::Dir => state::Kind::Dir,
        Kind::File => state::Kind::File,
        Kind::Symlink => state::Kind::Symlink,
        Kind::CharDevice => state::Kind::CharDevice,
        Kind::BlockDevice => state::Kind::BlockDevice,
        Kind::Fifo => state::Kind::Fifo,
        Kind::Socket => state::Kind::Socket,
    };
    let Meta { perm, uid, gid, size, blocks, links, mtime, ctime, device, .. } = *meta;
    state::Meta(kind, perm, uid, gid, size, blocks, links, Time::from(mtime), Time::from(ctime), device)
}

fn xattrs(xattrs: &Xattrs) -> state::Xattrs {
    xattrs.iter().map(|(name, value)| (Bytes::from(name), Bytes::from(value))).collect()
}

fn stamp(of: &Stamp) -> state::Stamp {
    state::Stamp(of.inode.0, of.inode.1, of.size, of.ctime)
}
