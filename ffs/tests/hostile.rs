//! Images that mean harm: each is refused with a reason, or shows a tree that cannot hurt; a mount that was
//! there keeps its layer, and whoever reads it gets no error. What no name may hold is shown as `_`.

mod common;

#[allow(dead_code, unreachable_pub, clippy::cast_possible_truncation, clippy::trivially_copy_pass_by_ref)]
#[path = "../../ctx/format/fuzz/src/forge.rs"]
mod forge;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Mounted, OnDrop, image};
use ctx_format::manifest::MANIFEST_PATH;
use ctx_format::read::{Entry, Kind, index};
use ctx_format::sign::{SIGNATURE_PATH, SecretKey};
use ctx_format::{ContextData, File, Priority};
use ffs::config::Config;
use ffs::layer::image::{ImageError, layer};
use ffs::layer::{Content, Layer, LayerDir, LayerNode, Leaf};
use ffs::sealed::Sealed;
use ffs::trust::Trust;
use forge::{Forge, NOT_FINAL, Record, SECTOR, both32, ce, cl, entry, nm, pl, px, re, rock_ridge_root, sl};
use proptest::prelude::*;

/// What becomes of an image.
enum Becomes {
    /// Refused, with these words in the reason.
    Refused(&'static str),
    /// Shown with exactly these paths; links with their target, files with their content.
    Shown(&'static [&'static str]),
}
use Becomes::{Refused, Shown};

/// The blocks that [`volume`] takes before anything else.
const ROOT: u32 = 19;
const CONTENT: u32 = 20;

/// A Rock Ridge image whose root has these records; `fill` adds blocks from 21 on.
fn volume(records: &[Record], fill: impl FnOnce(&mut Forge)) -> Vec<u8> {
    let mut forge = Forge::default();
    assert_eq!((forge.take(1), forge.put(b"content")), (ROOT, CONTENT));
    fill(&mut forge);
    forge.write_dir(ROOT, &[&dots(ROOT, ROOT, &[rock_ridge_root()])[..], records].concat());
    forge.finish((ROOT, 2048), None)
}

fn dots(own: u32, parent: u32, entries: &[Vec<u8>]) -> [Record; 2] {
    dots_of(1, own, parent, entries)
}

/// The first two records of a directory of so many blocks.
fn dots_of(blocks: u32, own: u32, parent: u32, entries: &[Vec<u8>]) -> [Record; 2] {
    [Record::dir(b"\0", own, blocks * 2048).with(entries), Record::dir(b"\x01", parent, 2048)]
}

fn file(name: &[u8]) -> Record {
    Record::file(b"F", CONTENT, 7).with(&[px(0o100_644), nm(name)])
}

fn dir(name: &[u8], block: u32) -> Record {
    Record::dir(b"D", block, 2048).with(&[px(0o040_755), nm(name)])
}

fn link(components: &[(u8, &[u8])]) -> Record {
    Record::file(b"L", 0, 0).with(&[px(0o120_777), nm(b"link"), sl(components)])
}

/// A directory of one block with these records.
fn put_dir(forge: &mut Forge, own: u32, parent: u32, entries: &[Vec<u8>], records: &[Record]) {
    assert_eq!(forge.take(1), own);
    forge.write_dir(own, &[&dots(own, parent, entries)[..], records].concat());
}

/// Blocks 21 on: directories below one another, the last with a file.
fn chain(levels: u32) -> Vec<u8> {
    volume(&[dir(b"0", 21)], |forge| {
        for level in 0..levels {
            let inner = if level + 1 == levels { file(b"bottom") } else { dir(b"d", 22 + level) };
            put_dir(forge, 21 + level, if level == 0 { ROOT } else { 20 + level }, &[], &[inner]);
        }
    })
}

/// Two thousand links whose targets are the same 4000 bytes.
fn shared_target() -> Vec<u8> {
    let mut part = sl(&[(0, &[b'x'; 240])]);
    // The next entry goes on with the target.
    part[4] = 1;
    let target = [part.repeat(15), sl(&[(0, b"x")])].concat();
    let length = u32::try_from(target.len()).expect("short");
    let records = (0..2000_u32).map(|n| {
        let entries = [px(0o120_777), nm(format!("l{n:04}").as_bytes()), ce(21, 0, length)];
        Record::file(format!("L{n:04}").as_bytes(), 0, 0).with(&entries)
    });
    let records: Vec<Record> = records.collect();
    let mut forge = Forge::default();
    assert_eq!((forge.take(1), forge.put(b"content")), (ROOT, CONTENT));
    assert_eq!(forge.put(&target), 21);
    let many = forge.take(140);
    let all = [&dots_of(140, many, many, &[rock_ridge_root()])[..], &records].concat();
    forge.write_dir(many, &all);
    forge.finish((many, 140 * 2048), None)
}

/// Two hundred directories, each of them all blocks from its own to the last.
fn overlapping() -> Vec<u8> {
    const BLOCKS: u32 = 200;
    let mut forge = Forge::default();
    let root = forge.take(10);
    let first = forge.take(BLOCKS as usize);
    for block in 0..BLOCKS {
        let records =
            (0..48).map(|n| Record::file(format!("{:02X}{n:02}", block % 256).as_bytes(), CONTENT, 0));
        forge.write_dir(
            first + block,
            &[&dots_of(BLOCKS - block, first + block, root, &[])[..], &records.collect::<Vec<_>>()].concat(),
        );
    }
    let subdirs =
        (0..BLOCKS).map(|n| Record::dir(format!("D{n:03}").as_bytes(), first + n, (BLOCKS - n) * 2048));
    forge.write_dir(root, &[&dots_of(10, root, root, &[])[..], &subdirs.collect::<Vec<_>>()].concat());
    forge.finish((root, 10 * 2048), None)
}

/// A zlib stream of one byte behind so many empty pieces; four pieces take five bytes.
fn empty_pieces(count: usize) -> Vec<u8> {
    let empty = [0x02, 0x08, 0x20, 0x80, 0x00].repeat(count / 4);
    // The piece that is not empty, and the checksum.
    [&b"\x78\x01"[..], &empty, b"\x01\x01\x00\xfe\xffx", b"\x00\x79\x00\x79"].concat()
}

/// Files of one byte that are the same zlib stream, each with `more` bytes behind it than the one before.
fn one_stream(files: u32, more: u32, stream: &[u8]) -> Vec<u8> {
    let end = 24 + u32::try_from(stream.len()).expect("short");
    let stored = [&[0; 16][..], &24_u32.to_le_bytes(), &end.to_le_bytes(), stream].concat();
    let zf = entry(b"ZF", &[&b"pz\x04\x11"[..], &both32(1)].concat());
    let records = (0..files).map(|n| {
        let name = format!("F{n:05}");
        let entries = [px(0o100_644), nm(name.as_bytes()), zf.clone()];
        Record::file(name.as_bytes(), 19, end + n * more).with(&entries)
    });
    let records: Vec<Record> = records.collect();
    let mut forge = Forge::default();
    assert_eq!(forge.put(&[stored, vec![0; (files * more) as usize]].concat()), 19);
    let blocks = 1 + files / 15;
    let root = forge.take(blocks as usize);
    forge.write_dir(root, &[&dots_of(blocks, root, root, &[rock_ridge_root()])[..], &records].concat());
    forge.finish((root, blocks * 2048), None)
}

fn compressed() -> Vec<(&'static str, Vec<u8>, Becomes)> {
    vec![
        ("two files of one stream", one_stream(2, 0, &empty_pieces(8)), Shown(&["F00000=x", "F00001=x"])),
        // 150 KB are what a block of 128 KiB may take, but not one of a byte.
        (
            "a byte in a hundred thousand pieces",
            one_stream(9000, 0, &empty_pieces(119_000)),
            Refused("block 0 cannot have the size"),
        ),
        (
            "a byte in six hundred pieces",
            one_stream(1, 0, &empty_pieces(600)),
            Refused("block 0 is compressed in too many pieces"),
        ),
        (
            "nine thousand files of one stream, all a little different",
            one_stream(9000, 1, &empty_pieces(600)),
            Refused("the compressed files of the image overlap"),
        ),
    ]
}

/// A signed image of `a/conf` and `b/conf`, forged: the two directories overlap. Both come to one record, with which a
/// file begins, and behind it go on at the next sector, each counted from its own beginning: to another end of the
/// file. Each path has the content that was signed, although the two files begin at the same place.
fn two_in_one(key: &SecretKey) -> Vec<u8> {
    let data = ContextData {
        class: "infrastructure".parse().expect("a class"),
        priority: Priority(5),
        generation: 3,
        instance_id: "i".parse().expect("an instance"),
        files: [
            ("a/conf".parse().expect("a path"), File::private("meant for a\n")),
            ("b/conf".parse().expect("a path"), File::private("meant for b alone\n")),
        ]
        .into(),
    };
    let json = data.manifest().to_json();
    let signature = key.sign(&json);
    let [a, b] = ["a/conf", "b/conf"].map(|path| data.files[path].content.clone());
    let mut forge = Forge::default();
    let (manifest, sig) = (forge.put(&json), forge.put(&signature));
    let (at_a, at_b) = (forge.put(&a), forge.put(&b));
    let (root, meta, shown, first) = (forge.take(1), forge.take(1), forge.take(1), forge.take(4));
    // Blocks have 512 bytes.
    let block = |sector: u32| 4 * sector;
    let dots = |own: u32, len: u32, entries: &[Vec<u8>]| {
        let own = Record::dir(b"\0", own, len).with(&[entries, &[px(0o040_700)]].concat());
        [own, Record::dir(b"\x01", block(root), 2048)]
    };
    let sub = |name: &str, own: u32, len: u32| {
        let entries = [nm(name.as_bytes()), px(0o040_700)];
        Record::dir(name.to_uppercase().as_bytes(), own, len).with(&entries)
    };
    let file = |path: &str, at: u32, len: usize| {
        let name = path.rsplit('/').next().unwrap_or(path);
        let entries = [nm(name.as_bytes()), px(0o100_600)];
        Record::file(b"F", at, u32::try_from(len).expect("short")).with(&entries)
    };
    let (outer, inner) = ((block(first), 6144), (block(first) + 1, 4096));
    let top = [sub(".ctx", block(meta), 2048), sub("data", block(shown), 2048)];
    forge.write_dir(root, &[&dots(block(root), 2048, &[rock_ridge_root()])[..], &top].concat());
    let files =
        [file(MANIFEST_PATH, block(manifest), json.len()), file(SIGNATURE_PATH, block(sig), signature.len())];
    forge.write_dir(meta, &[&dots(block(meta), 2048, &[])[..], &files].concat());
    let both = [sub("a", outer.0, outer.1), sub("b", inner.0, inner.1)];
    forge.write_dir(shown, &[&dots(block(shown), 2048, &[])[..], &both].concat());
    let mut image = forge.finish((block(root), 2048), None);
    image[16 * SECTOR + 128..16 * SECTOR + 132].copy_from_slice(&[0, 2, 2, 0]);
    let mut write = |offset: usize, records: &[Record]| {
        let bytes: Vec<u8> = records.iter().flat_map(Record::bytes).collect();
        let start = first as usize * SECTOR + offset;
        image[start..start + bytes.len()].copy_from_slice(&bytes);
        offset + bytes.len()
    };
    write(0, &dots(outer.0, outer.1, &[]));
    let mut end = write(512, &dots(inner.0, inner.1, &[]));
    // Up to the shared record are associated files, which are not shown.
    while end < SECTOR {
        let len = if SECTOR - end > 250 { 200 } else { SECTOR - end };
        let filler = Record { system_use: vec![0; len - 38], ..Record::file(b"FILL", 0, 0).flagged(4) };
        end = write(end, &[filler]);
    }
    write(SECTOR, &[file("conf", 0, 0).flagged(NOT_FINAL)]);
    write(SECTOR + 512, &[file("conf", block(at_b), b.len())]);
    write(2 * SECTOR, &[file("conf", block(at_a), a.len())]);
    image
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_be_bytes).collect()
}

/// A plain tree with `F` and a Joliet one with these records.
fn joliet(records: &[Record]) -> Vec<u8> {
    let mut forge = Forge::default();
    assert_eq!((forge.take(1), forge.put(b"content")), (ROOT, CONTENT));
    forge.write_dir(ROOT, &[&dots(ROOT, ROOT, &[])[..], &[Record::file(b"F", CONTENT, 7)]].concat());
    put_dir(&mut forge, 21, 21, &[], records);
    forge.finish((ROOT, 2048), Some((21, 2048)))
}

/// Every case with what becomes of it.
fn cases() -> Vec<(&'static str, Vec<u8>, Becomes)> {
    let whole = volume(&[file(b"a")], |_| {});
    let mut cases = vec![
        ("a whole one, to compare with", whole.clone(), Shown(&["a=content"])),
        ("no bytes", vec![], Refused("not an ISO 9660 image")),
        ("one byte", vec![1], Refused("not an ISO 9660 image")),
        ("cut in the descriptors", whole[..16 * SECTOR + 100].to_vec(), Refused("damaged")),
        ("cut before the root", whole[..18 * SECTOR].to_vec(), Refused("the image is truncated")),
        ("cut before the content", whole[..20 * SECTOR].to_vec(), Refused("the image is truncated")),
        (
            "a root outside",
            {
                let mut image = whole.clone();
                let root = 16 * SECTOR + 156;
                image[root + 2..root + 10].copy_from_slice(&forge::both32(1 << 30));
                image
            },
            Refused("outside the image"),
        ),
    ];
    cases.extend(loops());
    cases.extend(names());
    cases.extend(extents());
    cases.extend(rock_ridge());
    cases.extend(compressed());
    cases.extend([
        (
            "Joliet and the plain tree disagree",
            joliet(&[Record::file(&wide("j"), CONTENT, 7)]),
            Shown(&["j=content"]),
        ),
        ("a slash in Joliet", joliet(&[Record::file(&wide("a/b"), CONTENT, 7)]), Refused("it has a slash")),
        (
            "dots in Joliet",
            joliet(&[Record::file(&wide(".."), CONTENT, 7)]),
            Refused("it stands for a directory"),
        ),
        ("Joliet outside", joliet(&[Record::file(&wide("j"), 1 << 20, 7)]), Refused("outside the image")),
        (
            "path tables that lie",
            {
                // Nobody needs them: directories say where their directories are.
                let mut image = whole;
                image[16 * SECTOR + 132..16 * SECTOR + 156].fill(0xff);
                image
            },
            Shown(&["a=content"]),
        ),
    ]);
    cases
}

fn loops() -> Vec<(&'static str, Vec<u8>, Becomes)> {
    vec![
        ("the root in itself", volume(&[dir(b"d", ROOT)], |_| {}), Refused("reached twice")),
        (
            "a directory in itself",
            volume(&[dir(b"d", 21)], |forge| {
                put_dir(forge, 21, ROOT, &[], &[dir(b"d", 21)]);
            }),
            Refused("reached twice"),
        ),
        (
            "two names of a directory",
            volume(&[dir(b"d", 21), dir(b"e", 21)], |forge| {
                put_dir(forge, 21, ROOT, &[], &[file(b"a")]);
            }),
            Refused("reached twice"),
        ),
        ("directories that overlap", overlapping(), Refused("overlaps another one")),
        ("a hundred levels", chain(100), Shown(&[])),
        ("two hundred levels", chain(200), Refused("nested directories")),
    ]
}

fn names() -> Vec<(&'static str, Vec<u8>, Becomes)> {
    let one = |record: Record| volume(&[record], |_| {});
    vec![
        ("a slash", one(file(b"a/b")), Refused("it has a slash")),
        ("a way up", one(file(b"../../etc/passwd")), Refused("it has a slash")),
        ("dot dot", one(file(b"..")), Refused("it stands for a directory")),
        ("dot", one(file(b".")), Refused("it stands for a directory")),
        ("a NUL", one(file(b"a\0b")), Shown(&["a=content"])),
        ("no name in NM", one(file(b"")), Shown(&["f=content"])),
        ("no Unicode", one(file(b"\xff\xfe")), Shown(&["\u{fffd}\u{fffd}=content"])),
        ("a slash in the plain name", one(Record::file(b"A/B", CONTENT, 7)), Shown(&["a.b=content"])),
        ("a name twice", volume(&[file(b"a"), file(b"a")], |_| {}), Refused("twice")),
        (
            "400 bytes of name",
            one(Record::file(b"F", CONTENT, 7).with(&[px(0o100_644), nm(&[b'x'; 100]), ce(21, 0, 248)])),
            Refused(""),
        ),
    ]
}

fn extents() -> Vec<(&'static str, Vec<u8>, Becomes)> {
    let one = |record: Record| volume(&[record], |_| {});
    let part = |len| Record::file(b"F", CONTENT, len).flagged(NOT_FINAL);
    vec![
        ("a block outside", one(Record::file(b"F", 1 << 31, 7)), Refused("outside the image")),
        (
            "more bytes than there are",
            one(Record::file(b"F", CONTENT, u32::MAX)),
            Refused("outside the image"),
        ),
        ("a directory outside", one(dir(b"d", 1 << 31)), Refused("outside the image")),
        (
            "2^40 bytes in pieces",
            {
                let records = [vec![part(0xffff_f800); 20], vec![Record::file(b"F", CONTENT, 7)]].concat();
                volume(&records, |_| {})
            },
            Refused("outside the image"),
        ),
        (
            "the same bytes a hundred times",
            {
                let records = [vec![part(2048); 30], vec![Record::file(b"F", CONTENT, 7)]].concat();
                volume(&records, |_| {})
            },
            Refused("more bytes than the image"),
        ),
        (
            "two files of the same bytes",
            volume(&[file(b"a"), file(b"b")], |_| {}),
            Shown(&["a=content", "b=content"]),
        ),
        ("a file that is its directory", one(Record::file(b"F", ROOT, 0)), Shown(&["f="])),
    ]
}

fn rock_ridge() -> Vec<(&'static str, Vec<u8>, Becomes)> {
    let with = |entries: &[Vec<u8>]| {
        volume(&[Record::file(b"F", CONTENT, 7).with(entries)], |forge| {
            forge.put(&[ce(22, 0, 28), nm(b"x")].concat());
            forge.put(&ce(21, 0, 28));
        })
    };
    vec![
        ("a continuation of itself", with(&[ce(22, 0, 28)]), Refused("damaged")),
        ("two continuations in a circle", with(&[ce(21, 0, 28)]), Refused("damaged")),
        ("a continuation outside", with(&[ce(1 << 30, 0, 28)]), Refused("outside the image")),
        ("a continuation of 4 GiB", with(&[ce(21, 0, u32::MAX)]), Refused("outside the image")),
        ("two thousand links of the same 4000 bytes", shared_target(), Refused("more bytes of names")),
        (
            "a link out of the tree",
            volume(&[link(&[(4, b""), (4, b""), (0, b"etc")])], |_| {}),
            Shown(&["link->../../etc"]),
        ),
        ("a link to the root", volume(&[link(&[(8, b""), (0, b"etc")])], |_| {}), Shown(&["link->/etc"])),
        (
            "a slash in a link's component",
            volume(&[link(&[(0, b"a/../b")])], |_| {}),
            Shown(&["link->a/../b"]),
        ),
        ("a NUL in a link", volume(&[link(&[(0, b"a\0b")])], |_| {}), Refused("no usable target")),
        ("a link to nothing", volume(&[link(&[])], |_| {}), Refused("no usable target")),
        (
            "a moved directory in itself",
            volume(&[Record::file(b"C", 21, 0).with(&[nm(b"here"), px(0o040_755), cl(21)])], |forge| {
                let again = Record::file(b"C", 21, 0).with(&[nm(b"again"), px(0o040_755), cl(21)]);
                put_dir(forge, 21, 21, &[re(), pl(21)], &[again]);
            }),
            Refused(""),
        ),
        (
            "a directory moved to the root",
            volume(&[Record::file(b"C", ROOT, 0).with(&[nm(b"here"), px(0o040_755), cl(ROOT)])], |_| {}),
            Refused(""),
        ),
        (
            "a directory moved outside",
            volume(&[Record::file(b"C", 1, 0).with(&[nm(b"here"), px(0o040_755), cl(1 << 30)])], |_| {}),
            Refused(""),
        ),
        (
            "moved, with another parent than it says",
            volume(&[Record::file(b"C", 21, 0).with(&[nm(b"here"), px(0o040_755), cl(21)])], |forge| {
                put_dir(forge, 21, ROOT, &[pl(CONTENT)], &[file(b"a")]);
            }),
            Shown(&[]),
        ),
    ]
}

fn read(image: &[u8]) -> Result<Layer, ImageError> {
    let limit = image.len() as u64;
    let sealed = Sealed::read_from(&mut &image[..], limit).expect("memory");
    Ok(layer(sealed, Some("x"), Some(9), "test", &Trust::without_keys())?.0)
}

/// The processor time that this thread has had: that of the wall says how busy the machine is.
fn computed() -> std::time::Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock of Linux").into()
}

#[test]
fn each_is_refused_with_a_reason_or_harmless() {
    let mut wrong = Vec::new();
    for (name, bytes, becomes) in cases() {
        let began = computed();
        let became = read(&bytes);
        let took = computed().saturating_sub(began);
        match (became, becomes) {
            (Err(error), Refused(words)) if error.to_string().contains(words) => {}
            (Ok(layer), Shown(_)) => check_names(&layer.root),
            (Err(error), _) => wrong.push(format!("{name}: refused: {error}")),
            (Ok(layer), _) => wrong.push(format!("{name}: shown with {} entries", layer.root.entries.len())),
        }
        assert!(took < std::time::Duration::from_secs(5), "{name} took {took:?}");
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Everything of a layer is what the index says of the same path: what was hashed is what is shown.
fn same(dir: &Entry, shown: &LayerDir, bytes: &[u8]) -> Result<(), String> {
    for child in dir.children() {
        let name = String::from_utf8_lossy(&child.name);
        // A whiteout's name is that of what it hides.
        let Some(node) = shown.entries.get(&child.name[..]) else { continue };
        match (node, &child.kind) {
            (LayerNode::Dir(inner), Kind::Dir(_)) => same(child, inner, bytes)?,
            (LayerNode::Leaf(leaf), kind) => {
                let expected = match kind {
                    Kind::Symlink(target) => target.clone(),
                    _ => child.content(bytes).unwrap_or_default(),
                };
                let Leaf { meta, content, .. } = &**leaf;
                let content = match content {
                    Content::Sealed { image, ranges } => image.chunks(ranges).collect::<Vec<_>>().concat(),
                    Content::Target(target) => target.to_vec(),
                    _ => Vec::new(),
                };
                let attributes = (meta.perm, meta.uid, meta.gid, meta.size);
                if content != expected || attributes != (child.mode, child.uid, child.gid, child.size) {
                    return Err(format!("{name}: {attributes:?} {content:?}, and {child:?} {expected:?}"));
                }
            }
            (LayerNode::Whiteout, _) => {}
            (LayerNode::Dir(_), other) => return Err(format!("{name}: a directory, and {other:?}")),
        }
    }
    Ok(())
}

#[test]
fn what_was_checked_is_what_is_shown() {
    let dir = tempfile::tempdir().expect("a directory");
    let key = SecretKey::from_seed(&[1; 32]);
    std::fs::write(dir.path().join("a.pub"), format!("{}\n", key.public())).expect("write");
    let config = Config {
        trust: vec![format!("{}/*.pub", dir.path().display())],
        trust_state: Some(dir.path().join("accepted.json")),
        ..Config::default()
    };
    let trust = Trust::new(&config, dir.path()).expect("keys");
    let bytes = two_in_one(&key);
    let sealed = Sealed::read_from(&mut &bytes[..], bytes.len() as u64).expect("memory");
    match layer(sealed, None, None, "test", &trust) {
        Err(error) => assert!(error.to_string().contains("overlaps another one"), "{error}"),
        Ok((layer, _)) => {
            let index = index(&bytes).expect("an image");
            panic!("{:?}", same(index.root.get("data").expect("data"), &layer.root, &bytes));
        }
    }
    for (name, bytes, becomes) in cases() {
        let Shown(_) = becomes else { continue };
        let (index, layer) = (index(&bytes).expect(name), read(&bytes).expect(name));
        assert_eq!(same(&index.root, &layer.root, &bytes), Ok(()), "{name}");
    }
}

/// Bytes that are read of every image here: its descriptors, and the directories that follow.
fn structure() -> Vec<u8> {
    let px = |links: u32, serial: u32| {
        entry(b"PX", &[both32(0o100_644), both32(links), both32(0), both32(0), both32(serial)].concat())
    };
    let linked = |name: &[u8], serial| Record::file(b"F", CONTENT, 7).with(&[px(2, serial), nm(name)]);
    let part = |name: &[u8], extent, len| Record::file(b"P", extent, len).with(&[nm(name)]);
    let parts = [part(b"p", CONTENT, 2048).flagged(NOT_FINAL), part(b"p", 21, 9)];
    volume(
        &[&[linked(b"a", 1), linked(b"b", 1), linked(b"c", 2), dir(b"d", 22), dir(b"e", 23)][..], &parts]
            .concat(),
        |forge| {
            forge.put(b"different");
            put_dir(forge, 22, ROOT, &[], &[linked(b"a", 1), file(b"f")]);
            put_dir(forge, 23, ROOT, &[], &[linked(b"a", 2), file(b"f")]);
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Whatever is wrong with the directories: what is shown under a path is what the index says of it.
    #[test]
    fn whatever_an_image_says_its_layer_shows_what_the_index_says(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 0_usize..40, any::<u8>()), 1..6),
        small_blocks in any::<bool>(),
    ) {
        thread_local!(static IMAGE: Vec<u8> = structure());
        let mut bytes = IMAGE.with(Clone::clone);
        if small_blocks {
            bytes[16 * SECTOR + 128..16 * SECTOR + 132].copy_from_slice(&[0, 2, 2, 0]);
            for at in record_starts(&bytes).into_iter().chain([16 * SECTOR + 156]) {
                let block = u32::from_le_bytes(std::array::from_fn(|byte| bytes[at + 2 + byte]));
                bytes[at + 2..at + 10].copy_from_slice(&both32(4 * block));
            }
        }
        let records = record_starts(&bytes);
        for (record, at, value) in changes {
            // Most numbers are small, and mean something.
            bytes[record.get(&records) + at] = if value < 192 { value % 32 * 4 } else { value };
        }
        if let (Ok(index), Ok(layer)) = (index(&bytes), read(&bytes)) {
            prop_assert_eq!(same(&index.root, &layer.root, &bytes), Ok(()));
        }
    }
}

/// Where the records of [`structure`] begin.
fn record_starts(image: &[u8]) -> Vec<usize> {
    let mut starts = Vec::new();
    for sector in [ROOT, 22, 23] {
        let mut at = sector as usize * SECTOR;
        while image[at] != 0 {
            starts.push(at);
            at += usize::from(image[at]);
        }
    }
    starts
}

fn check_names(dir: &LayerDir) {
    for (name, node) in &dir.entries {
        assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0) && **name != *b"..");
        if let LayerNode::Dir(dir) = node {
            check_names(dir);
        }
    }
}

/// Paths below a directory, links with their targets and files with their content, unless it is deep.
fn shown(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("readdir") {
        let entry = entry.expect("readdir");
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            shown(&entry.path());
        } else if kind.is_symlink() {
            let target = std::fs::read_link(entry.path()).expect("readlink");
            found.push(format!("{name}->{}", target.display()));
        } else {
            let text = std::fs::read(entry.path()).expect("read");
            found.push(format!("{name}={}", String::from_utf8_lossy(&text)));
        }
    }
    found.sort();
    found
}

#[test]
fn a_mount_keeps_its_layer_and_its_readers() {
    needs_mount!("a_mount_keeps_its_layer_and_its_readers");
    let dir = tempfile::tempdir().expect("a directory");
    let iso = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).expect("write");
        path.display().to_string()
    };
    let good = iso("good.iso", &image("infrastructure", 9, 1, &[("site", "local")]));
    let mounted = Mounted::new(&[
        "--layer",
        &format!("other=iso:{}", iso("other.iso", &image("service", 1, 1, &[("key", "k")]))),
        "--layer",
        &format!("x=iso:{good}"),
    ]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (mounted, over) = (&mounted, &over);
        scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(mounted.read("key"), "k");
                let names = std::fs::read_dir(mounted.at("")).expect("opendir");
                assert!(names.map(|entry| entry.expect("readdir").file_name()).any(|name| name == "key"));
            }
        });
        let _end = OnDrop(|| over.store(true, Ordering::Relaxed));
        for (name, bytes, becomes) in cases() {
            let path = iso("hostile.iso", &bytes);
            let output = mounted.ffs(&[
                "layer",
                "replace",
                mounted.at("").to_str().expect("text"),
                &format!("x=iso:{path}"),
            ]);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            match becomes {
                Refused(words) => {
                    assert_eq!(output.status.code(), Some(1), "{name}: {error}");
                    // Where there is nothing, the reader of the file says so.
                    assert!(error.contains(words) || bytes.is_empty(), "{name}: {error}");
                    assert_eq!(mounted.read("site"), "local", "{name}");
                }
                Shown(paths) => {
                    assert!(output.status.success(), "{name}: {error}");
                    let mut found = shown(&mounted.at(""));
                    found.retain(|path| path != "key=k");
                    assert_eq!(found, paths, "{name}");
                    mounted.layer("replace", &format!("x=iso:{good}"));
                }
            }
        }
    });
    let status = mounted.status();
    assert_eq!(status.layers.len(), 2);
}
