//! What programs see of files beyond their names, and what becomes of generations that went.

#![allow(clippy::unwrap_used)] // In what the tests share, too.

mod common;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use common::{Mounted, eventually, image, tree};
use ffs::layer::{Content, Layer, LayerNode, dir};
use ffs::mount::Mount;
use ffs::sealed::Sealed;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

fn dir_layer(path: &Path, name: &str, priority: u16) -> Arc<Layer> {
    Arc::new(dir::layer(path, name, priority).unwrap())
}

fn iso_layer(name: &str, generation: u64, files: &[(&str, &str)]) -> Arc<Layer> {
    let bytes = image(name, 5, generation, files);
    let sealed = Sealed::read_from(&mut bytes.as_slice(), u64::MAX).unwrap();
    let trust = ffs::trust::Trust::without_keys();
    Arc::new(ffs::layer::image::layer(sealed, Some(name), None, "test", &trust).unwrap().0)
}

#[test]
fn names_of_one_file_are_one_inode_until_they_part() {
    needs_mount!("names_of_one_file_are_one_inode_until_they_part");
    let base = tempfile::tempdir().unwrap();
    let layer = tree(&base.path().join("l"), &[("a", "the same"), ("d/other", "x")]);
    std::fs::hard_link(layer.join("a"), layer.join("d/b")).unwrap();
    let other = tree(&base.path().join("o"), &[("d/c", "")]);
    let mounted = Mounted::new(&["--layer", &format!("l=dir:{}", layer.display())]);
    let both = || {
        ["a", "d/b"].map(|name| mounted.at(name).metadata().unwrap()).map(|meta| (meta.ino(), meta.nlink()))
    };
    let [a, b] = both();
    assert_eq!((a.1, a), (2, b));
    mounted.layer("add", &format!("o=dir:{}", other.display()));
    assert_eq!(both(), [a, b], "a change elsewhere in the directory");
    std::fs::remove_file(layer.join("d/b")).unwrap();
    std::fs::copy(layer.join("a"), layer.join("d/b")).unwrap();
    mounted.layer("replace", &format!("l=dir:{}", layer.display()));
    let [c, d] = both();
    assert_eq!((c.1, d.1), (1, 1));
    assert_ne!(c.0, d.0, "two files of equal content are two");
}

#[test]
fn a_sparse_file_stays_sparse() {
    needs_mount!("a_sparse_file_stays_sparse");
    let base = tempfile::tempdir().unwrap();
    let layer = tree(&base.path().join("l"), &[("x", "")]);
    let mut file = File::create(layer.join("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    file.seek(SeekFrom::Start(1 << 29)).unwrap();
    file.write_all(b"here").unwrap();
    // Blocks are allocated when they are written to the disk.
    file.sync_all().unwrap();
    let blocks = file.metadata().unwrap().blocks();
    let mounted = Mounted::new(&["--layer", &format!("l=dir:{}", layer.display())]);
    let mut shown = File::open(mounted.at("sparse")).unwrap();
    let meta = shown.metadata().unwrap();
    assert_eq!((meta.len(), meta.blocks()), (1 << 30, blocks));
    let at = |offset, whence| {
        use nix::unistd::{Whence, lseek};
        let whence = if whence == 'd' { Whence::SeekData } else { Whence::SeekHole };
        lseek(&shown, offset, whence).unwrap()
    };
    assert_eq!(at(0, 'h'), 0);
    let data = at(0, 'd');
    assert!((1..=1 << 29).contains(&data), "{data}");
    shown.seek(SeekFrom::Start((1 << 29) - 2)).unwrap();
    let mut bytes = [1; 8];
    shown.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"\0\0here\0\0");
}

#[test]
fn a_tree_deeper_than_any_path() {
    needs_mount!("a_tree_deeper_than_any_path");
    let base = tempfile::tempdir().unwrap();
    let layer = tree(&base.path().join("l"), &[("x", "")]);
    let name = "n".repeat(255);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    let mut at: std::os::fd::OwnedFd = File::open(&layer).unwrap().into();
    for _ in 0..20 {
        mkdirat(&at, name.as_str(), Mode::from_bits_truncate(0o755)).unwrap();
        at = openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
    }
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
    let mut bottom = File::from(openat(&at, "bottom", flags, Mode::from_bits_truncate(0o644)).unwrap());
    bottom.write_all(b"reached").unwrap();
    let mounted = Mounted::new(&["--layer", &format!("l=dir:{}", layer.display())]);
    let mut at: std::os::fd::OwnedFd = File::open(mounted.at("")).unwrap().into();
    for _ in 0..20 {
        at = openat(&at, name.as_str(), OFlag::O_RDONLY, Mode::empty()).unwrap();
    }
    let mut content = String::new();
    File::from(openat(at.as_fd(), "bottom", OFlag::O_RDONLY, Mode::empty()).unwrap())
        .read_to_string(&mut content)
        .unwrap();
    assert_eq!(content, "reached");
}

/// More names than are invalidated one by one.
const MANY: usize = 1000;

#[test]
fn a_large_switch_shows_at_once_and_spoils_nothing() {
    needs_mount!("a_large_switch_shows_at_once_and_spoils_nothing");
    large_switch(|mount| mount);
}

#[test]
fn a_large_switch_is_the_same_on_older_kernels() {
    needs_mount!("a_large_switch_is_the_same_on_older_kernels");
    large_switch(Mount::as_on_older_kernels);
}

fn large_switch(on: impl Fn(Mount) -> Mount) {
    let base = tempfile::tempdir().unwrap();
    let layer = |name: &str, content: &str| {
        let names: Vec<String> = (0..MANY).map(|i| format!("d/{i:04}")).collect();
        let mut files: Vec<(&str, &str)> = names.iter().map(|path| (path.as_str(), content)).collect();
        let own = format!("d/only-{name}");
        files.extend([(own.as_str(), ""), ("kept/x", "kept")]);
        tree(&base.path().join(name), &files)
    };
    let (one, two) = (layer("one", "1"), layer("two", "2"));
    let point = base.path().join("mnt");
    std::fs::create_dir(&point).unwrap();
    let (mount, session) = Mount::new(&point, vec![dir_layer(&one, "l", 1)]).unwrap();
    let mount = on(mount);
    let read = |i: usize| std::fs::read_to_string(point.join(format!("d/{i:04}"))).unwrap();
    assert!((0..MANY).all(|i| read(i) == "1"));
    assert!(!point.join("d/only-two").exists());
    // A directory that is open stays what it is.
    let kept = File::open(point.join("kept")).unwrap();
    let switch = mount.switch(|_| vec![dir_layer(&two, "l", 1)]);
    // The file that stays has another time.
    assert_eq!(switch.changes.len(), MANY + 3);
    assert!((0..MANY).all(|i| read(i) == "2"));
    assert!(point.join("d/only-two").exists() && !point.join("d/only-one").exists());
    let mut content = String::new();
    let through = openat(&kept, "x", OFlag::O_RDONLY, Mode::empty()).unwrap();
    File::from(through).read_to_string(&mut content).unwrap();
    assert_eq!(content, "kept");
    assert_eq!(std::fs::read_to_string(point.join("kept/x")).unwrap(), "kept");
    // What getcwd(2) would say there; a test must not move the whole process.
    let named = std::fs::read_link(format!("/proc/self/fd/{}", kept.as_raw_fd())).unwrap();
    assert_eq!(named, point.canonicalize().unwrap().join("kept"));
    assert_eq!(point.join("d").read_dir().unwrap().count(), MANY + 1);
    drop(kept);
    mount.unmount().unwrap();
    session.wait().unwrap();
}

#[test]
fn memory_goes_with_its_last_user() {
    needs_mount!("memory_goes_with_its_last_user");
    let base = tempfile::tempdir().unwrap();
    let (mount, session) =
        Mount::new(base.path(), vec![iso_layer("i", 1, &[("x", "the old content"), ("y", "")])]).unwrap();
    let old = {
        let layer = mount.current().layers[0].clone();
        let LayerNode::Leaf(leaf) = &layer.root.entries[&b"x"[..]] else { panic!("x is a file") };
        let Content::Sealed { image, .. } = &leaf.content else { panic!("x is sealed") };
        Arc::downgrade(image)
    };
    let mut held = File::open(base.path().join("x")).unwrap();
    // Twice: the generation before may be kept for a rollback.
    for generation in 2..=3 {
        let text = generation.to_string();
        let switch = mount.switch(|_| vec![iso_layer("i", generation, &[("x", &text)])]);
        // The kernel forgets each name when its watchers are told of it.
        mount.tell_watchers(&switch);
    }
    let mut content = String::new();
    held.read_to_string(&mut content).unwrap();
    assert_eq!(content, "the old content");
    assert!(old.upgrade().is_some(), "somebody reads it");
    drop(held);
    eventually("the old image gone", || old.upgrade().is_none().then_some(()));
    mount.unmount().unwrap();
    session.wait().unwrap();
}
