//! The tree as Kubernetes shows a `ConfigMap`, for programs written for that. Pure: from a merged tree to a projected one.
//!
//! kubelet's `AtomicWriter` puts each state of a volume into a directory of its own and changes one symbolic link:
//!
//! ```text
//! ..2026_11_24_20_43_39.000000007/       all of the state
//! ..data -> ..2026_11_24_20_43_39.000000007
//! site   -> ..data/site                  for each name at the top
//! ```
//!
//! Programs (viper, configmap-reload, the reloaders of the Prometheus operator) watch the top and read again when
//! `..data` is another; who watches a file is told when it is another, and watches anew. Here the switch is one step without
//! that, so the links are for those programs alone. Events come in `AtomicWriter`'s order: the new directory, `..data`, links of
//! names that came, links of names that went, the old directory.
//!
//! | | `AtomicWriter` | here | why |
//! |---|---|---|---|
//! | new directory and links | `CREATE` | `MOVED_TO` | the replay knows one way; fsnotify and watchdog call both "created" |
//! | `..data_tmp` | `CREATE`, `MOVED_FROM` | not seen | nobody may act on it |
//! | a file with the same content | `DELETE_SELF` | no event | nothing has changed for who reads it |
//! | the old directory | is gone at once | is not listed, and can be entered until the next switch | who has followed `..data` already still arrives |
//! | names that begin with `..` | not allowed | only below `..data` | the top belongs to the projection |

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::diff::{Change, Diff, Renewed, What};
use crate::layer::{Content, Kind, Leaf, Meta, Name};
use crate::merge::{Dir, File, Inodes, Node, ROOT};

/// The link that a switch changes.
const DATA: &[u8] = b"..data";
/// The layer that links come from: no layer has this name.
const NOBODY: &str = "";

/// A way to show the tree other than it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Projection {
    /// As a `ConfigMap` volume.
    Kubernetes,
}

impl std::str::FromStr for Projection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "kubernetes" => Ok(Self::Kubernetes),
            _ => Err(format!("`{text}` is not a projection: there is `kubernetes`")),
        }
    }
}

/// The name and the tree that a projection shows; `None` for a tree that is none.
pub(crate) fn inside(root: &Dir) -> Option<(&Name, &Arc<Dir>)> {
    let Some(Node::File(data)) = root.get(DATA) else { return None };
    let Content::Target(target) = &data.leaf.content else { return None };
    let at = root.entries.binary_search_by(|(name, _)| (**name).cmp(target)).ok()?;
    match &root.entries[at] {
        (name, Node::Dir(dir)) if &*data.layer == NOBODY => Some((name, dir)),
        _ => None,
    }
}

/// Projects a merged tree for the first time.
pub(crate) fn first(tree: &Dir, inodes: &Inodes, now: SystemTime, number: u64) -> Arc<Dir> {
    show(Numbers::state(tree, None, inodes), stamp(now, number).into(), None, inodes, now)
}

/// Projects `tree`, which was merged with what `before` shows as its hint. A state that looks the same stays in its directory.
pub(crate) fn next(
    tree: &Arc<Dir>,
    before: &Arc<Dir>,
    inodes: &Inodes,
    now: SystemTime,
    number: u64,
) -> Arc<Dir> {
    let had = inside(before);
    match had {
        Some((_, old)) if Arc::ptr_eq(old, tree) => before.clone(),
        Some((name, old)) if crate::diff::diff(old, tree).changes.is_empty() => {
            show(tree.clone(), name.clone(), Some(before), inodes, now)
        }
        _ => {
            let state = Numbers::state(tree, had.map(|(_, old)| old), inodes);
            show(state, stamp(now, number).into(), Some(before), inodes, now)
        }
    }
}

/// The top of a projection.
fn show(
    state: Arc<Dir>,
    name: Name,
    before: Option<&Arc<Dir>>,
    inodes: &Inodes,
    now: SystemTime,
) -> Arc<Dir> {
    let link = |name: &[u8], target: Vec<u8>| {
        let same = |node: &Node| match node {
            Node::File(file) => matches!(&file.leaf.content, Content::Target(have) if **have == *target),
            Node::Dir(_) => false,
        };
        let have = before.and_then(|before| before.get(name)).filter(|node| same(node));
        have.cloned().unwrap_or_else(|| Node::File(symlink(target, inodes, now)))
    };
    let mut entries: Vec<(Name, Node)> = vec![(DATA.into(), link(DATA, name.to_vec()))];
    for (name, _) in state.entries.iter().filter(|(name, _)| !name.starts_with(b"..")) {
        entries.push((name.clone(), link(name, [DATA, b"/", name].concat())));
    }
    let mut meta = state.meta;
    let stays = before.and_then(|before| Some((before, inside(before)?)));
    if let Some((before, (had, _))) = stays {
        meta.mtime = if *had == name { before.meta.mtime } else { now };
    }
    let sources: Vec<_> = state.sources().map(|(layer, dir)| (layer.clone(), dir.clone())).collect();
    entries.push((name, Node::Dir(state)));
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    Arc::new(Dir::of(ROOT, meta, entries, sources))
}

fn symlink(target: Vec<u8>, inodes: &Inodes, now: SystemTime) -> Arc<File> {
    let meta = Meta {
        kind: Kind::Symlink,
        perm: 0o777,
        size: target.len() as u64,
        mtime: now,
        ctime: now,
        ..Meta::bare_dir()
    };
    let leaf = Arc::new(Leaf::new(meta, Content::Target(target.into())));
    Arc::new(File { ino: inodes.next(), leaf, layer: NOBODY.into() })
}

/// Gives a state numbers of its own. Its directories get new ones: a directory has one place at a time. Files keep theirs, which
/// stand for contents, unless their attributes are others than in the state before, which can still be entered: what is
/// said of the old file there must not be taken for the new one's.
struct Numbers<'a> {
    inodes: &'a Inodes,
    /// Files with other attributes, by the number that they had: their names share the new one, too.
    other: HashMap<u64, Arc<File>>,
}

impl Numbers<'_> {
    fn state(tree: &Dir, old: Option<&Arc<Dir>>, inodes: &Inodes) -> Arc<Dir> {
        Numbers { inodes, other: HashMap::new() }.dir(tree, old)
    }

    fn dir(&mut self, dir: &Dir, old: Option<&Arc<Dir>>) -> Arc<Dir> {
        let mut entries = Vec::with_capacity(dir.entries.len());
        for (name, node) in &dir.entries {
            let node = match (node, old.and_then(|old| old.get(name))) {
                (Node::Dir(dir), Some(Node::Dir(old))) => Node::Dir(self.dir(dir, Some(old))),
                (Node::Dir(dir), _) => Node::Dir(self.dir(dir, None)),
                (Node::File(file), Some(Node::File(old)))
                    if file.ino == old.ino && file.leaf.meta != old.leaf.meta =>
                {
                    let fresh = || {
                        let File { leaf, layer, .. } = &**file;
                        Arc::new(File { ino: self.inodes.next(), leaf: leaf.clone(), layer: layer.clone() })
                    };
                    Node::File(self.other.entry(file.ino).or_insert_with(fresh).clone())
                }
                (Node::File(file), _) => Node::File(file.clone()),
            };
            entries.push((name.clone(), node));
        }
        let sources = dir.sources().map(|(layer, dir)| (layer.clone(), dir.clone()));
        Arc::new(Dir::of(self.inodes.next(), dir.meta, entries, sources))
    }
}

/// The name of a state's directory: the time of its switch, as `AtomicWriter` writes it, and what makes it the only one of its
/// name.
fn stamp(now: SystemTime, number: u64) -> Vec<u8> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar in years that begin with March, whose leap day is the last (Hinnant, "chrono-Compatible Low-Level
    // Date Algorithms"); day 0 of that is 719,468 days before 1970, and an era has 146,097.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (date, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("..{year:04}_{month:02}_{date:02}_{hour:02}_{minute:02}_{second:02}.{number:09}").into_bytes()
}

/// What a switch changes in what is shown, in the order in which watchers hear of it. Of trees that are no projections it is
/// [`diff`](crate::diff::diff) alone. `left` are the directories of the state that could be entered until now.
pub(crate) fn diff(old: &Arc<Dir>, new: &Arc<Dir>, left: &[u64]) -> Diff {
    let (Some((from, before)), Some((to, after))) = (inside(old), inside(new)) else {
        return crate::diff::diff(old, new);
    };
    if from == to {
        return crate::diff::diff(old, new);
    }
    let inner = crate::diff::diff(before, after);
    let top = |name: &[u8], what, dir| Change { path: name.into(), parent: ROOT, what, dir };
    let links = |root: &Dir| -> BTreeSet<Name> {
        let links = root.entries.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        links.map(|(name, _)| name.clone()).collect()
    };
    let ino = |root: &Dir, name: &[u8]| root.get(name).map_or(0, Node::ino);
    let mut changes = vec![top(to, What::Added { ino: after.ino }, true)];
    changes.push(top(DATA, What::Replaced { old: ino(old, DATA), new: ino(new, DATA) }, false));
    let (had, has) = (links(old), links(new));
    changes.extend(has.difference(&had).map(|name| top(name, What::Added { ino: ino(new, name) }, false)));
    changes.extend(had.difference(&has).map(|name| top(name, What::Removed { ino: ino(old, name) }, false)));
    // Watchers of files, whose directories only they know.
    let alive: BTreeSet<u64> = directories(before).into_iter().collect();
    changes.extend(inner.changes.into_iter().map(|change| {
        let gone = matches!(change.what, What::Removed { .. });
        let state = if gone { from } else { to };
        // Directories go with their state, and not before.
        let what = match change.what {
            What::Removed { ino } if alive.contains(&ino) => What::Removed { ino: NONE },
            What::Replaced { old, new } if alive.contains(&old) => What::Added { ino: new },
            what => what,
        };
        Change { path: [state, b"/".as_slice(), &change.path].concat(), what, ..change }
    }));
    // Only the name goes: the directory can be entered until the next switch.
    changes.push(top(from, What::Removed { ino: NONE }, true));
    changes.extend(left.iter().map(|&ino| Change {
        path: from.to_vec(),
        parent: NONE,
        what: What::Removed { ino },
        dir: true,
    }));
    let mut renewed = inner.renewed;
    renewed.push(Renewed { ino: new.ino, parent: NONE });
    Diff { changes, dirs: vec![new.clone()], same_inode: inner.same_inode, renewed }
}

/// No inode, and so none that anybody watches.
const NONE: u64 = 0;

/// The inodes of all directories of a state.
pub(crate) fn directories(state: &Dir) -> Vec<u64> {
    let mut found = vec![state.ino];
    let below = state.entries.iter().filter_map(|(_, node)| match node {
        Node::Dir(dir) => Some(dir),
        Node::File(_) => None,
    });
    found.extend(below.flat_map(|dir| directories(dir)));
    found
}

/// The path that people know for one that is shown: `site` for `..2026…/site`; `None` for what is of the projection itself.
pub(crate) fn plain(path: &[u8]) -> Option<&[u8]> {
    match path.iter().position(|byte| *byte == b'/') {
        Some(at) if path.starts_with(b"..") => path.get(at + 1..),
        None if path.starts_with(b"..") => None,
        _ => Some(path),
    }
}

#[cfg(test)]
#[path = "projection_tests.rs"]
mod tests;
