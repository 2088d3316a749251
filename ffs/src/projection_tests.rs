//! Projections of a history of random layers, against the same history without one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::{DATA, diff, inside, plain, stamp};
use crate::diff::What;
use crate::generation::Generation;
use crate::layer::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta};
use crate::merge::tests::{any_tree, contents, shown, stack};
use crate::merge::{Dir, Inodes, Node, ROOT, merge};

/// What a program arrives at by a name at the top.
fn follow<'a>(root: &'a Dir, name: &[u8]) -> Option<&'a Node> {
    let Some(Node::File(link)) = root.get(name) else { return None };
    let Content::Target(target) = &link.leaf.content else { return None };
    let rest = target.strip_prefix(b"..data/".as_slice())?;
    inside(root)?.1.get(rest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_state_is_whole_behind_one_link_and_what_changed_is_told_in_order(
        history in prop::collection::vec(prop::collection::vec(any_tree(), 0..4), 1..6),
    ) {
        let (inodes, others) = (Inodes::default(), Inodes::default());
        let now = |at: usize| SystemTime::UNIX_EPOCH + Duration::from_secs(at as u64);
        let mut before: Option<(Generation, Arc<Dir>)> = None;
        let mut files: BTreeMap<u64, Option<String>> = BTreeMap::new();
        let mut dirs: BTreeMap<u64, (Vec<u8>, String)> = BTreeMap::new();
        for (at, layers) in history.iter().enumerate() {
            let generation = match &before {
                None => Generation::build(stack(layers), None, &inodes, now(at)).projected(&inodes, now(at)),
                Some((before, _)) => Generation::build(stack(layers), Some(before), &inodes, now(at)),
            };
            let other = merge(&stack(layers), before.as_ref().map(|(_, other)| other), &others, now(at));
            let root = &generation.root;
            let (name, state) = inside(root).expect("a projection");

            // The state is what it would be, and its names are all at the top.
            prop_assert_eq!(root.ino, ROOT);
            prop_assert!(root.entries.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert_eq!(contents(&shown(state)), contents(&shown(&other)));
            prop_assert_eq!(root.entries.len(), state.entries.len() + 2);
            for (name, node) in &state.entries {
                prop_assert_eq!(follow(root, name).map(Node::ino), Some(node.ino()));
            }

            // A number stands for one content, and that of a directory for one place.
            for (path, (ino, content)) in shown(root) {
                if content.is_some() {
                    prop_assert_eq!(files.entry(ino).or_insert_with(|| content.clone()), &content);
                } else {
                    let place = (name.to_vec(), path);
                    prop_assert_eq!(dirs.entry(ino).or_insert_with(|| place.clone()), &place);
                }
            }

            if let Some((old, old_other)) = &before {
                let told = generation.diff(old).changes;
                let plainly = crate::diff::diff(old_other, &other).changes;
                let (had, _) = inside(&old.root).expect("a projection");
                if plainly.is_empty() {
                    prop_assert!(told.is_empty(), "{:?}", told);
                    prop_assert_eq!(had, name);
                } else {
                    prop_assert_ne!(had, name);
                    let top = |name: &[u8]| told.iter().position(|change| change.parent == ROOT && *change.path == *name);
                    let (new, data, gone) = (top(name), top(DATA), top(had));
                    prop_assert!(new < data && data < gone && new.is_some(), "{:?}", told);
                    for change in told.iter().filter(|change| change.parent == ROOT) {
                        let at = top(&change.path);
                        prop_assert!(new <= at && at <= gone);
                    }
                    // Hooks and logs hear of what has changed, and of nothing else.
                    let known: BTreeSet<&[u8]> = told.iter().filter_map(|change| plain(&change.path)).collect();
                    let expected: BTreeSet<&[u8]> = plainly.iter().map(|change| change.path.as_slice()).collect();
                    prop_assert_eq!(known, expected);
                    // Who is on the way still arrives, and nobody's directory is taken away under him.
                    prop_assert_eq!(generation.earlier(had).map(|node| node.ino()), Some(inside(&old.root).unwrap().1.ino));
                    let alive: BTreeSet<u64> = shown(&old.root).values().filter(|(_, c)| c.is_none()).map(|(ino, _)| *ino).collect();
                    let dead = told.iter().filter_map(|change| match change.what {
                        What::Removed { ino } | What::Replaced { old: ino, .. } => Some(ino),
                        _ => None,
                    });
                    for ino in dead {
                        prop_assert!(!alive.contains(&ino));
                    }
                }
            }
            let again = Generation::build(stack(layers), Some(&generation), &inodes, now(at));
            prop_assert!(again.diff(&generation).changes.is_empty());
            let same = Generation::build(again.layers.clone(), Some(&again), &inodes, now(at));
            prop_assert!(Arc::ptr_eq(&same.root, &again.root));
            before = Some((generation, other));
        }
    }

    #[test]
    fn a_tree_that_is_no_projection_is_compared_as_ever(before in any_tree(), after in any_tree()) {
        let inodes = Inodes::default();
        let old = merge(&stack(&[before]), None, &inodes, SystemTime::UNIX_EPOCH);
        let new = merge(&stack(&[after]), Some(&old), &inodes, SystemTime::UNIX_EPOCH);
        prop_assert_eq!(diff(&old, &new, &[]).changes, crate::diff::diff(&old, &new).changes);
    }
}

#[test]
fn a_file_with_other_attributes_is_another_file() {
    let at = |perm: u16, links: u32| {
        let LayerDir { mut entries, .. } = LayerDir::new(Meta::bare_dir());
        let meta = Meta { kind: Kind::Symlink, perm, links, ..Meta::bare_dir() };
        let leaf = Arc::new(Leaf::new(meta, Content::Target(b"x".as_slice().into())));
        for name in [b"a", b"b"] {
            entries.insert(name.as_slice().into(), LayerNode::Leaf(leaf.clone()));
        }
        let root = Arc::new(LayerDir { entries, ..LayerDir::new(Meta::bare_dir()) });
        let (name, origin) = ("l".to_owned(), String::new());
        vec![Arc::new(Layer {
            name,
            priority: 1,
            origin,
            class: None,
            generation: None,
            vouched: None,
            root,
        })]
    };
    let (inodes, now) = (Inodes::default(), SystemTime::UNIX_EPOCH);
    let first = Generation::build(at(0o644, 2), None, &inodes, now).projected(&inodes, now);
    let next = Generation::build(at(0o600, 2), Some(&first), &inodes, now);
    let same = Generation::build(at(0o600, 2), Some(&next), &inodes, now);
    let numbers = |generation: &Generation| {
        let (_, state) = inside(&generation.root).unwrap();
        [b"a", b"b"].map(|name| state.get(name).unwrap().ino())
    };
    let [[a, b], [c, d]] = [numbers(&first), numbers(&next)];
    assert!(a == b && c == d && a != c, "{a} {b} {c} {d}");
    assert_eq!(numbers(&same), [c, d]);
    let changes = next.diff(&first).changes;
    let replaced = changes.iter().filter(|change| change.what == What::Replaced { old: a, new: c });
    assert_eq!(replaced.count(), 2, "{changes:?}");
}

#[test]
fn a_state_is_named_by_its_time() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let name = |seconds, number| String::from_utf8(stamp(at(seconds), number)).unwrap();
    assert_eq!(name(0, 0), "..1970_01_01_00_00_00.000000000");
    assert_eq!(name(951_782_399, 1), "..2000_02_28_23_59_59.000000001");
    assert_eq!(name(951_782_400, 2), "..2000_02_29_00_00_00.000000002");
    assert_eq!(name(1_735_689_599, 3), "..2024_12_31_23_59_59.000000003");
    assert_eq!(name(4_107_542_400, 4), "..2100_03_01_00_00_00.000000004");
}

#[test]
fn paths_are_those_of_the_layers() {
    assert_eq!(plain(b"..2026_11_24_20_43_39.000000007/d/site"), Some(b"d/site".as_slice()));
    assert_eq!(plain(b"site"), Some(b"site".as_slice()));
    assert_eq!(plain(DATA), None);
    assert_eq!(plain(b"..2026_11_24_20_43_39.000000007"), None);
}
