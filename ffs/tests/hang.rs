//! A disk that does not answer holds up those who read from it, and nobody else.

#![allow(clippy::unwrap_used)] // In what the tests share, too.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};

use common::{Mounted, eventually, in_time, tree, wait_for_disks};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

/// Bytes of each large file: more than is copied, and several requests.
const SIZE: usize = 1 << 20;
/// Large files of the disk, each with a reader: with what is read ahead, more requests than there are threads that answer.
const FILES: usize = 8;

fn large() -> Vec<u8> {
    (0..251).cycle().take(SIZE).collect()
}

/// Leaves nothing of a file in memory.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

#[test]
fn a_disk_that_does_not_answer_holds_up_its_own_readers_alone() {
    needs_mount!("a_disk_that_does_not_answer_holds_up_its_own_readers_alone");
    let dir = tempfile::tempdir().unwrap();
    let below = dir.path().join("below");
    std::fs::create_dir(&below).unwrap();
    for n in 0..FILES {
        std::fs::write(below.join(n.to_string()), large()).unwrap();
    }
    // Another mount stands for the disk.
    let disk = Mounted::new(&["--layer", &format!("below=dir:{}", below.display())]);
    let other = tree(&dir.path().join("other"), &[("small", "small")]);
    std::fs::write(other.join("large"), large()).unwrap();
    let mounted = Mounted::new(&[
        "--layer",
        &format!("disk=dir:{},watch=off", disk.at("").display()),
        "--layer",
        &format!("other=dir:{}", other.display()),
    ]);
    // However this ends: nothing can be unmounted before.
    let stopped = disk.stopped();
    let readers: Vec<_> = (0..FILES)
        .map(|n| mounted.at(&n.to_string()))
        .map(|path| std::thread::spawn(move || std::fs::read(path).unwrap()))
        .collect();
    eventually("threads that wait for the disk", || (wait_for_disks(mounted.pid()) >= 4).then_some(()));

    let (small, names): (PathBuf, PathBuf) = (mounted.at("small"), mounted.at(""));
    assert_eq!(in_time("a small file", || std::fs::read(small).unwrap()), b"small");
    assert_eq!(in_time("a listing", || std::fs::read_dir(names).unwrap().count()), FILES + 2);
    forget(&other.join("large"));
    let cold = mounted.at("large");
    assert!(in_time("a large file of another disk", || std::fs::read(cold).unwrap()) == large());
    let more = tree(&dir.path().join("more"), &[("more", "more")]);
    mounted.layer("add", &format!("more=dir:{}", more.display()));
    assert_eq!(mounted.read("more"), "more");
    assert!(readers.iter().all(|reader| !reader.is_finished()));

    drop(stopped);
    for reader in readers {
        assert!(reader.join().unwrap() == large());
    }
}
