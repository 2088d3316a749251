//! A tree that went through the state is the same tree.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use super::*;
use crate::layer::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta};
use crate::merge::{Dir, ROOT};
use crate::sealed::Sealed;
use crate::table::Way;

fn leaf(content: Content, links: u32) -> LayerNode {
    let kind = if matches!(content, Content::Target(_)) { Kind::Symlink } else { Kind::File };
    LayerNode::Leaf(Arc::new(Leaf::new(Meta { kind, size: 3, links, ..Meta::bare_dir() }, content)))
}

fn layer(name: &str, priority: u16, entries: Vec<(&str, LayerNode)>) -> Arc<Layer> {
    let entries = entries.into_iter().map(|(name, node)| (name.as_bytes().into(), node)).collect();
    let root = Arc::new(LayerDir { entries, ..LayerDir::new(Meta::bare_dir()) });
    let (name, origin) = (name.to_owned(), format!("iso:/{name}"));
    Arc::new(Layer { name, priority, origin, class: None, generation: Some(1), vouched: None, root })
}

fn layers() -> Vec<Arc<Layer>> {
    let image = Arc::new(Sealed::read_from(&mut &b"abcdef"[..], 100).unwrap());
    let sealed = |start| Content::Sealed { image: image.clone(), ranges: Box::new([(start, 3)]) };
    let linked = leaf(sealed(0), 2);
    let sub = layer("sub", 0, vec![("deep", leaf(sealed(3), 1)), ("linked", linked.clone())]);
    let file = tempfile::tempfile().unwrap();
    let stamp = crate::layer::Stamp { inode: (1, 2), size: 3, ctime: (4, 5) };
    let held = Content::Held { file, stamp, in_memory: OnceLock::new() };
    vec![
        layer(
            "low",
            1,
            vec![
                ("sub", LayerNode::Dir(sub.root.clone())),
                ("gone", leaf(sealed(0), 1)),
                ("other", linked.clone()),
            ],
        ),
        layer(
            "high",
            2,
            vec![
                ("a", linked),
                ("b", leaf(held, 1)),
                ("gone", LayerNode::Whiteout),
                ("l\n", leaf(Content::Target((*b"a").into()), 1)),
            ],
        ),
    ]
}

/// Paths with inode numbers and what a program reads.
fn shown(dir: &Dir) -> Vec<(Vec<u8>, u64, Vec<u8>)> {
    let mut all = Vec::new();
    for (name, node) in &dir.entries {
        let content = match node {
            Node::Dir(dir) => {
                all.extend(shown(dir));
                Vec::new()
            }
            Node::File(file) => match &file.leaf.content {
                Content::Sealed { image, ranges } => image.chunks(ranges).collect::<Vec<_>>().concat(),
                Content::Target(target) => target.to_vec(),
                Content::Held { stamp, .. } => format!("{stamp:?}").into_bytes(),
                _ => Vec::new(),
            },
        };
        all.push((name.to_vec(), node.ino(), content));
    }
    all
}

fn packed(generation: &Generation, inodes: &Inodes) -> (Tree, Vec<(state::Node, u64)>, Vec<OwnedFd>) {
    let mut packer = pack::Packer::default();
    let shown = packer.generation(generation);
    let known = vec![(packer.node(&Node::Dir(generation.root.clone())), 1)];
    let before = Some((packer.generation(generation), state::Desired::default()));
    let (tree, files) = packer.finish(shown, before, inodes);
    (tree, known, files)
}

#[test]
fn a_tree_comes_back_with_its_numbers_and_what_it_shares() {
    let inodes = Inodes::default();
    let generation = Generation::build(layers(), None, &inodes, SystemTime::UNIX_EPOCH);
    let (tree, _, _files) = packed(&generation, &inodes);
    // The generation before is the same one: each object is there once.
    assert_eq!((tree.sealed.len(), tree.layers.len(), tree.dirs.len()), (1, 2, 2));
    let objects = unpack::Unpacked::new(&tree).unwrap();
    let again = objects.generation(&tree.shown).unwrap();
    assert_eq!(shown(&again.root), shown(&generation.root));
    assert_eq!(again.totals(), generation.totals());
    assert_eq!(again.number, generation.number);
    for (a, b) in again.layers.iter().zip(&generation.layers) {
        assert!(crate::dirs::same(a, b));
    }
    // It takes part in a merge as the one before it would: nothing has changed, nothing is new.
    let inodes = objects.inodes(&tree).unwrap();
    let next = Generation::build(again.layers.clone(), Some(&again), &inodes, SystemTime::now());
    assert!(Arc::ptr_eq(&next.root, &again.root));
    // Names of one file share it, and what is added gets the next number.
    let names = shown(&again.root);
    let number = |name: &[u8]| names.iter().find(|(have, ..)| have == name).unwrap().1;
    assert_eq!(number(b"other"), number(b"linked"));
    let new = layer("new", 3, vec![("new", leaf(Content::Empty, 1))]);
    let more: Vec<_> = again.layers.iter().cloned().chain([new]).collect();
    let next = Generation::build(more, Some(&again), &inodes, SystemTime::now());
    let highest = names.iter().map(|(_, ino, _)| *ino).max().unwrap();
    assert_eq!(next.root.get(b"new").unwrap().ino(), highest + 1);
    assert_eq!(next.root.get(b"a").unwrap().ino(), number(b"a"));
}

type Change = fn(&mut Tree, &mut Kernel, &mut Connection);

#[test]
fn what_contradicts_itself_is_refused() {
    let inodes = Inodes::default();
    let generation = Generation::build(layers(), None, &inodes, SystemTime::UNIX_EPOCH);
    let (tree, known, _files) = packed(&generation, &inodes);
    let fuse = std::fs::File::open("/dev/null").unwrap();
    let connection = Connection {
        fuse: fuse.as_raw_fd(),
        device: 0,
        agreed: state::Agreed::default(),
        private: Err("none".to_owned()),
        users_mount: false,
        refused_writes: 0,
    };
    let (ways, open_dirs) = (vec![(ROOT, Way::Passed(5))], vec![(3, tree.shown.root)]);
    let kernel = Kernel { known, ways, next_handle: 7, open_dirs, covered: Vec::new(), stale: true };
    let good = unpack(&connection, &tree, &kernel).unwrap();
    assert_eq!(good.shared.table.ways(), [(ROOT, Way::Passed(5))]);
    assert_eq!((good.shared.table.len(), good.shared.dirs.all().0), (1, 7));
    assert!(good.shared.table.has(ROOT) && good.shared.dirs.get(3).is_some());

    let wrong: [(&str, Change); 10] = [
        ("not there", |tree, _, _| tree.shown.root = 99),
        ("not there", |tree, _, _| tree.dirs[0].entries[0].1 = state::Node::Dir(0)),
        ("not there", |_, kernel, _| kernel.open_dirs.push((4, 99))),
        ("outside of its image", |tree, _, _| {
            let at = |leaf: &&mut state::Leaf| matches!(leaf.2, state::Content::Sealed(..));
            tree.leaves.iter_mut().find(at).unwrap().2 = state::Content::Sealed(0, vec![(u64::MAX, 2)]);
        }),
        ("given out twice", |tree, _, _| tree.next_inode = 3),
        ("not in order", |tree, _, _| tree.dirs.last_mut().unwrap().entries.swap(0, 1)),
        ("the kernel does not know", |_, kernel, _| kernel.ways.push((99, Way::Asked))),
        ("in two ways", |_, kernel, _| kernel.ways.push((ROOT, Way::Asked))),
        ("does not know the root", |_, kernel, _| kernel.known.clear()),
        ("was not handed over", |_, _, connection| connection.fuse = 1_000_000),
    ];
    for (says, change) in wrong {
        let (mut tree, mut kernel, mut connection) = (tree.clone(), kernel.clone(), connection.clone());
        change(&mut tree, &mut kernel, &mut connection);
        let error = unpack(&connection, &tree, &kernel).err().unwrap().to_string();
        assert!(error.contains(says), "{error}, not {says}");
    }
    // Memory that could still be written is not an image.
    let mut other = tree.clone();
    other.sealed[0] = fuse.as_raw_fd();
    assert!(unpack(&connection, &other, &kernel).is_err());
}
