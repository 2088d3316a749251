//! Images that mean harm: each is refused with a reason, or shows a tree that cannot hurt; a mount that was
//! there keeps its layer, and whoever reads it gets no error. What no name may hold is shown as `_`.

mod common;

#[allow(dead_code, unreachable_pub, clippy::cast_possible_truncation, clippy::trivially_copy_pass_by_ref)]
#[path = "../../ctx/format/fuzz/src/forge.rs"]
mod forge;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Mounted, OnDrop, image};
use ffs::layer::image::{ImageError, layer};
use ffs::layer::{Layer, LayerDir, LayerNode};
use ffs::sealed::Sealed;
use ffs::trust::Trust;
use forge::{Forge, NOT_FINAL, Record, SECTOR, ce, cl, nm, pl, px, re, rock_ridge_root, sl};

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

/// A thousand links whose targets are the same 4000 bytes.
fn shared_target() -> Vec<u8> {
    let mut part = sl(&[(0, &[b'x'; 240])]);
    // The next entry goes on with the target.
    part[4] = 1;
    let target = [part.repeat(15), sl(&[(0, b"x")])].concat();
    let length = u32::try_from(target.len()).expect("short");
    let records = (0..1000_u32).map(|n| {
        let entries = [px(0o120_777), nm(format!("l{n:04}").as_bytes()), ce(21, 0, length)];
        Record::file(format!("L{n:04}").as_bytes(), 0, 0).with(&entries)
    });
    let records: Vec<Record> = records.collect();
    let mut forge = Forge::default();
    assert_eq!((forge.take(1), forge.put(b"content")), (ROOT, CONTENT));
    assert_eq!(forge.put(&target), 21);
    let many = forge.take(70);
    let all = [&dots_of(70, many, many, &[rock_ridge_root()])[..], &records].concat();
    forge.write_dir(many, &all);
    forge.finish((many, 70 * 2048), None)
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
        ("directories that overlap", overlapping(), Refused("more bytes of names")),
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
        ("a NUL", one(file(b"a\0b")), Refused("it has a NUL")),
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
        ("a thousand links of the same 4000 bytes", shared_target(), Refused("more bytes of names")),
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
