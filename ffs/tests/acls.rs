//! Access control lists and extended attributes: in force at once, whenever their layer came and however they change.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{Mounted, eventually, succeeded, tree};

/// Sets a file's list; whether that can be done here.
fn set(path: &Path, list: &[&str]) -> bool {
    let status = Command::new("setfacl").args(list).arg(path).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Whether a user, of a group, can read a file.
fn reads(path: &Path, user: u32, group: u32) -> bool {
    let mut cat = Command::new("cat");
    cat.uid(user).gid(group).arg(path).stderr(Stdio::null());
    cat.output().unwrap().stdout == b"for some"
}

/// A layer with the file `x`, that everybody may look into.
fn layer(at: &Path) -> PathBuf {
    let layer = tree(&at.join("l"), &[("x", "for some")]);
    mode(at, 0o755);
    mode(&layer, 0o755);
    layer
}

fn open(mounted: &Mounted) {
    mode(mounted.dir.path(), 0o755);
}

macro_rules! needs_lists {
    ($name:literal, $path:expr, $list:expr) => {
        if !set($path, $list) {
            eprintln!("SKIPPED {}: no setfacl, or a file system without lists", $name);
            return;
        }
    };
}

#[test]
fn access_control_lists_are_in_force() {
    needs_mount!("access_control_lists_are_in_force");
    let base = tempfile::tempdir().unwrap();
    let layer = layer(base.path());
    needs_lists!("access_control_lists_are_in_force", &layer.join("x"), &["-m", "u:4711:r,g::-,o::-,m::r"]);
    let mounted = Mounted::new(&["--layer", &format!("l=dir:{}", layer.display())]);
    open(&mounted);
    let x = mounted.at("x");
    assert!(reads(&x, 0, 0) && reads(&x, 4711, 4711) && !reads(&x, 4712, 4712));
}

#[test]
fn an_entry_that_is_taken_away_is_taken_away_at_once() {
    needs_mount!("an_entry_that_is_taken_away_is_taken_away_at_once");
    let base = tempfile::tempdir().unwrap();
    let layer = layer(base.path());
    let x = layer.join("x");
    mode(&x, 0o600);
    needs_lists!("an_entry_that_is_taken_away_is_taken_away_at_once", &x, &["-m", "u:4711:r,m::r"]);
    let mounted = Mounted::new(&["--layer", &format!("l=dir:{},watch=off", layer.display())]);
    open(&mounted);
    let point = mounted.at("").display().to_string();
    let generation = |mounted: &Mounted| mounted.status().generation;
    for (user, list) in [(4711, "u:4711:-"), (4712, "u:4712:r"), (4712, "u:4712:-"), (4711, "u:4711:r")] {
        assert_eq!(reads(&mounted.at("x"), user, user), list.ends_with('-'), "before {list}");
        // The mask, and with it the mode, stays: the list alone changes.
        assert!(set(&x, &["-n", "-m", list]));
        let before = generation(&mounted);
        succeeded(&mounted.ffs(&["reload", &point]));
        assert_eq!(generation(&mounted), before + 1);
        assert_eq!(reads(&mounted.at("x"), user, user), list.ends_with('r'), "after {list}");
    }
    // The lists of directories too.
    assert!(reads(&mounted.at("x"), 4711, 4711) && set(&layer, &["-m", "u:4711:-,o::x,m::rwx"]));
    succeeded(&mounted.ffs(&["reload", &point]));
    assert!(!reads(&mounted.at("x"), 4711, 4711));
    // And all of it where the directory is followed.
    assert!(set(&layer, &["-b"]));
    let followed = Mounted::new(&["--layer", &format!("l=dir:{}", layer.display())]);
    open(&followed);
    assert!(reads(&followed.at("x"), 4711, 4711) && set(&x, &["-n", "-m", "u:4711:-"]));
    eventually("the refusal", || (!reads(&followed.at("x"), 4711, 4711)).then_some(()));
}

#[test]
fn the_lists_of_a_layer_that_joins_later_are_in_force() {
    needs_mount!("the_lists_of_a_layer_that_joins_later_are_in_force");
    let base = tempfile::tempdir().unwrap();
    let layer = layer(base.path());
    let x = layer.join("x");
    mode(&x, 0o640);
    std::os::unix::fs::chown(&x, None, Some(4700)).unwrap();
    needs_lists!("the_lists_of_a_layer_that_joins_later_are_in_force", &x, &["-m", "u:4711:rw,g::-,m::rw"]);
    let plain = tree(&base.path().join("plain"), &[("y", "for some")]);
    mode(&plain, 0o755);
    let mut mounted = Mounted::new(&["--layer", &format!("a=dir:{}", plain.display())]);
    open(&mounted);
    mounted.layer("add", &format!("acl=dir:{}", layer.display()));
    let check = |mounted: &Mounted| {
        let shown = mounted.at("x");
        // The group bits are the mask: by them alone the owning group could read.
        assert_eq!(shown.metadata().unwrap().permissions().mode() & 0o777, 0o660);
        assert!(reads(&shown, 4711, 4711) && !reads(&shown, 4712, 4700));
        assert!(!reads(&x, 4712, 4700), "as in the layer");
    };
    check(&mounted);
    succeeded(&mounted.upgrade(None));
    check(&mounted);
    mounted.terminate();
}
