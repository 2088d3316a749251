//! The inodes that the kernel knows, and the open files and directories.
//!
//! The kernel names inodes by number and counts its references; an entry stays until the last is
//! forgotten, so an open file of an old generation keeps its content (and that keeps its image) in
//! memory, and nothing else does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::merge::{Dir, Node, ROOT};

/// Shards: enough that the threads of a mount rarely meet.
const SHARDS: u64 = 16;

struct Known {
    node: Node,
    references: u64,
    /// Since it was first opened, where opens are asked for.
    way: Option<Way>,
    /// Whether a name of it was asked for when the kernel had it already. Such a question holds no lock: what is answered
    /// may come into force at any time later.
    again: bool,
}

impl Known {
    fn new(node: Node, references: u64) -> Self {
        Self { node, references, way: None, again: false }
    }
}

/// How the kernel comes by the content of a file: one way for all who have it open, or it refuses their opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Way {
    /// It asks for what its page cache lacks.
    Asked,
    /// It reads the file that it knows by this number (`backing_id`, linux/fuse.h).
    Passed(u32),
}

/// Inodes by number.
pub(crate) struct Table(Vec<Mutex<HashMap<u64, Known>>>);

/// A panic elsewhere leaves these maps whole: each change is one insertion or removal.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    pub(crate) fn new(root: Arc<Dir>) -> Self {
        let table = Self((0..SHARDS).map(|_| Mutex::default()).collect());
        // The kernel never forgets the root: it is held from the start.
        table.remember(&Node::Dir(root));
        table
    }

    /// A table of what the kernel already knows, with its references.
    pub(crate) fn resume(known: impl IntoIterator<Item = (Node, u64)>) -> Self {
        let table = Self((0..SHARDS).map(|_| Mutex::default()).collect());
        for (node, references) in known {
            // Whether it was asked for again is not known any more.
            table.shard(node.ino()).insert(node.ino(), Known { again: true, ..Known::new(node, references) });
        }
        table
    }

    /// What the kernel knows, with its references.
    pub(crate) fn known(&self) -> Vec<(Node, u64)> {
        let of = |shard: &Mutex<HashMap<u64, Known>>| {
            let shard = locked(shard);
            shard.values().map(|known| (known.node.clone(), known.references)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }

    /// The ways of all inodes that have one.
    pub(crate) fn ways(&self) -> Vec<(u64, Way)> {
        let of = |shard: &Mutex<HashMap<u64, Known>>| {
            let shard = locked(shard);
            shard.iter().filter_map(|(ino, known)| Some((*ino, known.way?))).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }

    fn shard(&self, ino: u64) -> MutexGuard<'_, HashMap<u64, Known>> {
        // SHARDS fits in usize; the remainder is below it.
        locked(&self.0[(ino % SHARDS) as usize])
    }

    pub(crate) fn get(&self, ino: u64) -> Option<Node> {
        self.shard(ino).get(&ino).map(|known| known.node.clone())
    }

    /// Counts one more reference of the kernel.
    pub(crate) fn remember(&self, node: &Node) {
        let mut shard = self.shard(node.ino());
        shard.entry(node.ino()).or_insert_with(|| Known::new(node.clone(), 0)).references += 1;
    }

    /// Counts one more reference of the kernel, for a name that it asked for.
    pub(crate) fn asked(&self, node: &Node) {
        let mut shard = self.shard(node.ino());
        let known = shard.entry(node.ino()).or_insert_with(|| Known::new(node.clone(), 0));
        known.again |= known.references > 0;
        known.references += 1;
    }

    /// Whether a name of an inode was asked for when the kernel had it already; `None` where the kernel does not have it.
    pub(crate) fn asked_again(&self, ino: u64) -> Option<bool> {
        self.shard(ino).get(&ino).map(|known| known.again)
    }

    /// Counts references less; with the last one nobody has it open any more, and its way is returned.
    pub(crate) fn forget(&self, ino: u64, references: u64) -> Option<Way> {
        if ino == ROOT {
            return None;
        }
        let mut shard = self.shard(ino);
        let known = shard.get_mut(&ino)?;
        known.references = known.references.saturating_sub(references);
        if known.references == 0 { shard.remove(&ino)?.way } else { None }
    }

    /// The way of a file that was opened before.
    pub(crate) fn way(&self, ino: u64) -> Option<Way> {
        self.shard(ino).get(&ino).and_then(|known| known.way)
    }

    /// Settles the way of a file, and returns the one that holds: another may have been faster. `None` where the kernel
    /// does not know the inode.
    pub(crate) fn settle(&self, ino: u64, way: Way) -> Option<Way> {
        self.shard(ino).get_mut(&ino).map(|known| *known.way.get_or_insert(way))
    }

    /// Lets a number stand for a newer object, if the kernel knows it.
    pub(crate) fn renew(&self, node: &Node) {
        if let Some(known) = self.shard(node.ino()).get_mut(&node.ino()) {
            known.node = node.clone();
        }
    }

    /// Whether the kernel knows an inode.
    pub(crate) fn has(&self, ino: u64) -> bool {
        self.shard(ino).contains_key(&ino)
    }

    /// How many inodes the kernel holds.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(|shard| locked(shard).len()).sum()
    }
}

/// Things that are open, by handle.
pub(crate) struct Handles<T> {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<T>>>,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        // 0 stands for "no handle".
        Self { next: AtomicU64::new(1), open: Mutex::default() }
    }
}

impl<T> Handles<T> {
    /// Handles that were given out already, and the next one.
    pub(crate) fn resume(next: u64, open: impl IntoIterator<Item = (u64, T)>) -> Self {
        let open = open.into_iter().map(|(handle, value)| (handle, Arc::new(value))).collect();
        Self { next: next.into(), open: Mutex::new(open) }
    }

    /// The next handle, and what is open.
    pub(crate) fn all(&self) -> (u64, Vec<(u64, Arc<T>)>) {
        let open = locked(&self.open).iter().map(|(handle, value)| (*handle, value.clone())).collect();
        (self.next.load(Ordering::Relaxed), open)
    }

    pub(crate) fn insert(&self, value: T) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed);
        locked(&self.open).insert(handle, Arc::new(value));
        handle
    }

    pub(crate) fn get(&self, handle: u64) -> Option<Arc<T>> {
        locked(&self.open).get(&handle).cloned()
    }

    pub(crate) fn remove(&self, handle: u64) {
        locked(&self.open).remove(&handle);
    }
}
