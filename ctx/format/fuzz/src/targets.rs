//! What must hold for any input: no panic, no more memory than the input earns, and what is accepted is
//! safe to show to programs.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use ctx_format::manifest::{Manifest, Mode};
use ctx_format::read::{Entry, Kind, Limits, Range, index_within};
use ctx_format::{ContextData, File, ImageOptions, Label, Priority, write_iso};
use ffs::diff::diff;
use ffs::generation::Generation;
use ffs::layer::{Content, Layer, image};
use ffs::memory::Limit;
use ffs::merge::{Dir, Inodes, Node};
use ffs::sealed::Sealed;
use ffs::trust::Trust;

use crate::cost;
use crate::forge::{self, Forge, Record, SECTOR};

/// Images begin with sixteen sectors that nobody reads: inputs begin behind them.
pub const SKIPPED: usize = 16 * SECTOR;
/// Memory may grow to four times the image, and so much more for what does not grow with it.
const BESIDE: usize = 128 << 10;
/// The same where the limits are those of a real mount, which have a constant of 4 MiB: an index of that, and what is made
/// of it, several times.
const BESIDE_LAYER: usize = 32 << 20;
/// What is read of each file: a hostile image may name the same bytes many times.
const READ_MAX: usize = 1 << 16;

/// The image that an input stands for.
pub fn image_of(input: &[u8]) -> Vec<u8> {
    let mut image = vec![0; SKIPPED];
    image.extend_from_slice(input);
    image
}

/// Any image: the index.
pub fn image(input: &[u8]) {
    check_index(&image_of(input));
}

fn check_index(image: &[u8]) {
    let limits = Limits { memory: image.len() as u64 + (16 << 10), ..Limits::for_len(image.len()) };
    let indexed = cost::within(4 * image.len() + BESIDE, || index_within(image, limits));
    let Ok(indexed) = indexed else { return };
    let mut stack = vec![(&indexed.root, 0)];
    let mut entries = 0;
    let mut numbers: HashMap<u64, &Entry> = HashMap::new();
    while let Some((entry, depth)) = stack.pop() {
        assert!(depth <= limits.depth, "too deep");
        check_entry(entry, image);
        let children = entry.children();
        assert!(children.windows(2).all(|pair| pair[0].name < pair[1].name), "not sorted, or twice");
        entries += children.len();
        stack.extend(children.iter().map(|child| (child, depth + 1)));
        for child in children {
            assert!((1..=255).contains(&child.name.len()), "length of a name");
            assert!(!child.name.contains(&b'/') && !child.name.contains(&0), "a byte of a name");
            assert!(child.name != b"." && child.name != b"..", "dots");
            if !matches!(child.kind, Kind::Dir(_)) {
                let first = *numbers.entry(child.id).or_insert(child);
                let named = Entry { name: child.name.clone(), ..first.clone() };
                assert_eq!(&named, child, "names of one file that differ");
            }
        }
    }
    assert_eq!(entries, indexed.entries);
}

fn check_entry(entry: &Entry, image: &[u8]) {
    assert!(entry.mode <= 0o7777 && entry.mtime.nanos < 1_000_000_000);
    match &entry.kind {
        Kind::File(ranges) => {
            let len: u64 = ranges.iter().map(|range| range.len).sum();
            assert_eq!(len, entry.size);
            assert!(entry.size <= image.len() as u64, "more content than image");
            let inside =
                |start: u64, len: u64| start.checked_add(len).is_some_and(|end| end <= image.len() as u64);
            assert!(ranges.iter().all(|range| range.len > 0 && inside(range.start, range.len)));
        }
        Kind::Compressed(zisofs) => {
            let inside = |range: &Range| range.of(image).is_some_and(|bytes| !bytes.is_empty());
            assert!(zisofs.ranges.iter().all(inside) && entry.size <= u64::from(u32::MAX));
            // Bounded, since a few bytes stand for 4 GiB.
            let blocks = zisofs.blocks(image, entry.size).take(16).map_while(Result::ok);
            assert!(blocks.map(|block| block.len() as u64).sum::<u64>() <= entry.size);
        }
        Kind::Symlink(target) => {
            assert!((1..=4095).contains(&target.len()) && !target.contains(&0), "a target");
        }
        _ => {}
    }
}

/// System use entries of a file and of a directory, and a block where they may go on.
pub fn susp(input: &[u8]) {
    let Some((&[first, second], rest)) = input.split_first_chunk::<2>() else { return };
    let (of_file, rest) = rest.split_at(rest.len().min(first.into()));
    let (of_dir, more) = rest.split_at(rest.len().min(second.into()));
    check_index(&susp_image(of_file, of_dir, &more[..more.len().min(4 * SECTOR)]));
}

/// The image that [`susp`] makes: blocks 19 root, 20 and 21 directories, 22 content, from 23 on `more`.
pub fn susp_image(of_file: &[u8], of_dir: &[u8], more: &[u8]) -> Vec<u8> {
    let mut forge = Forge::default();
    let (root, dir, moved) = (forge.take(1), forge.take(1), forge.take(1));
    let content = forge.put(b"content");
    forge.put(more);
    let with = |record: Record, entries: &[u8]| record.with(&[entries.to_vec()]);
    let dots = |own: u32, parent: u32| [Record::dir(b"\0", own, 2048), Record::dir(b"\x01", parent, 2048)];
    let [own, parent] = dots(root, root);
    forge.write_dir(
        root,
        &[
            own.with(&[forge::rock_ridge_root()]),
            parent,
            with(Record::dir(b"D", dir, 2048), of_dir),
            with(Record::file(b"F;1", content, 7), of_file),
            Record::dir(b"M", moved, 2048).with(&[forge::nm(b"moved"), forge::px(0o040_755)]),
        ],
    );
    let [own, parent] = dots(dir, root);
    forge.write_dir(dir, &[with(own, of_dir), parent, with(Record::file(b"G;1", content, 7), of_file)]);
    let [own, parent] = dots(moved, root);
    let parent = parent.with(&[forge::pl(root)]);
    forge.write_dir(moved, &[own, parent, with(Record::dir(b"H", dir, 2048), of_dir)]);
    forge.finish((root, 2048), None)
}

/// The Joliet tree's root directory: up to four blocks as they are.
pub fn joliet(input: &[u8]) {
    check_index(&joliet_image(input));
}

/// The image that [`joliet`] makes: blocks 19 the plain root, 20 content, from 21 on the Joliet root.
pub fn joliet_image(root: &[u8]) -> Vec<u8> {
    let root = &root[..root.len().min(4 * SECTOR)];
    let mut forge = Forge::default();
    let plain = forge.take(1);
    forge.put(b"content");
    forge.write_dir(plain, &[Record::dir(b"\0", plain, 2048), Record::dir(b"\x01", plain, 2048)]);
    let len = root.len().next_multiple_of(SECTOR).max(SECTOR);
    let at = forge.take(len / SECTOR);
    forge.write(at, root);
    forge.finish((plain, 2048), Some((at, len as u32)))
}

/// The JSON of a manifest: what is read is written and read again the same.
pub fn manifest(input: &[u8]) {
    // A parsed path takes an entry of a map beside its bytes.
    let parsed = cost::within(64 * input.len() + BESIDE, || Manifest::parse(input));
    let Ok(parsed) = parsed else { return };
    let json = parsed.to_json();
    assert_eq!(Manifest::parse(&json).expect("what was written is read"), parsed);
    for (path, entry) in &parsed.files {
        assert!(path.components().all(|part| !matches!(part, "" | "." | "..")));
        let checked = parsed.verify_file(path.as_str(), b"");
        assert_eq!(checked.is_ok(), entry.size == 0 && entry.sha256 == ctx_format::manifest::Sha256::of(b""));
    }
}

/// A context image whose files the inputs of [`layer`] take the place of.
pub fn context(generation: u64) -> Vec<u8> {
    let file = |text: &str| File { content: text.into(), mode: Mode::PRIVATE };
    let data = ContextData {
        class: "infrastructure".parse().expect("a class"),
        priority: Priority(9),
        generation,
        instance_id: "fuzz".parse().expect("an instance"),
        files: [
            ("endpoints/storage".parse().expect("a path"), file("198.18.2.10\n")),
            ("site".parse().expect("a path"), file(if generation > 1 { "local\n" } else { "remote\n" })),
            ("keys/long/below/here".parse().expect("a path"), file(&"key ".repeat(700))),
        ]
        .into(),
    };
    write_iso(&data, &ImageOptions { label: Label::Rectx }).expect("an image")
}

fn sealed(image: &[u8]) -> Sealed {
    Sealed::read_from(&mut &image[..], image.len() as u64).expect("memory")
}

/// What an image may hold, compressed files decompressed.
const LIMIT: Limit = Limit { image: 4 << 20, total: u64::MAX };

/// Image, layer, merge with another layer, what changed, and everything looked up and read.
pub fn layer(input: &[u8]) {
    static TRUST: LazyLock<Trust> = LazyLock::new(Trust::without_keys);
    static BEFORE: LazyLock<Arc<Layer>> = LazyLock::new(|| {
        Arc::new(image::layer(sealed(&context(1)), Some("x"), None, "fuzz", &TRUST).expect("a layer").0)
    });
    static BASE: LazyLock<Arc<Layer>> = LazyLock::new(|| {
        Arc::new(image::layer(sealed(&context(2)), Some("base"), Some(1), "fuzz", &TRUST).expect("a layer").0)
    });
    let (before, base) = (BEFORE.clone(), BASE.clone());
    let image = image_of(input);
    // A reader's megabyte and the like are no matter of the image.
    let image_in_memory = sealed(&image);
    cost::within(4 * image.len() + BESIDE_LAYER, || {
        let Ok((layer, _)) = image::layer_within(image_in_memory, Some("x"), Some(5), "fuzz", &TRUST, &LIMIT)
        else {
            return;
        };
        let inodes = Inodes::default();
        let now = SystemTime::UNIX_EPOCH;
        let old = Generation::build(vec![before, base.clone()], None, &inodes, now);
        let new = Generation::build(vec![Arc::new(layer), base], Some(&old), &inodes, now);
        let changes = diff(&old.root, &new.root);
        for change in &changes.changes {
            assert!(!change.path.is_empty() && !change.path.starts_with(b"/"));
        }
        let mut numbers = HashSet::new();
        visit(&new.root, &mut numbers);
        assert!(new.totals().names + 1 >= numbers.len() as u64);
        // And back again.
        let back = Generation::build(old.layers.clone(), Some(&new), &inodes, now);
        assert_eq!(back.totals(), old.totals());
    });
}

fn visit(root: &Arc<Dir>, numbers: &mut HashSet<u64>) {
    let mut stack = vec![root];
    while let Some(dir) = stack.pop() {
        assert!(numbers.insert(dir.ino), "a directory's number twice");
        for (name, node) in &dir.entries {
            assert_eq!(dir.get(name).map(Node::ino), Some(node.ino()));
            match node {
                Node::Dir(dir) => stack.push(dir),
                Node::File(file) => {
                    let Content::Sealed { image, ranges } = &file.leaf.content else { continue };
                    let len: u64 = image.chunks(ranges).map(|chunk| chunk.len() as u64).sum();
                    assert_eq!(len, file.leaf.meta.size, "content that is not there");
                    let read = image.chunks(ranges).flatten().take(READ_MAX);
                    std::hint::black_box(read.fold(0_u8, |sum, byte| sum ^ byte));
                }
            }
        }
    }
}
