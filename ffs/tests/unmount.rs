//! What becomes of mounts when `ffs` is unmounted or ends: its own go, wherever they are, and those of others stay.
//!
//! Each test has a mount namespace of its own, where nothing is shared with the rest of the machine.

#![allow(clippy::unwrap_used)] // In what the tests share, as in them.

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;

use common::{Mounted, eventually, succeeded, tree};
use ffs::events::Step;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

const NONE: Option<&str> = None;

fn own_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
}

/// The types of what is mounted at a place, the last one on top.
fn kinds(point: &Path) -> Vec<String> {
    let table = std::fs::read("/proc/thread-self/mountinfo").unwrap();
    let rows = ffs::kernel::mountinfo::parse(&table).filter(|row| row.point == point);
    rows.map(|row| String::from_utf8(row.kind).unwrap()).collect()
}

/// Mounts a tmpfs with a file `mine`.
fn tmpfs(at: &Path) {
    mount(Some("t"), at, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
    std::fs::write(at.join("mine"), "mine").unwrap();
}

fn umount(at: &Path) {
    umount2(at, MntFlags::empty()).unwrap();
}

/// A directory of the test's, on which something can be mounted.
fn place(mounted: &Mounted, name: &str) -> PathBuf {
    let place = mounted.dir.path().join(name);
    std::fs::create_dir(&place).unwrap();
    place
}

/// A mount of a directory with `x` and the folder `d`.
fn mounted(dir: &Path) -> Mounted {
    let layer = tree(dir, &[("x", "1"), ("d/y", "")]);
    Mounted::new(&["--layer", &format!("l=dir:{}", layer.display())])
}

fn point(mounted: &Mounted) -> PathBuf {
    mounted.dir.path().join("mnt")
}

fn ffs_umount(mounted: &Mounted) -> Output {
    mounted.ffs(&["umount", point(mounted).to_str().unwrap()])
}

/// It is refused, with a sentence that has these words, and all goes on.
#[track_caller]
fn refused(mounted: &Mounted, words: &[&str]) {
    let output = ffs_umount(mounted);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
    let status = mounted.status();
    assert_eq!(status.reduced, [] as [String; 0]);
    assert!(status.abilities.iter().any(|able| able == "inotify"));
    assert!(!mounted.events().iter().any(|event| event.step == Step::Unmounted));
}

#[test]
fn an_unmount_by_somebody_takes_no_other_mount_away() {
    needs_mount!("an_unmount_by_somebody_takes_no_other_mount_away");
    own_namespace();
    let dir = tempfile::tempdir().unwrap();
    // What was below it.
    let lower = mounted(&dir.path().join("lower"));
    let layer = tree(&dir.path().join("upper"), &[("x", "upper")]);
    let spec = format!("l=dir:{}", layer.display());
    let program = Path::new(env!("CARGO_BIN_EXE_ffs"));
    let mut upper = Mounted::prepared(program, &["--layer", &spec], "", |_, dir| {
        std::fs::remove_dir(dir.join("mnt")).unwrap();
        std::os::unix::fs::symlink(point(&lower), dir.join("mnt")).unwrap();
    });
    assert_eq!((kinds(&point(&lower)).len(), lower.read("x").as_str()), (2, "upper"));
    umount(&point(&lower));
    assert_eq!(upper.wait(), Some(0));
    assert_eq!((kinds(&point(&lower)), lower.read("x").as_str()), (vec!["fuse.ffs".to_owned()], "1"));
    drop(upper);

    // What came in its place before it noticed.
    let mut before = mounted(&dir.path().join("before"));
    let stopped = before.stopped();
    umount(&point(&before));
    tmpfs(&point(&before));
    drop(stopped);
    assert_eq!(before.wait(), Some(0));
    assert_eq!((kinds(&point(&before)), before.read("mine").as_str()), (vec!["tmpfs".to_owned()], "mine"));
}

#[test]
fn a_request_to_unmount_is_refused_while_something_is_mounted_on_it() {
    needs_mount!("a_request_to_unmount_is_refused_while_something_is_mounted_on_it");
    own_namespace();
    let dir = tempfile::tempdir().unwrap();
    let mut mounted = mounted(dir.path());
    for at in [point(&mounted), mounted.at("d")] {
        tmpfs(&at);
        refused(&mounted, &["tmpfs", at.to_str().unwrap()]);
        assert_eq!(std::fs::read_to_string(at.join("mine")).unwrap(), "mine");
        umount(&at);
        assert_eq!(mounted.read("x"), "1");
    }
    succeeded(&ffs_umount(&mounted));
    assert_eq!(kinds(&point(&mounted)), [] as [&str; 0]);
    assert_eq!(mounted.wait(), Some(0));
}

#[test]
fn a_signal_ends_it_and_leaves_what_is_mounted_over_it() {
    needs_mount!("a_signal_ends_it_and_leaves_what_is_mounted_over_it");
    own_namespace();
    let dir = tempfile::tempdir().unwrap();
    let mut over = mounted(&dir.path().join("over"));
    tmpfs(&point(&over));
    assert_eq!(over.terminate(), Some(0));
    assert_eq!(
        (kinds(&point(&over)), over.read("mine").as_str()),
        (vec!["fuse.ffs".to_owned(), "tmpfs".to_owned()], "mine")
    );
    assert!(!over.events().iter().any(|event| event.step == Step::Unmounted));
    // What is left below is dead, and can be unmounted.
    umount(&point(&over));
    let error = std::fs::read_dir(point(&over)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::ENOTCONN));
    umount(&point(&over));

    // Further down nobody could come to it any more: it goes with the mount, and whoever is in it keeps it.
    let mut below = mounted(&dir.path().join("below"));
    tmpfs(&below.at("d"));
    let held = std::fs::File::open(below.at("d/mine")).unwrap();
    assert_eq!(below.terminate(), Some(0));
    assert_eq!(kinds(&point(&below)), [] as [&str; 0]);
    assert_eq!(std::io::read_to_string(held).unwrap(), "mine");
}

#[test]
fn a_request_to_unmount_ends_the_mount_wherever_it_is() {
    needs_mount!("a_request_to_unmount_ends_the_mount_wherever_it_is");
    own_namespace();
    let dir = tempfile::tempdir().unwrap();
    let all_gone = |mut mounted: Mounted, places: &[&Path]| {
        let open = std::fs::File::open(places[0].join("x")).unwrap();
        succeeded(&ffs_umount(&mounted));
        for place in places {
            assert_eq!(kinds(place), [] as [&str; 0], "{}", place.display());
        }
        assert_eq!(mounted.wait(), Some(0));
        drop(open);
    };
    let bind = |from: &Path, to: &Path| mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).unwrap();

    let bound = mounted(&dir.path().join("bound"));
    let (b, over) = (place(&bound, "b"), point(&bound));
    bind(&over, &b);
    umount(&over);
    all_gone(bound, &[&b, &over]);

    let moved = mounted(&dir.path().join("moved"));
    let (n, from) = (place(&moved, "n"), point(&moved));
    mount(Some(&from), &n, NONE, MsFlags::MS_MOVE, NONE).unwrap();
    all_gone(moved, &[&n, &from]);

    // All at once: over itself, in itself, a part of it and a file of it.
    let many = mounted(&dir.path().join("many"));
    let (b, file, at) = (place(&many, "b"), many.dir.path().join("file"), point(&many));
    std::fs::write(&file, "").unwrap();
    bind(&at, &at);
    bind(&at, &at.join("d"));
    bind(&at.join("d"), &b);
    bind(&at.join("x"), &file);
    all_gone(many, &[&at, &at.join("d"), &b, &file]);
}

#[test]
fn a_mount_that_cannot_be_reached_is_not_said_to_be_unmounted() {
    needs_mount!("a_mount_that_cannot_be_reached_is_not_said_to_be_unmounted");
    own_namespace();
    let dir = tempfile::tempdir().unwrap();
    let mut mounted = mounted(dir.path());
    let outer = place(&mounted, "outer");
    let hidden = place(&mounted, "outer/b");
    mount(Some(&point(&mounted)), &hidden, NONE, MsFlags::MS_BIND, NONE).unwrap();
    tmpfs(&outer);
    refused(&mounted, &[hidden.to_str().unwrap()]);
    assert_eq!((kinds(&point(&mounted)).len(), kinds(&hidden).len()), (1, 1));
    umount(&outer);
    succeeded(&ffs_umount(&mounted));
    assert_eq!((kinds(&point(&mounted)).len(), kinds(&hidden).len()), (0, 0));
    assert_eq!(mounted.wait(), Some(0));
}

#[test]
fn a_place_is_free_for_the_next_mount_when_the_unmount_returns() {
    needs_mount!("a_place_is_free_for_the_next_mount_when_the_unmount_returns");
    own_namespace();
    let dir = tempfile::tempdir().unwrap();
    let layer = tree(&dir.path().join("a"), &[("x", "1")]);
    let spec = format!("l=dir:{}", layer.display());
    let program = Path::new(env!("CARGO_BIN_EXE_ffs"));
    let first = Mounted::new(&["--layer", &spec]);
    let mut last: Option<Mounted> = None;
    for _ in 0..10 {
        let before = last.as_ref().unwrap_or(&first);
        succeeded(&before.ffs(&["umount", point(&first).to_str().unwrap()]));
        let next = Mounted::prepared(program, &["--layer", &spec], "", |_, dir| {
            std::fs::remove_dir(dir.join("mnt")).unwrap();
            std::os::unix::fs::symlink(point(&first), dir.join("mnt")).unwrap();
        });
        if let Some(mut before) = last.take() {
            assert_eq!(before.wait(), Some(0));
            // Dropping it unmounts what is at its place.
            std::fs::remove_file(point(&before)).unwrap();
        }
        assert_eq!((kinds(&point(&first)).len(), next.read("x").as_str()), (1, "1"));
        last = Some(next);
    }
}

#[test]
fn the_service_makes_room_where_a_mount_is_dead_and_takes_nothing_else_away() {
    needs_mount!("the_service_makes_room_where_a_mount_is_dead_and_takes_nothing_else_away");
    own_namespace();
    let dir = tempfile::tempdir().unwrap();
    let mounted = mounted(dir.path());
    let unit = include_str!("../units/ffs.service");
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStopPost=-")).unwrap();
    let stop_post = || {
        let command = command.replace("/mnt/context", point(&mounted).to_str().unwrap());
        std::process::Command::new("/bin/sh").arg("-c").arg(command).status().unwrap()
    };
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(mounted.pid().cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    eventually("the dead mount", || std::fs::read_dir(point(&mounted)).is_err().then_some(()));
    stop_post();
    assert_eq!(kinds(&point(&mounted)), [] as [&str; 0]);
    tmpfs(&point(&mounted));
    stop_post();
    assert_eq!(kinds(&point(&mounted)), ["tmpfs"]);
}
