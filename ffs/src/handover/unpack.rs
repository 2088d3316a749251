//! Lists of the state in, live objects out; the reverse of `pack`.
//!
//! What names a thing that is not there is refused: a wrong state must not become a wrong tree.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::{Arc, OnceLock, Weak};

use super::state::{self, At, Bytes, StateError, Tree};
use crate::generation::{Earlier, Generation};
use crate::layer::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta, Stamp, Xattrs};
use crate::merge::{Dir, File, Inodes, Node};
use crate::sealed::Sealed;
use crate::sys;

/// Everything that a tree is made of, again.
pub(super) struct Unpacked {
    layers: Vec<Arc<Layer>>,
    files: Vec<Arc<File>>,
    dirs: Vec<Arc<Dir>>,
}

fn at<T: Clone>(list: &[T], at: At) -> Result<T, StateError> {
    let found = usize::try_from(at).ok().and_then(|at| list.get(at));
    found.cloned().ok_or(StateError::Wrong("something is named that is not there"))
}

/// A descriptor of our own for an inherited one.
pub(super) fn descriptor(number: state::Fd) -> Result<OwnedFd, StateError> {
    sys::inherited(number)
        .map_err(|source| StateError::Io { what: "a descriptor was not handed over", source })
}

impl Unpacked {
    pub(super) fn new(tree: &Tree) -> Result<Self, StateError> {
        let sealed = tree.sealed.iter().map(|fd| {
            let sealed = Sealed::adopt(descriptor(*fd)?);
            sealed.map(Arc::new).map_err(|source| StateError::Io { what: "image memory", source })
        });
        let sealed = sealed.collect::<Result<Vec<_>, _>>()?;
        let bases = tree.bases.iter().map(|fd| Ok(Arc::new(descriptor(*fd)?)));
        let bases = bases.collect::<Result<Vec<_>, StateError>>()?;
        let mut leaves = Vec::with_capacity(tree.leaves.len());
        for state::Leaf(attributes, attributes_more, content) in &tree.leaves {
            let content = match content {
                state::Content::Sealed(image, ranges) => {
                    let image = at(&sealed, *image)?;
                    let len = image.bytes().len() as u64;
                    let inside =
                        |(start, size): &(u64, u64)| start.checked_add(*size).is_some_and(|end| end <= len);
                    if !ranges.iter().all(inside) {
                        return Err(StateError::Wrong("content lies outside of its image"));
                    }
                    Content::Sealed { image, ranges: ranges.clone().into() }
                }
                state::Content::Held(fd, of) => {
                    let (file, stamp) = (descriptor(*fd)?.into(), stamp(*of));
                    Content::Held { file, stamp, in_memory: OnceLock::new() }
                }
                state::Content::Path(base, path, of) => Content::Path {
                    root: at(&bases, *base)?,
                    path: OsString::from_vec(path.0.to_vec()).into(),
                    stamp: stamp(*of),
                },
                state::Content::Target(target) => Content::Target(target.0.clone()),
                state::Content::Empty => Content::Empty,
            };
            leaves.push(Arc::new(Leaf { meta: meta(attributes), xattrs: xattrs(attributes_more), content }));
        }
        let mut layer_dirs: Vec<Arc<LayerDir>> = Vec::with_capacity(tree.layer_dirs.len());
        for dir in &tree.layer_dirs {
            let entries = dir.entries.iter().map(|(name, node)| {
                let node = match node {
                    state::LayerNode::Dir(dir) => LayerNode::Dir(at(&layer_dirs, *dir)?),
                    state::LayerNode::Leaf(leaf) => LayerNode::Leaf(at(&leaves, *leaf)?),
                    state::LayerNode::Whiteout => LayerNode::Whiteout,
                };
                Ok((name.0.clone(), node))
            });
            let entries = entries.collect::<Result<_, StateError>>()?;
            let (meta, xattrs) = (meta(&dir.meta), xattrs(&dir.xattrs));
            layer_dirs.push(Arc::new(LayerDir { meta, opaque: dir.opaque, xattrs, entries }));
        }
        let layers = tree.layers.iter().map(|layer| {
            Ok(Arc::new(Layer {
                name: layer.name.clone(),
                priority: layer.priority,
                origin: layer.origin.clone(),
                class: layer.class.clone(),
                generation: layer.generation,
                vouched: layer.vouched,
                root: at(&layer_dirs, layer.root)?,
            }))
        });
        let layers = layers.collect::<Result<Vec<_>, StateError>>()?;
        let mut names = Names::default();
        let mut files = Vec::with_capacity(tree.files.len());
        for state::File(ino, leaf, layer) in &tree.files {
            files.push(Arc::new(File { ino: *ino, leaf: at(&leaves, *leaf)?, layer: names.shared(layer) }));
        }
        let mut unpacked = Self { layers, files, dirs: Vec::with_capacity(tree.dirs.len()) };
        for dir in &tree.dirs {
            let entries = dir.entries.iter().map(|(name, node)| Ok((name.0.clone(), unpacked.node(*node)?)));
            let entries = entries.collect::<Result<Vec<_>, StateError>>()?;
            if !entries.is_sorted_by(|(a, _), (b, _)| a < b) {
                return Err(StateError::Wrong("the names of a directory are not in order"));
            }
            let sources =
                dir.sources.iter().map(|(layer, dir)| Ok((names.shared(layer), at(&layer_dirs, *dir)?)));
            let sources = sources.collect::<Result<Vec<_>, StateError>>()?;
            unpacked.dirs.push(Arc::new(Dir::of(dir.ino, meta(&dir.meta), entries, sources)));
        }
        Ok(unpacked)
    }

    pub(super) fn generation(&self, state: &state::Generation) -> Result<Generation, StateError> {
        let layers = state.layers.iter().map(|layer| at(&self.layers, *layer)).collect::<Result<_, _>>()?;
        let earlier = state.earlier.as_ref().map(|state::Earlier(name, state, dirs)| {
            let state = state.map(|at| self.dir(at)).transpose()?;
            let state = state.map_or_else(Weak::new, |state| Arc::downgrade(&state));
            Ok::<_, StateError>(Earlier { name: name.0.clone(), state, dirs: dirs.clone() })
        });
        Ok(Generation::resume(state.number, layers, self.dir(state.root)?, earlier.transpose()?))
    }

    pub(super) fn node(&self, node: state::Node) -> Result<Node, StateError> {
        Ok(match node {
            state::Node::Dir(dir) => Node::Dir(self.dir(dir)?),
            state::Node::File(file) => Node::File(at(&self.files, file)?),
        })
    }

    pub(super) fn dir(&self, dir: At) -> Result<Arc<Dir>, StateError> {
        at(&self.dirs, dir)
    }

    pub(super) fn inodes(&self, tree: &Tree) -> Result<Inodes, StateError> {
        let highest = self.files.iter().map(|file| file.ino).chain(self.dirs.iter().map(|dir| dir.ino));
        let given_out = highest.filter(|ino| *ino < crate::watch::ALIAS).max().unwrap_or(0);
        if tree.next_inode <= given_out {
            return Err(StateError::Wrong("an inode number would be given out twice"));
        }
        let linked = tree.linked.iter().map(|file| at(&self.files, *file)).collect::<Result<Vec<_>, _>>()?;
        Ok(Inodes::resume(tree.next_inode, linked))
    }
}

/// Names of layers: each is one object, as a merge makes it nearly.
#[derive(Default)]
struct Names(std::collections::HashMap<String, Arc<str>>);

impl Names {
    fn shared(&mut self, name: &str) -> Arc<str> {
        self.0.entry(name.to_owned()).or_insert_with(|| name.into()).clone()
    }
}

fn meta(meta: &state::Meta) -> Meta {
    let state::Meta(kind, perm, uid, gid, size, blocks, links, mtime, ctime, device) = meta.clone();
    let kind = match kind {
        state::Kind::Dir => Kind::Dir,
        state::Kind::File => Kind::File,
        state::Kind::Symlink => Kind::Symlink,
        state::Kind::CharDevice => Kind::CharDevice,
        state::Kind::BlockDevice => Kind::BlockDevice,
        state::Kind::Fifo => Kind::Fifo,
        state::Kind::Socket => Kind::Socket,
    };
    Meta { kind, perm, uid, gid, size, blocks, links, mtime: mtime.into(), ctime: ctime.into(), device }
}

fn xattrs(xattrs: &state::Xattrs) -> Xattrs {
    let own = |bytes: &Bytes| bytes.0.clone();
    xattrs.iter().map(|(name, value)| (own(name), own(value))).collect()
}

fn stamp(of: state::Stamp) -> Stamp {
    Stamp { inode: (of.0, of.1), size: of.2, ctime: of.3 }
}
