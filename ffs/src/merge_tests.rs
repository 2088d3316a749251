//! The merge against a naive model: path by path, from the definition.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::{Dir, Inodes, Node, ROOT, merge};
use crate::diff::{What, diff};
use crate::layer::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta, Name};

/// A node of a layer, for the model.
#[derive(Debug, Clone)]
pub(crate) enum Tree {
    File(String),
    Whiteout,
    Dir { opaque: bool, entries: BTreeMap<String, Tree> },
}

fn leaf(target: &str) -> Leaf {
    let meta = Meta { kind: Kind::Symlink, perm: 0o777, size: target.len() as u64, ..Meta::bare_dir() };
    Leaf::new(meta, Content::Target(target.as_bytes().into()))
}

fn build(tree: &Tree) -> LayerNode {
    match tree {
        Tree::File(content) => LayerNode::Leaf(Arc::new(leaf(content))),
        Tree::Whiteout => LayerNode::Whiteout,
        Tree::Dir { opaque, entries } => {
            let entries =
                entries.iter().map(|(name, tree)| (Name::from(name.as_bytes()), build(tree))).collect();
            LayerNode::Dir(Arc::new(LayerDir { opaque: *opaque, entries, ..LayerDir::new(Meta::bare_dir()) }))
        }
    }
}

fn layer(priority: u16, tree: &Tree) -> Arc<Layer> {
    let LayerNode::Dir(root) = build(tree) else { panic!("a layer's root is a directory") };
    let name = format!("layer{priority}");
    Arc::new(Layer {
        name,
        priority,
        origin: String::new(),
        class: None,
        generation: None,
        vouched: None,
        root,
    })
}

/// What the union shows at each path: the content of a file, or nothing for a directory.
fn model(layers: &[&Tree]) -> BTreeMap<String, Option<String>> {
    fn show(stack: &[&Tree], path: &str, out: &mut BTreeMap<String, Option<String>>) {
        // `stack`: what each layer has at this path, highest first, as far down as it matters.
        let dirs = stack.iter().map_while(|tree| match tree {
            Tree::Dir { opaque, entries } => Some((opaque, entries)),
            _ => None,
        });
        let mut names: Vec<&String> = Vec::new();
        let mut seen = Vec::new();
        for (opaque, entries) in dirs {
            seen.push(entries);
            names.extend(entries.keys());
            if *opaque {
                break;
            }
        }
        names.sort();
        names.dedup();
        for name in names {
            let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let below: Vec<&Tree> = seen.iter().filter_map(|entries| entries.get(name)).collect();
            match below.first() {
                Some(Tree::File(content)) => {
                    out.insert(path, Some(content.clone()));
                }
                Some(Tree::Dir { .. }) => {
                    out.insert(path.clone(), None);
                    show(&below, &path, out);
                }
                Some(Tree::Whiteout) | None => {}
            }
        }
    }
    let mut out = BTreeMap::new();
    show(layers, "", &mut out);
    out
}

pub(crate) type Shown = BTreeMap<String, (u64, Option<String>)>;

pub(crate) fn shown(root: &Arc<Dir>) -> Shown {
    fn walk(dir: &Dir, path: &str, out: &mut Shown) {
        assert!(dir.entries.is_sorted_by(|a, b| a.0 < b.0));
        for (name, node) in &dir.entries {
            let name = std::str::from_utf8(name).unwrap();
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            let content = match node {
                Node::Dir(dir) => {
                    walk(dir, &path, out);
                    None
                }
                Node::File(file) => match &file.leaf.content {
                    Content::Target(target) => Some(String::from_utf8(target.to_vec()).unwrap()),
                    _ => panic!("only targets are made here"),
                },
            };
            out.insert(path, (node.ino(), content));
        }
    }
    let mut out = BTreeMap::new();
    walk(root, "", &mut out);
    out
}

pub(crate) fn contents(shown: &Shown) -> BTreeMap<String, Option<String>> {
    shown.iter().map(|(path, (_, content))| (path.clone(), content.clone())).collect()
}

pub(crate) fn any_tree() -> impl Strategy<Value = Tree> {
    let name = "[ab]";
    let leaf = prop_oneof![4 => "[xy]".prop_map(Tree::File), 1 => Just(Tree::Whiteout)];
    let node = leaf.prop_recursive(3, 12, 3, move |inner| {
        (prop::bool::weighted(0.1), prop::collection::btree_map(name, inner, 0..3))
            .prop_map(|(opaque, entries)| Tree::Dir { opaque, entries })
    });
    (prop::bool::weighted(0.1), prop::collection::btree_map(name, node, 0..3))
        .prop_map(|(opaque, entries)| Tree::Dir { opaque, entries })
}

pub(crate) fn stack(layers: &[Tree]) -> Vec<Arc<Layer>> {
    layers.iter().zip((1..=u16::MAX).rev()).map(|(tree, priority)| layer(priority, tree)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn it_shows_what_the_definition_says(
        before in prop::collection::vec(any_tree(), 0..4),
        after in prop::collection::vec(any_tree(), 0..4),
    ) {
        let inodes = Inodes::default();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let old_layers = stack(&before);
        let old = merge(&old_layers, None, &inodes, now);
        let old_shown = shown(&old);
        prop_assert_eq!(contents(&old_shown), model(&before.iter().collect::<Vec<_>>()));

        // With the tree before as a hint the result shows the same as without.
        let new = merge(&stack(&after), Some(&old), &inodes, now);
        let new_shown = shown(&new);
        prop_assert_eq!(contents(&new_shown), model(&after.iter().collect::<Vec<_>>()));

        // A number never stands for two contents, and paths that did not change keep theirs.
        let by_ino: BTreeMap<u64, &Option<String>> =
            old_shown.values().map(|(ino, content)| (*ino, content)).collect();
        for (path, (ino, content)) in &new_shown {
            prop_assert!(*ino != ROOT);
            if let Some(was) = by_ino.get(ino) {
                prop_assert_eq!(*was, content);
                prop_assert_eq!(&old_shown[path].0, ino);
            }
            if let Some((was, old_content)) = old_shown.get(path)
                && old_content == content
            {
                prop_assert_eq!(was, ino, "{} changed its number", path);
            }
        }

        // The difference names exactly the paths that differ.
        let mut told: BTreeMap<String, What> = BTreeMap::new();
        for change in diff(&old, &new).changes {
            if !matches!(change.what, What::Attributes { .. }) {
                let path = String::from_utf8(change.path).unwrap();
                told.insert(path, change.what);
            }
        }
        let paths: std::collections::BTreeSet<&String> = old_shown.keys().chain(new_shown.keys()).collect();
        for path in paths {
            match (old_shown.get(path), new_shown.get(path), told.remove(path)) {
                (Some(a), Some(b), None) => prop_assert_eq!(a, b),
                (Some(a), Some(b), Some(What::Replaced { old, new })) => {
                    prop_assert_eq!((a.0, b.0), (old, new));
                }
                (Some(a), None, Some(What::Removed { ino })) => prop_assert_eq!(a.0, ino),
                (None, Some(b), Some(What::Added { ino })) => prop_assert_eq!(b.0, ino),
                // A directory in place of one that a file replaced is told as removed and added
                // below it; the later of the two is kept in `told`.
                (Some(_), Some(_), Some(What::Added { .. } | What::Removed { .. })) => {}
                other => prop_assert!(false, "{}: {:?}", path, other),
            }
        }
        prop_assert!(told.is_empty(), "{:?}", told);
    }

    #[test]
    fn the_same_layers_give_the_same_object(layers in prop::collection::vec(any_tree(), 0..4)) {
        let inodes = Inodes::default();
        let layers = stack(&layers);
        let old = merge(&layers, None, &inodes, SystemTime::UNIX_EPOCH);
        let new = merge(&layers, Some(&old), &inodes, SystemTime::now());
        prop_assert!(Arc::ptr_eq(&old, &new));
        prop_assert!(diff(&old, &new).changes.is_empty());
    }
}

#[test]
fn a_listing_that_changed_has_a_new_time() {
    let file = |content: &str| Tree::File(content.to_owned());
    let dir = |entries: &[(&str, Tree)]| Tree::Dir {
        opaque: false,
        entries: entries.iter().map(|(name, tree)| ((*name).to_owned(), tree.clone())).collect(),
    };
    let inodes = Inodes::default();
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    let first = merge(&[layer(1, &dir(&[("d", dir(&[("x", file("1"))]))]))], None, &inodes, now);
    let same = merge(&[layer(1, &dir(&[("d", dir(&[("x", file("1"))]))]))], Some(&first), &inodes, now);
    let other = merge(&[layer(1, &dir(&[("d", dir(&[("x", file("2"))]))]))], Some(&first), &inodes, now);
    let time = |root: &Arc<Dir>| root.get(b"d").unwrap().meta().mtime;
    assert_eq!(time(&first), SystemTime::UNIX_EPOCH);
    assert_eq!(time(&same), SystemTime::UNIX_EPOCH);
    assert_eq!(time(&other), now);
}
