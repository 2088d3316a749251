//! The reader beside Linux's own: the same image, indexed and mounted, has the same names, attributes and content.
//!
//! Runs where the kernel has isofs, as root.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use ctx_format::read::{Entry, Kind, index};

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
    let run = Command::new("mount").args(["-t", "iso9660", "-o", "ro,loop"]).args([image, at]).output();
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
        let iso = dir.path().join("out.iso");
        let bytes = fs::read(&iso).unwrap();
        let (mut ours, mut theirs) = (Tree::new(), Tree::new());
        indexed(&index(&bytes).unwrap().root, &bytes, b"", &mut ours);
        assert!(!ours.is_empty(), "{command:?}");
        match mount(&iso, &at) {
            Ok(_mount) => mounted(&at, b"", &mut theirs),
            Err(reason) if reason.contains("unknown filesystem type") => {
                cannot = Some("this kernel has no isofs".to_owned());
                continue;
            }
            Err(reason) if reason.contains("loop device") => {
                cannot = Some(reason);
                continue;
            }
            Err(reason) => panic!("{command:?}: {reason}"),
        }
        assert_eq!(ours, theirs, "{command:?}");
    }
    if let Some(reason) = cannot {
        eprintln!("SKIPPED {TEST}: {reason}");
    }
}
