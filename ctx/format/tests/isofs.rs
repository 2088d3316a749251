//! The reader beside Linux's own: the same image, indexed and mounted, has the same names, attributes and content.
//!
//! Runs where the kernel has isofs, as root: also in user-mode Linux, with the root file system of the machine
//! (`linux.uml rootfstype=hostfs rw init=…`).

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use ctx_format::read::{Entry, Kind, index};
use forge::{DIRECTORY, Forge, NOT_FINAL, Record, both32, cl, entry, nm, pl, px, re, sl};

/// The fuzz targets make their images so, too.
#[path = "../fuzz/src/forge.rs"]
#[allow(dead_code, unreachable_pub, clippy::pedantic)]
mod forge;

/// What is compared of a file.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: i64,
    /// Content, or where a link points.
    content: Vec<u8>,
    device: u64,
}

type Tree = BTreeMap<Vec<u8>, Seen>;

/// A mount that ends with this.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

/// Mounts an image; the reason where that cannot be done here.
fn mount<'a>(image: &Path, at: &'a Path) -> Result<Mount<'a>, String> {
    let run = Command::new("mount").args(["-t", "iso9660", "-o", "ro,loop,utf8"]).args([image, at]).output();
    match run {
        Ok(run) if run.status.success() => Ok(Mount(at)),
        Ok(run) => Err(String::from_utf8_lossy(&run.stderr).trim().to_owned()),
        Err(error) => Err(format!("mount: {error}")),
    }
}

/// Everything below a directory of a mounted image.
fn mounted(dir: &Path, prefix: &[u8], into: &mut Tree) {
    for item in fs::read_dir(dir).unwrap() {
        let item = item.unwrap();
        let meta = item.metadata().unwrap();
        let path = [prefix, item.file_name().as_bytes()].concat();
        let content = if meta.is_file() {
            fs::read(item.path()).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(item.path()).unwrap().as_os_str().as_bytes().to_vec()
        } else {
            Vec::new()
        };
        let seen = Seen {
            mode: meta.mode(),
            owner: (meta.uid(), meta.gid()),
            mtime: meta.mtime(),
            content,
            device: meta.rdev(),
        };
        into.insert(path.clone(), seen);
        if meta.is_dir() {
            mounted(&item.path(), &[&path[..], b"/"].concat(), into);
        }
    }
}

/// Everything below a directory of an indexed image.
fn indexed(dir: &Entry, bytes: &[u8], prefix: &[u8], into: &mut Tree) {
    for child in dir.children() {
        let path = [prefix, &child.name].concat();
        let (kind, content) = match &child.kind {
            Kind::Dir(_) => (0o040_000, Vec::new()),
            Kind::File(_) | Kind::Compressed(_) => (0o100_000, child.content(bytes).unwrap()),
            Kind::Symlink(target) => (0o120_000, target.clone()),
            Kind::CharDevice => (0o020_000, Vec::new()),
            Kind::BlockDevice => (0o060_000, Vec::new()),
            Kind::Fifo => (0o010_000, Vec::new()),
            Kind::Socket => (0o140_000, Vec::new()),
        };
        // Small numbers, as makedev(3) puts them together.
        let (major, minor) = child.device;
        let seen = Seen {
            mode: kind | u32::from(child.mode),
            owner: (child.uid, child.gid),
            mtime: child.mtime.secs,
            content,
            device: u64::from(major) << 8 | u64::from(minor),
        };
        into.insert(path.clone(), seen);
        indexed(child, bytes, &[&path[..], b"/"].concat(), into);
    }
}

/// A tree with some of everything.
fn tree(at: &Path) {
    let deep = (0..10).fold(at.to_owned(), |path, level| path.join(format!("level{level}")));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("bottom"), "deep").unwrap();
    fs::write(at.join("UPPER.TXT"), "upper").unwrap();
    fs::write(at.join("a longer name, grün.text"), "long").unwrap();
    fs::write(at.join("text"), "line\n".repeat(50_000)).unwrap();
    fs::write(at.join("empty"), "").unwrap();
    fs::hard_link(at.join("text"), at.join("again")).unwrap();
    fs::set_permissions(at.join("empty"), PermissionsExt::from_mode(0o4750)).unwrap();
    symlink("../else where/./x", at.join("link")).unwrap();
    // Where even root may make none, there is none to compare.
    let _ = Command::new("mknod").arg(at.join("device")).args(["b", "8", "1"]).status();
}

/// An image with these records in its root, at block 19, `one` and `two` at 20 and 21, and a directory at 22.
fn image(own: &[Vec<u8>], records: &[Record], inner: &[Record]) -> Vec<u8> {
    let mut forge = Forge::default();
    let root = forge.take(1);
    forge.put(b"one");
    forge.put(b"two");
    let dir = forge.take(1);
    assert_eq!((root, dir), (19, 22));
    let parent = Record::dir(b"\x01", root, 2048);
    forge.write_dir(root, &[&[Record::dir(b"\0", root, 2048).with(own), parent.clone()], records].concat());
    forge.write_dir(dir, &[&[Record::dir(b"\0", dir, 2048), parent], inner].concat());
    forge.finish((root, 2048), None)
}

/// What real programs write seldom, or never.
fn forged() -> Vec<(&'static str, Vec<u8>)> {
    let rock = [forge::rock_ridge_root()];
    let file = |name: &[u8]| Record::file(name, 20, 3);
    let with = |name: &[u8], entries: &[Vec<u8>]| file(name).with(entries);
    let tf = |flags: u8, times: &[u8]| entry(b"TF", &[&[flags], times].concat());
    let device = |high, low| entry(b"PN", &[both32(high), both32(low)].concat());
    let xa = [&[0; 6][..], b"XA", &[0; 6]].concat();
    let er = entry(b"ER", &[&[10, 0, 0, 1][..], b"RRIP_1991A"].concat());
    let versions =
        [file(b"A.TXT;1"), file(b"A.TXT;2"), file(b"B.;1"), file(b"C.;3"), file(b"D"), file(b"E/F;1")];
    let extents = [
        Record::file(b"A;1", 20, 2048).flagged(NOT_FINAL),
        Record::file(b"A;1", 21, 3),
        file(b"ASSOC;1").flagged(4),
        file(b"HIDDEN;1").flagged(1),
        Record::dir(b"SUB", 22, 2048),
    ];
    let mut attributes = image(&[], &[file(b"XAR;1"), Record::dir(b"SUB", 22, 2048)], &[file(b"IN")]);
    let at = attributes.windows(5).position(|window| window == b"XAR;1").unwrap() - 33;
    attributes[at + 1] = 1;
    let mut big_endian = image(&[], &[file(b"BIG;1")], &[]);
    let at = big_endian.windows(5).position(|window| window == b"BIG;1").unwrap() - 33;
    big_endian[at + 6..at + 10].fill(0xff);
    big_endian[at + 26] = 1;
    vec![
        ("versions", image(&[], &versions, &[])),
        ("extents and flags", image(&[], &extents, &[file(b"IN;1"), file(b"IN2;1")])),
        ("extended attribute records", attributes),
        ("wrong big-endian numbers", big_endian),
        (
            "Rock Ridge",
            image(
                &rock,
                &[
                    with(b"A;1", &[entry(b"NM", b"\x01ab"), entry(b"NM", b"\0cd"), px(0o102_750)]),
                    with(b"B;1", &[px(0o100_600)]),
                    with(b"C;1", &[px(0o020_600), device(0, 0x801)]),
                    with(b"D;1", &[px(0o060_600), device(8, 1)]),
                    with(b"E;1", &[px(0o010_600)]),
                    with(b"F;1", &[px(0o140_600)]),
                    with(
                        b"G;1",
                        &[px(0o120_777), sl(&[(8, b""), (0, b"usr"), (4, b""), (1, b"x"), (0, b"y")])],
                    ),
                    with(b"H;1", &[tf(3, &[99, 1, 1, 0, 0, 0, 0, 136, 2, 29, 12, 30, 15, 4])]),
                    with(b"I;1", &[tf(1, &[99, 1, 1, 0, 0, 0, 0])]),
                    with(b"J;1", &[entry(b"AL", b"\0\x01\0"), entry(b"ZZ", b"?")]),
                ],
                &[],
            ),
        ),
        (
            "CD-ROM XA",
            image(
                &[xa.clone(), entry(b"SP", &[0xbe, 0xef, 14]), er, px(0o040_711)],
                &[with(b"A;1", &[xa, nm(b"Name"), px(0o100_600)])],
                &[],
            ),
        ),
        (
            "a moved directory",
            image(
                &rock,
                &[
                    with(b"HERE", &[nm(b"here"), px(0o040_700), cl(22)]),
                    Record { flags: DIRECTORY, ..with(b"MOVED", &[nm(b"moved"), px(0o040_755), re()]) },
                ],
                &[with(b"IN;1", &[nm(b"inside"), pl(19)])],
            ),
        ),
    ]
}

/// Rock Ridge that no root announces, and entries and names that are odd.
fn odd() -> Vec<(&'static str, Vec<u8>)> {
    let rock = [forge::rock_ridge_root()];
    let file = |name: &[u8]| Record::file(name, 20, 3);
    let with = |name: &[u8], entries: &[Vec<u8>]| file(name).with(entries);
    let tf = |flags: u8, times: &[u8]| entry(b"TF", &[&[flags], times].concat());
    let private = [nm(b"LongName.conf"), px(0o100_600)];
    let rr = |flags: u8| entry(b"RR", &[flags]);
    let stream = miniz_oxide::deflate::compress_to_vec_zlib(b"hello world", 6);
    let end = 24 + u32::try_from(stream.len()).unwrap();
    let stored = [&[0; 16][..], &24_u32.to_le_bytes(), &end.to_le_bytes(), &stream].concat();
    let zf = entry(b"ZF", &[&b"pz\x04\x0f"[..], &both32(11)].concat());
    let mut compressed =
        image(&[], &[Record::file(b"A;1", 21, end).with(&[nm(b"Zed"), px(0o100_600), zf])], &[]);
    compressed[21 * 2048..][..stored.len()].copy_from_slice(&stored);
    vec![
        ("zisofs without a mark", compressed),
        ("Rock Ridge without a mark", image(&[], &[with(b"A;1", &private)], &[])),
        (
            "Rock Ridge with a time in the root",
            image(&[tf(2, &[121, 1, 1, 0, 0, 0, 0])], &[with(b"A;1", &private)], &[]),
        ),
        (
            "no entries, or other ones",
            image(&[], &[with(b"A;1", &[b"whatever".to_vec()]), with(b"B;1", &[])], &[]),
        ),
        (
            "ST, RR, NUL, and no name",
            image(
                &rock,
                &[
                    with(b"A;1", &[entry(b"ST", &[]), nm(b"After"), px(0o100_600)]),
                    with(b"B;1", &[rr(0x81), nm(b"Ignored"), px(0o100_600)]),
                    with(b"C;1", &[rr(0x89), nm(b"Name"), px(0o100_600)]),
                    with(b"D;1", &[nm(b"cut\0off")]),
                    file(b";1"),
                ],
                &[],
            ),
        ),
    ]
}

/// Compares what an image is by our reader with what it is mounted; the reason where it cannot be mounted here.
fn compare(what: &str, iso: &Path, at: &Path) -> Result<(), String> {
    let bytes = fs::read(iso).unwrap();
    let (mut ours, mut theirs) = (Tree::new(), Tree::new());
    indexed(&index(&bytes).unwrap().root, &bytes, b"", &mut ours);
    assert!(!ours.is_empty(), "{what}");
    match mount(iso, at) {
        Ok(_mount) => mounted(at, b"", &mut theirs),
        Err(reason) if reason.contains("unknown filesystem type") => {
            return Err("this kernel has no isofs".to_owned());
        }
        Err(reason) if reason.contains("loop device") => return Err(reason),
        Err(reason) => panic!("{what}: {reason}"),
    }
    let text = |name: &Vec<u8>| String::from_utf8_lossy(name).into_owned();
    let names = |tree: &Tree| tree.keys().map(text).collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs), "{what}: ours and Linux's");
    for (name, our) in &ours {
        // Long content would fill pages.
        let short = |seen: &Seen| {
            let start = seen.content.iter().take(50).copied().collect();
            (seen.content.len(), Seen { content: start, ..*seen })
        };
        let their = &theirs[name];
        assert!(our == their, "{what}: {}: {:?}, and for Linux {:?}", text(name), short(our), short(their));
    }
    Ok(())
}

#[test]
fn images_are_shown_as_linux_shows_them() {
    const TEST: &str = "images_are_shown_as_linux_shows_them";
    if fs::metadata("/proc/self").map_or(1, |meta| meta.uid()) != 0 {
        eprintln!("SKIPPED {TEST}: needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    tree(&dir.path().join("tree"));
    let run = Command::new("mkzftree").args(["tree", "small"]).current_dir(dir.path()).status();
    if !run.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED {TEST}: no mkzftree");
        return;
    }
    let genisoimage = |args: &[&'static str]| [&["genisoimage", "-quiet"], args, &["-o", "out.iso"]].concat();
    let xorriso =
        |args: &[&'static str]| [&["xorriso", "-as", "mkisofs", "-quiet"], args, &["-o", "out.iso"]].concat();
    // Images are made and indexed all the same.
    let mut cannot = None;
    for (source, command) in [
        ("tree", genisoimage(&["-R"])),
        ("tree", genisoimage(&["-R", "-J", "-udf"])),
        ("tree", genisoimage(&["-J"])),
        ("tree", genisoimage(&[])),
        ("tree", genisoimage(&["-iso-level", "4"])),
        ("small", genisoimage(&["-R", "-z"])),
        ("tree", xorriso(&["-R", "-J"])),
        ("tree", xorriso(&["-J", "-U"])),
    ] {
        let run = Command::new(command[0]).args(&command[1..]).arg(source).current_dir(dir.path()).output();
        let Ok(run) = run else {
            eprintln!("SKIPPED {TEST}: no {}", command[0]);
            return;
        };
        assert!(run.status.success(), "{command:?}: {}", String::from_utf8_lossy(&run.stderr));
        cannot = compare(&format!("{command:?}"), &dir.path().join("out.iso"), &at).err();
    }
    for (what, bytes) in forged().into_iter().chain(odd()) {
        let iso = dir.path().join("forged.iso");
        fs::write(&iso, bytes).unwrap();
        cannot = compare(what, &iso, &at).err();
    }
    if let Some(reason) = cannot {
        eprintln!("SKIPPED {TEST}: {reason}");
    }
}
