//! A generation: all layers of one moment, merged, immutable.

use std::sync::{Arc, OnceLock, Weak};
use std::time::SystemTime;

use crate::diff::Diff;
use crate::layer::{Layer, Name};
use crate::merge::{Dir, Inodes, Node, merge};
use crate::projection;

/// The state of a mount between two switches.
#[derive(Debug)]
pub struct Generation {
    /// Grows by one with each switch, from 0.
    pub number: u64,
    /// The layers, highest priority first.
    pub layers: Vec<Arc<Layer>>,
    /// The merged tree; where it is projected, the projection.
    pub root: Arc<Dir>,
    /// The state before, which a projection lets in who was on the way to it.
    pub(crate) earlier: Option<Earlier>,
    totals: OnceLock<Totals>,
}

/// What a projection showed before. Its memory is that of the generation kept for a rollback, and is not held here.
#[derive(Debug, Clone)]
pub(crate) struct Earlier {
    pub(crate) name: Name,
    pub(crate) state: Weak<Dir>,
    /// The inodes of its directories.
    pub(crate) dirs: Vec<u64>,
}

/// How much a generation shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Names, the root not counted.
    pub names: u64,
    /// Bytes of all files.
    pub bytes: u64,
}

impl Generation {
    /// Merges layers into the generation after `before`.
    pub fn build(
        mut layers: Vec<Arc<Layer>>,
        before: Option<&Self>,
        inodes: &Inodes,
        now: SystemTime,
    ) -> Self {
        layers.sort_by(|a, b| (b.priority, &b.name).cmp(&(a.priority, &a.name)));
        let number = before.map_or(0, |before| before.number + 1);
        let shown = before.map(|before| &before.root);
        let state = shown.and_then(|shown| projection::inside(shown));
        let tree = merge(&layers, state.map(|(_, tree)| tree).or(shown), inodes, now);
        let (root, earlier) = match (shown, state) {
            (Some(shown), Some((name, state))) => {
                let root = projection::next(&tree, shown, inodes, now, number);
                let stays = projection::inside(&root).is_some_and(|(now, _)| now == name);
                let earlier = if stays {
                    before.and_then(|before| before.earlier.clone())
                } else {
                    let dirs = projection::directories(state);
                    Some(Earlier { name: name.clone(), state: Arc::downgrade(state), dirs })
                };
                (root, earlier)
            }
            _ => (tree, None),
        };
        Self { number, layers, root, earlier, totals: OnceLock::new() }
    }

    /// The same generation, projected, and with it all that come after it.
    #[must_use]
    pub fn projected(mut self, inodes: &Inodes, now: SystemTime) -> Self {
        self.root = projection::first(&self.root, inodes, now, self.number);
        self
    }

    /// Whether it is a projection of the merged tree.
    pub fn is_projected(&self) -> bool {
        projection::inside(&self.root).is_some()
    }

    /// The directory that a path is in, without a leading slash.
    pub(crate) fn dir_of(&self, path: &[u8]) -> Option<&Arc<Dir>> {
        let mut names: Vec<&[u8]> = path.split(|byte| *byte == b'/').collect();
        names.pop();
        names.into_iter().try_fold(&self.root, |dir, name| match dir.get(name)? {
            Node::Dir(below) => Some(below),
            Node::File(_) => None,
        })
    }

    /// The state before, by the name of its directory.
    pub(crate) fn earlier(&self, name: &[u8]) -> Option<Node> {
        let earlier = self.earlier.as_ref().filter(|earlier| *earlier.name == *name)?;
        earlier.state.upgrade().map(Node::Dir)
    }

    /// What the switch from `before` to this one changes, in the order in which watchers hear of it.
    pub(crate) fn diff(&self, before: &Self) -> Diff {
        let left = before.earlier.as_ref().map_or(&[][..], |earlier| &earlier.dirs);
        projection::diff(&before.root, &self.root, left)
    }

    /// A generation that was built by another program.
    pub(crate) fn resume(
        number: u64,
        layers: Vec<Arc<Layer>>,
        root: Arc<Dir>,
        earlier: Option<Earlier>,
    ) -> Self {
        Self { number, layers, root, earlier, totals: OnceLock::new() }
    }

    /// How much there is; counted when first asked.
    pub fn totals(&self) -> Totals {
        *self.totals.get_or_init(|| {
            let mut totals = Totals::default();
            let mut stack = vec![&self.root];
            while let Some(dir) = stack.pop() {
                for (_, node) in &dir.entries {
                    totals.names += 1;
                    match node {
                        Node::Dir(dir) => stack.push(dir),
                        Node::File(file) => totals.bytes = totals.bytes.saturating_add(file.leaf.meta.size),
                    }
                }
            }
            totals
        })
    }
}
