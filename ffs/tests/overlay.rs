//! The union against the kernel's own: random layers, shown by overlayfs and by us, must look the same.
//!
//! What differs on purpose is in the table of [`ffs::merge`]: the modification time, link count and
//! size of directories.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // In what the tests share, too.

mod common;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ffs::layer::{Layer, dir};
use ffs::mount::Mount;
use ffs::sys::{self, XattrsOf};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Random unions that are compared.
const CASES: u32 = 48;

#[derive(Debug, Clone)]
enum Tree {
    File { content: usize, mode: u32, owner: u32, attribute: bool, links: u8 },
    Symlink(u8),
    Fifo,
    Device,
    Whiteout,
    Dir { opaque: bool, mode: u32, attribute: bool, entries: BTreeMap<u8, Tree> },
}

/// Names: some plain, one of all 255 bytes, one that is no UTF-8.
fn name(number: u8) -> OsString {
    match number {
        0..=2 => OsString::from_vec(vec![b'a' + number]),
        3 => OsString::from_vec(vec![b'n'; 255]),
        _ => OsString::from_vec(vec![0xff, 0xfe, b'x']),
    }
}

fn content(number: usize) -> Vec<u8> {
    // Nothing, less and more than what is copied.
    format!("content {number}\n").repeat([0, 1, 300, 9000][number % 4]).into_bytes()
}

fn entries(node: impl Strategy<Value = Tree> + 'static) -> impl Strategy<Value = BTreeMap<u8, Tree>> {
    prop::collection::btree_map(0..5_u8, node, 0..5)
}

fn any_layer() -> impl Strategy<Value = BTreeMap<u8, Tree>> {
    let modes = prop_oneof![Just(0o644_u32), Just(0o400), Just(0o4755)];
    let file = (0..8_usize, modes, 0..3_u32, any::<bool>(), 0..3_u8).prop_map(
        |(content, mode, owner, attribute, links)| Tree::File { content, mode, owner, attribute, links },
    );
    let leaf = prop_oneof![
        5 => file,
        1 => (0..3_u8).prop_map(Tree::Symlink),
        1 => Just(Tree::Fifo),
        1 => Just(Tree::Device),
        2 => Just(Tree::Whiteout),
    ];
    let modes = prop_oneof![Just(0o755_u32), Just(0o1777), Just(0o700)];
    entries(leaf.prop_recursive(3, 24, 5, move |inner| {
        (prop::bool::weighted(0.2), modes.clone(), any::<bool>(), entries(inner))
            .prop_map(|(opaque, mode, attribute, entries)| Tree::Dir { opaque, mode, attribute, entries })
    }))
}

fn set(path: &Path, name: &str, value: &[u8]) {
    use nix::libc;
    // tmpfs, where the layers are, takes those of users from Linux 6.6.
    if name.starts_with("user.") && common::linux() < (6, 6) {
        return;
    }
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    // SAFETY: both strings end in NUL, and the value has as many bytes as is said.
    #[allow(unsafe_code)]
    let set = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn build(root: &Path, at: &Path, entries: &BTreeMap<u8, Tree>, links: &mut u32) {
    for (&number, tree) in entries {
        let path = at.join(name(number));
        match tree {
            Tree::File { content: number, mode, owner, attribute, links: more } => {
                std::fs::write(&path, content(*number)).unwrap();
                std::os::unix::fs::chown(&path, Some(*owner), Some(owner + 10)).unwrap();
                std::fs::set_permissions(&path, PermissionsExt::from_mode(*mode)).unwrap();
                if *attribute {
                    set(&path, "user.note", b"a\0value");
                    set(&path, "trusted.note", b"");
                    set(&path, "trusted.overlay.origin", b"not shown");
                }
                for _ in 0..*more {
                    *links += 1;
                    std::fs::hard_link(&path, root.join(format!("link{links}"))).unwrap();
                }
            }
            Tree::Symlink(to) => std::os::unix::fs::symlink(name(*to), &path).unwrap(),
            Tree::Fifo => nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o640)).unwrap(),
            Tree::Device => {
                mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, 300)).unwrap();
            }
            Tree::Whiteout => mknod(&path, SFlag::S_IFCHR, Mode::empty(), makedev(0, 0)).unwrap(),
            Tree::Dir { opaque, mode, attribute, entries } => {
                std::fs::create_dir(&path).unwrap();
                build(root, &path, entries, links);
                std::fs::set_permissions(&path, PermissionsExt::from_mode(*mode)).unwrap();
                if *opaque {
                    set(&path, "trusted.overlay.opaque", b"y");
                }
                if *attribute {
                    set(&path, "user.dir", b"1");
                }
            }
        }
    }
}

/// All that a program can see of one name.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: SFlag,
    mode: u32,
    owner: (u32, u32),
    /// Of anything but directories: size, blocks, links, device, modified, changed.
    details: Option<(u64, u64, u64, u64, [i64; 4])>,
    content: Option<Vec<u8>>,
    target: Option<PathBuf>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Other names of the same file, by the first of them.
    first: PathBuf,
}

fn walk(top: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut files: BTreeMap<u64, PathBuf> = BTreeMap::new();
    let mut dirs = vec![PathBuf::new()];
    let mut paths = vec![PathBuf::new()];
    while let Some(dir) = dirs.pop() {
        for entry in top.join(&dir).read_dir().unwrap() {
            let path = dir.join(entry.unwrap().file_name());
            match top.join(&path).symlink_metadata() {
                // overlayfs lists whiteouts in directories of one layer, and then does not find them.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => panic!("{}: {error}", path.display()),
                Ok(meta) if meta.is_dir() => dirs.push(path.clone()),
                Ok(_) => {}
            }
            paths.push(path);
        }
    }
    paths.sort();
    for path in paths {
        let full = top.join(&path);
        let meta = full.symlink_metadata().unwrap();
        let kind = meta.file_type();
        let text = CString::new(full.as_os_str().as_bytes()).unwrap();
        let mut xattrs = sys::xattrs(XattrsOf::Path(&text));
        xattrs.sort();
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        let first = files.entry(meta.ino()).or_insert_with(|| path.clone()).clone();
        let found = Seen {
            kind: SFlag::from_bits_truncate(meta.mode() & SFlag::S_IFMT.bits()),
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            details: (!kind.is_dir()).then(|| (meta.size(), meta.blocks(), meta.nlink(), meta.rdev(), times)),
            content: kind.is_file().then(|| std::fs::read(&full).unwrap()),
            target: kind.is_symlink().then(|| std::fs::read_link(&full).unwrap()),
            xattrs,
            first,
        };
        seen.insert(path, found);
    }
    seen
}

/// Mounts that end with the test.
struct Under(PathBuf);

impl Drop for Under {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Layers on a tmpfs of a mount namespace of this test's own; `None`, with the reason said, where
/// that cannot be had.
fn private(base: &Path) -> Option<Under> {
    let none = None::<&str>;
    let made = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none))
        .and_then(|()| mount(Some("layers"), base, Some("tmpfs"), MsFlags::empty(), none));
    match made {
        Ok(()) => Some(Under(base.to_owned())),
        Err(error) => {
            eprintln!("SKIPPED no mount namespace of one's own: {error}");
            None
        }
    }
}

#[test]
fn the_union_is_that_of_overlayfs() {
    let base = tempfile::tempdir().unwrap();
    if !Path::new("/dev/fuse").exists() {
        eprintln!("SKIPPED the_union_is_that_of_overlayfs: needs /dev/fuse");
        return;
    }
    let Some(_under) = private(base.path()) else { return };
    let number = std::cell::Cell::new(0_u32);
    let compared = std::cell::Cell::new(0_usize);
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&prop::collection::vec(any_layer(), 2..5), |trees| {
            number.set(number.get() + 1);
            let here = base.path().join(number.get().to_string());
            let paths: Vec<PathBuf> = (0..trees.len()).map(|layer| here.join(layer.to_string())).collect();
            for (path, tree) in paths.iter().zip(&trees) {
                std::fs::create_dir_all(path).unwrap();
                build(path, path, tree, &mut 0);
            }
            let (theirs, ours) = (here.join("theirs"), here.join("ours"));
            std::fs::create_dir(&theirs).unwrap();
            std::fs::create_dir(&ours).unwrap();
            let lower = paths
                .iter()
                .map(|path| path.as_os_str().to_owned())
                .collect::<Vec<_>>()
                .join(OsStr::new(":"));
            let mut options = OsString::from("lowerdir=");
            options.push(lower);
            if let Err(error) = mount(
                Some("overlay"),
                &theirs,
                Some("overlay"),
                MsFlags::MS_RDONLY,
                Some(options.as_os_str()),
            ) {
                eprintln!("SKIPPED the_union_is_that_of_overlayfs: no overlayfs: {error}");
                return Ok(());
            }
            let _theirs = Under(theirs.clone());
            let layers: Vec<Arc<Layer>> = (paths.iter().zip(0_u16..))
                .map(|(path, depth)| Arc::new(dir::layer(path, &format!("l{depth}"), 100 - depth).unwrap()))
                .collect();
            let (mounted, session) = Mount::new(&ours, layers).unwrap();
            let (expected, found) = (walk(&theirs), walk(&ours));
            mounted.unmount().unwrap();
            session.wait().unwrap();
            compared.set(compared.get() + expected.len());
            for path in expected.keys().chain(found.keys()) {
                prop_assert_eq!(expected.get(path), found.get(path), "{:?}", path);
            }
            Ok(())
        })
        .unwrap();
    assert!(number.get() >= CASES);
    eprintln!("{} names compared", compared.get());
}
