//! A generation: all layers of one moment, merged, immutable.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crate::layer::Layer;
use crate::merge::{Dir, Inodes, Node, merge};

/// The state of a mount between two switches.
#[derive(Debug)]
pub struct Generation {
    /// Grows by one with each switch, from 0.
    pub number: u64,
    /// The layers, highest priority first.
    pub layers: Vec<Arc<Layer>>,
    /// The merged tree.
    pub root: Arc<Dir>,
    totals: OnceLock<Totals>,
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
        let root = merge(&layers, before.map(|before| &before.root), inodes, now);
        Self { number: before.map_or(0, |before| before.number + 1), layers, root, totals: OnceLock::new() }
    }

    /// A generation that was built by another program.
    pub(crate) fn resume(number: u64, layers: Vec<Arc<Layer>>, root: Arc<Dir>) -> Self {
        Self { number, layers, root, totals: OnceLock::new() }
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
