//! What a switch from one tree to another changes, for the kernel's caches, for watchers and hooks.
//!
//! Subtrees that two generations share are skipped, so the cost is that of the change.

use std::sync::Arc;

use crate::merge::{Dir, Node};

/// One changed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path from the root of the mount, without a leading slash, as bytes.
    pub path: Vec<u8>,
    /// The inode of the directory it is in; a number that stays over the switch unless the directory
    /// itself came or went.
    pub parent: u64,
    /// What happened.
    pub what: What,
    /// Whether it is (or was) a directory.
    pub dir: bool,
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Not there before.
    Added {
        /// Its inode.
        ino: u64,
    },
    /// Not there any more.
    Removed {
        /// The inode it had.
        ino: u64,
    },
    /// Another content, or another type, under another inode.
    Replaced {
        /// The inode it had.
        old: u64,
        /// The inode it has.
        new: u64,
    },
    /// The same inode with other attributes: mode, owner, modification time, links, extended attributes.
    Attributes {
        /// Its inode.
        ino: u64,
    },
}

/// All differences between two trees.
#[derive(Debug, Clone, Default)]
pub struct Diff {
    /// Changed paths. Of a directory that came or went, all that is in it too. Parents first, names
    /// in order.
    pub changes: Vec<Change>,
    /// Directories of both trees whose listing or attributes differ, outermost first.
    pub dirs: Vec<Arc<Dir>>,
    /// Files of both trees with the same inode, whose object is another one: the new objects.
    pub same_inode: Vec<Node>,
}

impl Change {
    /// The last component of the path.
    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
    }
}

/// Compares two trees.
pub fn diff(old: &Arc<Dir>, new: &Arc<Dir>) -> Diff {
    let mut diff = Diff::default();
    compare(&mut diff, &mut Vec::new(), old, new);
    diff
}

fn compare(diff: &mut Diff, path: &mut Vec<u8>, old: &Arc<Dir>, new: &Arc<Dir>) {
    if Arc::ptr_eq(old, new) {
        return;
    }
    // Even where the listing is equal the object is another: the inode table must learn of it.
    diff.dirs.push(new.clone());
    let (mut a, mut b) = (old.entries.iter().peekable(), new.entries.iter().peekable());
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((x, _)), Some((y, _))) => x.cmp(y),
        };
        let gone = if order.is_le() { a.next() } else { None };
        let come = if order.is_ge() { b.next() } else { None };
        let Some((name, _)) = gone.or(come) else { return };
        let len = path.len();
        if len > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        entry(diff, path, new.ino, gone.map(|(_, node)| node), come.map(|(_, node)| node));
        path.truncate(len);
    }
}

fn entry(diff: &mut Diff, path: &mut Vec<u8>, parent: u64, old: Option<&Node>, new: Option<&Node>) {
    let mut push = |what, dir| diff.changes.push(Change { path: path.clone(), parent, what, dir });
    match (old, new) {
        (Some(Node::Dir(old)), Some(Node::Dir(new))) => {
            if !Arc::ptr_eq(old, new) {
                if attributes_differ(&old.meta, &new.meta) || old.xattrs() != new.xattrs() {
                    push(What::Attributes { ino: new.ino }, true);
                }
                compare(diff, path, old, new);
            }
        }
        (Some(old @ Node::File(a)), Some(new @ Node::File(b))) => {
            if a.ino != b.ino {
                push(What::Replaced { old: a.ino, new: b.ino }, false);
            } else if !Arc::ptr_eq(a, b) {
                let (was, is) = (old.meta(), new.meta());
                if attributes_differ(was, is)
                    || (was.mtime, was.links) != (is.mtime, is.links)
                    || a.leaf.xattrs != b.leaf.xattrs
                {
                    push(What::Attributes { ino: b.ino }, false);
                }
                diff.same_inode.push(new.clone());
            }
        }
        (Some(old), Some(new)) => {
            push(What::Replaced { old: old.ino(), new: new.ino() }, matches!(new, Node::Dir(_)));
            below(diff, path, old, |ino| What::Removed { ino });
            below(diff, path, new, |ino| What::Added { ino });
        }
        (Some(old), None) => {
            push(What::Removed { ino: old.ino() }, matches!(old, Node::Dir(_)));
            below(diff, path, old, |ino| What::Removed { ino });
        }
        (None, Some(new)) => {
            push(What::Added { ino: new.ino() }, matches!(new, Node::Dir(_)));
            below(diff, path, new, |ino| What::Added { ino });
        }
        (None, None) => {}
    }
}

/// A directory's own modification time follows its listing: not an attribute change of its own.
fn attributes_differ(a: &crate::layer::Meta, b: &crate::layer::Meta) -> bool {
    (a.perm, a.uid, a.gid) != (b.perm, b.uid, b.gid)
}

fn below(diff: &mut Diff, path: &mut Vec<u8>, node: &Node, what: impl Fn(u64) -> What + Copy) {
    let Node::Dir(dir) = node else { return };
    for (name, child) in &dir.entries {
        let len = path.len();
        path.push(b'/');
        path.extend_from_slice(name);
        let is_dir = matches!(child, Node::Dir(_));
        diff.changes.push(Change {
            path: path.clone(),
            parent: dir.ino,
            what: what(child.ino()),
            dir: is_dir,
        });
        below(diff, path, child, what);
        path.truncate(len);
    }
}
