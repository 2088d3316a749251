//! Names whose answers the kernel must not keep: those that a switch is about to change, and those that something is mounted
//! on.
//!
//! A switch of several names is one step for programs although the kernel forgets names one by one: from its announcement
//! on, answers for the names that change hold for one lookup, so that the kernel has none of them when the new generation is
//! shown. See `docs/switch.md`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::merge::{Dir, Node};

/// Names by the inode of their directory.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<u64, HashSet<Box<[u8]>>>);

impl Names {
    fn has(&self, parent: u64, name: &[u8]) -> bool {
        self.0.get(&parent).is_some_and(|names| names.contains(name))
    }
}

impl<'a> FromIterator<(u64, &'a [u8])> for Names {
    fn from_iter<T: IntoIterator<Item = (u64, &'a [u8])>>(names: T) -> Self {
        let mut all = Self::default();
        for (parent, name) in names {
            all.0.entry(parent).or_default().insert(name.into());
        }
        all
    }
}

/// A name that something is mounted on or below, and that changed meanwhile.
#[derive(Debug, Clone)]
pub(crate) struct Cover {
    /// The path from the root of the mount.
    pub(crate) path: Box<[u8]>,
    /// What the kernel has there.
    pub(crate) node: Node,
}

/// Such names: the directory's inode and the name.
pub(crate) type Covered = HashMap<(u64, Box<[u8]>), Cover>;

/// The names of the moment that are answered in a way of their own.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    changing: ArcSwapOption<Names>,
    covered: ArcSwap<Covered>,
    /// The inodes of covered names, and of all that is below them.
    held: ArcSwap<HashSet<u64>>,
}

impl Announced {
    /// A switch is going to change these.
    pub(crate) fn announce(&self, names: Names) {
        self.changing.store(Some(names.into()));
    }

    /// It has.
    pub(crate) fn shown(&self) {
        self.changing.store(None);
    }

    /// Whether a switch is about to change a name.
    pub(crate) fn changes(&self, parent: u64, name: &[u8]) -> bool {
        self.changing.load().as_ref().is_some_and(|names| names.has(parent, name))
    }

    /// What a name stands for as long as something is mounted on it or below it, where that is not what is shown.
    pub(crate) fn covered(&self, parent: u64, name: &[u8]) -> Option<Node> {
        let covered = self.covered.load();
        if covered.is_empty() {
            return None;
        }
        covered.get(&(parent, name.into())).map(|cover| cover.node.clone())
    }

    /// All names that are covered.
    pub(crate) fn all_covered(&self) -> Covered {
        Covered::clone(&self.covered.load())
    }

    /// Sets the names that are covered.
    pub(crate) fn cover(&self, covered: Covered) {
        let mut held = HashSet::new();
        let mut left: Vec<Node> = covered.values().map(|cover| cover.node.clone()).collect();
        while let Some(node) = left.pop() {
            held.insert(node.ino());
            if let Node::Dir(dir) = node {
                left.extend(dir.entries.iter().map(|(_, node)| node.clone()));
            }
        }
        self.held.store(held.into());
        self.covered.store(covered.into());
    }

    /// Whether an inode is what a covered name stands for, or below that: its names must stay where they are.
    pub(crate) fn holds(&self, ino: u64) -> bool {
        self.held.load().contains(&ino)
    }

    /// Whether the kernel may keep what a listing of `dir` says of a name: that it is `listed`, in a directory that is `now` as
    /// given. A listing goes on with what it began with, over a switch.
    pub(crate) fn keeps(&self, now: Option<&Arc<Dir>>, dir: &Arc<Dir>, name: &[u8], listed: &Node) -> bool {
        let is = now.is_some_and(|now| {
            Arc::ptr_eq(now, dir) || now.get(name).is_some_and(|node| node.ino() == listed.ino())
        });
        is && !self.changes(dir.ino, name) && self.covered(dir.ino, name).is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Meta;

    #[test]
    fn a_listing_leaves_nothing_behind_that_changes_or_changed_or_is_covered() {
        let child = |ino| Node::Dir(Arc::new(Dir::empty(ino, Meta::bare_dir())));
        let dir = |a, b, c| {
            let names = [("a", a), ("b", b), ("c", c)];
            let names = names.map(|(name, ino)| (name.as_bytes().into(), child(ino)));
            Arc::new(Dir::of(1, Meta::bare_dir(), names.into(), []))
        };
        let (before, now) = (dir(9, 3, 4), dir(2, 3, 4));
        let announced = Announced::default();
        // Of a listing that began before the last switch, and of one that began after it.
        let keeps = |of: &Arc<Dir>, name: &str| {
            let listed = of.get(name.as_bytes()).unwrap();
            announced.keeps(Some(&now), of, name.as_bytes(), listed)
        };
        assert!(keeps(&now, "a") && keeps(&before, "b"));
        assert!(!keeps(&before, "a"), "it is another one now");
        let gone = Arc::new(Dir::of(1, Meta::bare_dir(), vec![], []));
        assert!(!announced.keeps(Some(&gone), &now, b"a", &child(2)), "it is not there any more");
        assert!(!announced.keeps(None, &now, b"a", &child(2)), "nor is the directory");
        announced.announce([(1, &b"b"[..])].into_iter().collect());
        assert!(!keeps(&now, "b") && keeps(&now, "a"));
        announced.shown();
        assert!(keeps(&now, "b"));
        let cover = Cover { path: b"c"[..].into(), node: child(7) };
        announced.cover([((1, b"c"[..].into()), cover)].into());
        assert!(!keeps(&now, "c"));
        assert_eq!(announced.covered(1, b"c").map(|node| node.ino()), Some(7));
        assert!(announced.covered(2, b"c").is_none());
    }
}
