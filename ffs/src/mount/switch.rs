//! The switch from one generation to the next, as `docs/switch.md` has it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use fuser::INodeNo;

use super::Mount;
use crate::announced::{Cover, Names};
use crate::diff::{self, Change, Diff, What};
use crate::generation::Generation;
use crate::layer::Layer;
use crate::merge::Node;
use crate::sys;
use crate::teller::News;

/// A name that nobody asks for, and that the kernel thus does not know. One that it knows makes it ask for the directory's
/// attributes besides, which is a request of the first program that looks.
const UNKNOWN: &str = "\u{1}";

/// From so many changed names on, directories are worth listing in advance again.
const WALK: usize = 3;

/// What a switch did.
#[derive(Debug)]
pub struct Switch {
    /// The generation that is shown now.
    pub generation: Arc<Generation>,
    /// What changed, by path.
    pub changes: Arc<[Change]>,
    /// For watchers.
    pub(super) news: News,
}

impl Mount {
    /// Shows other layers: all at once for programs that look from now on.
    ///
    /// `edit` gets the present layers and returns those to come. When this returns, every lookup
    /// and every open sees the new generation; what was open keeps the old one.
    pub fn switch(&self, edit: impl FnOnce(&[Arc<Layer>]) -> Vec<Arc<Layer>>) -> Switch {
        // Watchers hear of one exchange after the other.
        self.uncover();
        let _one = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let _rest = self.rest();
        let before = self.current();
        let next = edit(&before.layers);
        let next = Arc::new(Generation::build(next, Some(&before), &self.inodes, SystemTime::now()));
        let diff = next.diff(&before);
        let kept: HashSet<u64> = diff.dirs.iter().map(|dir| dir.ino).collect();
        let known = self.known(&diff);
        let mut under = self.cover(&diff, &kept);
        // Names below a directory that came or went are reached through it alone.
        let names = |under: &Under| -> Vec<&Change> {
            let reached = diff.changes.iter().filter(|change| kept.contains(&change.parent));
            reached.filter(|change| !under.has(change)).collect()
        };
        let changing = names(&under);
        self.announce(&changing);
        self.drop_names(&changing);
        let mut failed = {
            let _gate = self.shared.gate.write().unwrap_or_else(PoisonError::into_inner);
            // Mounted on while names were dropped.
            under = self.cover(&diff, &kept);
            self.shared.current.store(next.clone());
            for dir in &diff.dirs {
                self.shared.table.renew(&Node::Dir(dir.clone()));
            }
            for node in &diff.same_inode {
                self.shared.table.renew(node);
            }
            self.shared.announced.shown();
            // While nobody is answered. Takes no lock that a request may hold.
            self.drop_attributes(&diff)
        };
        failed = self.drop_listings(&diff, &kept).or(failed);
        // Those of inodes that the kernel did not have yet the first time, of answers from before.
        failed = self.drop_attributes(&diff).or(failed);
        if let Some(error) = failed {
            tracing::warn!(%error, "the kernel refused an invalidation: old attributes may show until they are dropped");
        }
        let changes: Arc<[Change]> = diff.changes.into();
        let told = match under.0[..] {
            [] => changes.clone(),
            _ => changes.iter().filter(|change| !under.has(change)).cloned().collect(),
        };
        let news = News { changes: told, kept: Arc::new(kept), known: Arc::new(known) };
        Switch { generation: next, changes, news }
    }

    /// The inodes of what goes or is replaced that the kernel has.
    fn known(&self, diff: &Diff) -> HashSet<u64> {
        let gone = diff.changes.iter().filter_map(|change| match change.what {
            What::Removed { ino: old } | What::Replaced { old, .. } => Some(old),
            What::Added { .. } | What::Attributes { .. } => None,
        });
        gone.filter(|ino| self.shared.table.has(*ino)).collect()
    }

    /// Has the names that change answered for one lookup only from now on.
    fn announce(&self, changes: &[&Change]) {
        let changing = changes.iter().filter(|change| !matches!(change.what, What::Attributes { .. }));
        let names: Names = changing.map(|change| (change.parent, change.name())).collect();
        // Whoever is answering has not seen this: the gate waits for those.
        let _gate = self.shared.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.announced.announce(names);
    }

    /// Has the kernel forget names that are about to change. Not from a request handler: it waits for the locks of
    /// directories, which a request may hold.
    fn drop_names(&self, changes: &[&Change]) {
        let can = self.shared.agreed.get().is_some_and(|agreed| agreed.expires());
        // Watchers are told by replacing them.
        let expire = can && self.teller.is_some();
        let (mut dropped, mut failed) = (0_usize, None);
        for change in changes {
            let parent = change.parent;
            let state = match change.what {
                What::Attributes { .. } => continue,
                What::Added { .. } => self.shared.table.has(parent).then_some(false),
                // A name that the kernel holds, it holds with its inode.
                What::Removed { ino } | What::Replaced { old: ino, .. } => self.shared.table.asked_again(ino),
            };
            let Some(again) = state else { continue };
            let result = if expire && !again {
                // Takes no mount away, so nobody need look for one.
                sys::expire_entry(&self.device, parent, change.name())
            } else if self.is_covered(&change.path) {
                // Mounted on since; it is seen once more before the new generation is shown.
                continue;
            } else {
                self.notifier.inval_entry(INodeNo(parent), OsStr::from_bytes(change.name()))
            };
            dropped += 1;
            failed = result.err().or(failed);
        }
        if dropped >= WALK {
            self.shared.prefetch.emptied();
        }
        if let Some(error) = failed {
            tracing::warn!(%error, "the kernel refused an invalidation: old names may show until they are dropped");
        }
    }

    /// Whether something is mounted at a path or below it, at this moment.
    fn is_covered(&self, path: &[u8]) -> bool {
        self.covers.lock().unwrap_or_else(PoisonError::into_inner).now().is_at_or_below(path)
    }

    /// Has the kernel forget the attributes and the access control lists of all inodes of which any differs.
    fn drop_attributes(&self, diff: &Diff) -> Option<std::io::Error> {
        let known = diff.renewed.iter().filter(|renewed| self.shared.table.has(renewed.ino));
        known.filter_map(|renewed| self.notifier.inval_inode(INodeNo(renewed.ino), -1, 0).err()).last()
    }

    /// Has the kernel forget listings, and waits for lookups and listings that are under way: after this none can fill the
    /// caches again with what was true before. Not from a request handler, as above.
    fn drop_listings(&self, diff: &Diff, kept: &HashSet<u64>) -> Option<std::io::Error> {
        let mut failed = None;
        let named = |change: &&Change| {
            kept.contains(&change.parent) && !matches!(change.what, What::Attributes { .. })
        };
        let listed: HashSet<u64> = diff.changes.iter().filter(named).map(|change| change.parent).collect();
        let renewed = diff.renewed.iter().map(|renewed| renewed.parent);
        let all: HashSet<u64> = listed.iter().copied().chain(renewed).collect();
        for ino in all.into_iter().filter(|ino| self.shared.table.has(*ino)) {
            failed = self.notifier.inval_entry(INodeNo(ino), OsStr::new(UNKNOWN)).err().or(failed);
        }
        for ino in listed.into_iter().filter(|ino| self.shared.table.has(*ino)) {
            failed = self.notifier.inval_inode(INodeNo(ino), 0, 0).err().or(failed);
        }
        failed
    }

    /// Notes the names that a switch changes and that something is mounted on or below, and returns them; before the switch is
    /// shown. Of names that a covered one replaced earlier, the kernel keeps what it had then.
    fn cover(&self, diff: &Diff, kept: &HashSet<u64>) -> Under {
        let mut covers = self.covers.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = covers.now();
        let mut covered = self.shared.announced.all_covered();
        let mut under = Vec::new();
        if paths.is_empty() && covered.is_empty() {
            return Under(under);
        }
        for change in diff.changes.iter().filter(|change| kept.contains(&change.parent)) {
            let (path, key) = (&change.path, (change.parent, change.name().into()));
            let gone = matches!(change.what, What::Removed { .. } | What::Replaced { .. });
            // Of a name that was covered before, the kernel has what it had then.
            if gone
                && paths.is_at_or_below(path)
                && !covered.contains_key(&key)
                && let Some(Node::Dir(dir)) = self.shared.table.get(change.parent)
                && let Some(node) = dir.get(change.name())
            {
                covered.insert(key.clone(), Cover { path: path[..].into(), node: node.clone() });
            }
            if covered.contains_key(&key) {
                under.push(path.clone());
            }
        }
        if !under.is_empty() {
            self.shared.announced.cover(covered);
        }
        Under(under)
    }

    /// Drops the names that something was mounted on when they changed, and where nothing is mounted any more, and has
    /// watchers told of them. Not from a request handler, as above.
    pub(crate) fn uncover(&self) {
        let news = {
            let _one = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
            self.uncover_now()
        };
        self.tell(news);
    }

    /// Drops these names, and returns what that has to tell.
    fn uncover_now(&self) -> News {
        let mut covered = self.shared.announced.all_covered();
        let mut bare: Vec<_> = covered.extract_if(|_, cover| !self.is_covered(&cover.path)).collect();
        if bare.is_empty() {
            return News::default();
        }
        bare.sort_by(|(_, a), (_, b)| a.path.cmp(&b.path));
        let shown = self.current();
        let (mut diff, mut kept) = (Diff::default(), HashSet::new());
        for ((parent, name), cover) in &bare {
            // Where the directory has gone meanwhile, its own name tells of all that is in it.
            if let Some(dir) = shown.dir_of(&cover.path).filter(|dir| dir.ino == *parent) {
                let of_it = diff::of_name(&cover.path, *parent, &cover.node, dir.get(name));
                kept.insert(*parent);
                kept.extend(of_it.dirs.iter().map(|dir| dir.ino));
                diff.changes.extend(of_it.changes);
            }
        }
        let known = self.known(&diff);
        self.shared.announced.cover(covered);
        for ((parent, name), _) in bare {
            if let Err(error) = self.notifier.inval_entry(INodeNo(parent), OsStr::from_bytes(&name)) {
                tracing::warn!(%error, "the kernel refused an invalidation");
            }
        }
        News { changes: diff.changes.into(), kept: Arc::new(kept), known: Arc::new(known) }
    }

    /// Makes the kernel forget all names, attributes and pages, but for names that something is mounted on or below. Not
    /// from a request handler, as above.
    pub fn forget(&self) {
        let _one = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let mut covers = self.covers.lock().unwrap_or_else(PoisonError::into_inner);
        let paths = covers.now();
        let mut left = vec![(Vec::new(), self.current().root.clone())];
        while let Some((at, dir)) = left.pop() {
            for (name, node) in &dir.entries {
                let mut path: Vec<u8> = at.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                if !paths.is_at_or_below(&path) {
                    // What it does not know it cannot forget.
                    let _ = self.notifier.inval_entry(INodeNo(dir.ino), OsStr::from_bytes(name));
                }
                match node {
                    Node::Dir(dir) => left.push((path, dir.clone())),
                    Node::File(file) => drop(self.notifier.inval_inode(INodeNo(file.ino), 0, 0)),
                }
            }
            let _ = self.notifier.inval_inode(INodeNo(dir.ino), 0, 0);
        }
    }
}

/// Paths that are covered.
struct Under(Vec<Vec<u8>>);

impl Under {
    /// Whether a change is at or below one of them.
    fn has(&self, change: &Change) -> bool {
        self.0.iter().any(|path| {
            change.path.strip_prefix(&path[..]).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        })
    }
}
