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
    /// Inodes of both trees of which anything that stat(2) or an extended attribute tells differs, with the inode of the
    /// directory that they are in.
    pub renewed: Vec<Renewed>,
}

/// An inode that tells something else than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// It.
    pub ino: u64,
    /// The directory that a name of it is in; 0 for the root.
    pub parent: u64,
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
    compare(&mut diff, &mut Vec::new(), 0, old, new);
    diff
}

/// Compares what one name of two trees stands for, at a path in the directory `parent`.
pub(crate) fn of_name(path: &[u8], parent: u64, old: &Node, new: Option<&Node>) -> Diff {
    let (mut diff, mut path) = (Diff::default(), path.to_vec());
    match new {
        // Other than in successive trees, a directory of the same name may be another one.
        Some(new) if old.ino() != new.ino() => replaced(&mut diff, &mut path, parent, old, new),
        _ => entry(&mut diff, &mut path, parent, Some(old), new),
    }
    diff
}

fn compare(diff: &mut Diff, path: &mut Vec<u8>, parent: u64, old: &Arc<Dir>, new: &Arc<Dir>) {
    if Arc::ptr_eq(old, new) {
        return;
    }
    // Even where the listing is equal the object is another: the inode table must learn of it.
    diff.dirs.push(new.clone());
    if (old.meta, old.subdirs) != (new.meta, new.subdirs) || old.xattrs() != new.xattrs() {
        diff.renewed.push(Renewed { ino: new.ino, parent });
    }
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
                compare(diff, path, parent, old, new);
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
                if old.meta() != new.meta() || a.leaf.xattrs != b.leaf.xattrs {
                    diff.renewed.push(Renewed { ino: b.ino, parent });
                }
                diff.same_inode.push(new.clone());
            }
        }
        (Some(old), Some(new)) => replaced(diff, path, parent, old, new),
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

fn replaced(diff: &mut Diff, path: &mut Vec<u8>, parent: u64, old: &Node, new: &Node) {
    let what = What::Replaced { old: old.ino(), new: new.ino() };
    diff.changes.push(Change { path: path.clone(), parent, what, dir: matches!(new, Node::Dir(_)) });
    below(diff, path, old, |ino| What::Removed { ino });
    below(diff, path, new, |ino| What::Added { ino });
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::time::SystemTime;

    use super::*;
    use crate::generation::Generation;
    use crate::layer::dir;
    use crate::merge::Inodes;

    #[test]
    fn of_a_layer_that_is_read_again_only_what_differs_is_renewed() {
        let at = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            std::fs::write(at.path().join(name), "x").unwrap();
        }
        let inodes = Inodes::default();
        let read = |before: Option<&Generation>| {
            let layer = Arc::new(dir::layer(at.path(), "l", 1).unwrap());
            Generation::build(vec![layer], before, &inodes, SystemTime::now())
        };
        let before = read(None);
        let same = read(Some(&before)).diff(&before);
        assert_eq!((same.changes.len(), same.renewed.len(), same.same_inode.len()), (0, 0, 3));
        let mode = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(at.path().join("b"), mode).unwrap();
        let after = read(Some(&before));
        let (diff, ino) = (after.diff(&before), after.root.get(b"b").map_or(0, Node::ino));
        assert_eq!(diff.renewed, [Renewed { ino, parent: after.root.ino }]);
        assert_eq!(diff.changes.len(), 1);
    }
}
