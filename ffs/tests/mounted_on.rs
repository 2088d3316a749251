//! What is mounted on the tree, held or open there, and does not change, is what and where it was after a switch.

// Helpers outside of `#[test]` functions fail their test by panicking too.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::{Mounted, OnDrop, eventually, succeeded, tree};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

/// Mounts an empty tmpfs, until the end of the test.
fn tmpfs(at: &Path) -> OnDrop<impl FnMut() + use<>> {
    mount(Some("z"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    unmounted(at)
}

/// Mounts `what` on `at`, until the end of the test.
fn bind(what: &Path, at: &Path) -> OnDrop<impl FnMut() + use<>> {
    mount(Some(what), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    unmounted(at)
}

fn unmounted(at: &Path) -> OnDrop<impl FnMut() + use<>> {
    let at = at.to_owned();
    OnDrop(move || {
        let _ = umount2(&at, MntFlags::MNT_DETACH);
    })
}

/// Layer `a`, which is not followed: it is read again when a test says so.
fn mounted(a: &Path) -> Mounted {
    Mounted::new(&["--layer", &format!("a=dir:{},watch=off", a.display())])
}

fn reload(mounted: &Mounted) {
    succeeded(&mounted.ffs(&["reload", mounted.at("").to_str().unwrap()]));
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn link(path: impl AsRef<Path>) -> PathBuf {
    std::fs::read_link(path).unwrap()
}

#[test]
fn what_does_not_change_stays_with_all_that_is_on_it() {
    needs_mount!("what_does_not_change_stays_with_all_that_is_on_it");
    let dir = tempfile::tempdir().unwrap();
    let files = [
        ("x", "1"),
        ("y", "1"),
        ("mp/in", ""),
        ("d/secret", "the layer's"),
        ("d/e/open", "kept"),
        ("d/z", "1"),
    ];
    let a = tree(&dir.path().join("a"), &files);
    let mut mounted = mounted(&a);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "mounted").unwrap();
    let _on_directory = tmpfs(&mounted.at("mp"));
    std::fs::write(mounted.at("mp/in"), "in").unwrap();
    let _on_file = bind(&secret, &mounted.at("d/secret"));
    let open = File::open(mounted.at("d/e/open")).unwrap();
    // It waits for its input, which ends with this test.
    let mut inside =
        Command::new("cat").stdin(Stdio::piped()).current_dir(mounted.at("d/e")).spawn().unwrap();
    let named = |what: &str| format!("/proc/{}/{what}", inside.id());
    let check = |mounted: &Mounted| {
        assert_eq!(mounted.read("mp/in"), "in");
        assert_eq!(mounted.read("d/secret"), "mounted");
        assert_eq!(link(format!("/proc/self/fd/{}", open.as_raw_fd())), mounted.at("d/e/open"));
        assert_eq!(link(named("cwd")), mounted.at("d/e"));
    };
    for turn in 2..6 {
        let text = turn.to_string();
        for name in ["x", "y", "d/z"] {
            std::fs::write(a.join(name), &text).unwrap();
        }
        std::fs::write(a.join(format!("new-{turn}")), "").unwrap();
        let _ = std::fs::remove_file(a.join(format!("new-{}", turn - 1)));
        reload(&mounted);
        assert_eq!((mounted.read("x"), mounted.read("d/z")), (text.clone(), text));
        check(&mounted);
    }
    // More names than are dropped one by one.
    for i in 0..600 {
        std::fs::write(a.join(format!("d/many-{i}")), "1").unwrap();
    }
    reload(&mounted);
    assert_eq!(mounted.names("d").len(), 603);
    for i in 0..600 {
        assert_eq!(mounted.read(&format!("d/many-{i}")), "1");
        std::fs::write(a.join(format!("d/many-{i}")), "22").unwrap();
    }
    reload(&mounted);
    assert!((0..600).all(|i| mounted.read(&format!("d/many-{i}")) == "22"));
    check(&mounted);
    succeeded(&mounted.upgrade(None));
    std::fs::write(a.join("x"), "after the upgrade").unwrap();
    std::fs::write(a.join("y"), "after the upgrade").unwrap();
    reload(&mounted);
    assert_eq!(mounted.read("x"), "after the upgrade");
    check(&mounted);
    end(&mut inside);
    mounted.terminate();
}

#[test]
fn a_listing_from_before_a_switch_takes_no_mount_away() {
    needs_mount!("a_listing_from_before_a_switch_takes_no_mount_away");
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<String> = (0..2000).map(|i| format!("d/{i:04}-{}", "n".repeat(100))).collect();
    let first: Vec<(&str, &str)> = files.iter().map(|name| (name.as_str(), "1")).collect();
    let a = tree(&dir.path().join("a"), &first);
    let mounted = mounted(&a);
    let mut listing = std::fs::read_dir(mounted.at("d")).unwrap();
    let some: Vec<_> = listing.by_ref().take(3).collect();
    for name in &files {
        std::fs::write(a.join(name), "22").unwrap();
    }
    let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
    events.add_watch(&mounted.at("d"), AddWatchFlags::IN_MOVED_TO).unwrap();
    reload(&mounted);
    // Names are told in order; one that is being told is exchanged at that moment, with what is mounted on it (docs/switch.md).
    let last = files.last().and_then(|name| name.strip_prefix("d/")).map(OsString::from);
    eventually("the last event", || {
        let told = events.read_events().unwrap_or_default();
        told.into_iter().any(|event| event.name == last).then_some(())
    });
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "mounted").unwrap();
    let _mounts: Vec<_> =
        (0..files.len()).step_by(100).map(|i| bind(&secret, &mounted.at(&files[i]))).collect();
    // The names of before, to the end.
    assert_eq!(some.len() + listing.count(), files.len());
    for (i, name) in files.iter().enumerate() {
        assert_eq!(mounted.read(name), if i % 100 == 0 { "mounted" } else { "22" }, "{name}");
    }
}

#[test]
fn what_is_mounted_on_a_name_that_changes_stays_until_it_is_unmounted() {
    needs_mount!("what_is_mounted_on_a_name_that_changes_stays_until_it_is_unmounted");
    let dir = tempfile::tempdir().unwrap();
    let files =
        [("x", "1"), ("y", "1"), ("changes", "1"), ("goes", "1"), ("tree/of/it", "1"), ("plain", "1")];
    let a = tree(&dir.path().join("a"), &files);
    let mounted = mounted(&a);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "mounted").unwrap();
    let mounts = ["changes", "goes", "tree/of/it"].map(|name| bind(&secret, &mounted.at(name)));
    let check = || {
        for name in ["changes", "goes", "tree/of/it"] {
            assert_eq!(mounted.read(name), "mounted", "{name}");
            // This has the kernel ask again for what is below the mount.
            let error = std::fs::create_dir(mounted.at(name)).unwrap_err().raw_os_error();
            assert!(matches!(error, Some(nix::libc::EEXIST | nix::libc::EROFS)), "{error:?}");
            assert_eq!(mounted.read(name), "mounted", "{name}");
        }
    };
    check();
    for turn in ["2", "3"] {
        for name in ["x", "y", "changes"] {
            std::fs::write(a.join(name), turn).unwrap();
        }
        let _ = std::fs::remove_file(a.join("goes"));
        let _ = std::fs::remove_dir_all(a.join("tree"));
        std::fs::write(a.join("tree"), turn).unwrap();
        reload(&mounted);
        assert_eq!((mounted.read("x"), mounted.read("y")), (turn.to_owned(), turn.to_owned()));
        check();
        // Going through the whole tree does no harm either.
        assert!(Command::new("ls").args(["-lR"]).arg(mounted.at("")).output().is_ok());
        check();
    }
    let answer = mounted.ask(&ffs::control::Request::Invalidate);
    assert!(matches!(answer, ffs::control::Response::Status(_)), "{answer:?}");
    check();
    succeeded(&mounted.upgrade(None));
    check();
    let said = |mounted: &Mounted| {
        mounted.status().reduced.iter().any(|line| line.contains("`changes`, `goes`, `tree`"))
    };
    assert!(said(&mounted), "{:?}", mounted.status().reduced);
    drop(mounts);
    eventually("the end of that", || (!said(&mounted)).then_some(()));
    eventually("the new state", || (mounted.read("changes") == "3").then_some(()));
    eventually("the removal", || (!mounted.at("goes").exists()).then_some(()));
    eventually("the file in place of the tree", || {
        std::fs::read_to_string(mounted.at("tree")).is_ok_and(|text| text == "3").then_some(())
    });
}

#[test]
fn watchers_hear_of_a_name_that_is_exchanged_at_its_unmount() {
    needs_mount!("watchers_hear_of_a_name_that_is_exchanged_at_its_unmount");
    let dir = tempfile::tempdir().unwrap();
    let files = [("f1", "1"), ("f2", "1"), ("goes", "1"), ("tree/in", "1"), ("d/e/x", "1"), ("back", "1")];
    let a = tree(&dir.path().join("a"), &files);
    let mounted = mounted(&a);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "mounted").unwrap();
    let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
    let in_directory = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
    let top = events.add_watch(&mounted.at(""), in_directory).unwrap();
    let below = events.add_watch(&mounted.at("d/e"), in_directory).unwrap();
    let itself = events.add_watch(&mounted.at("f1"), AddWatchFlags::IN_DELETE_SELF).unwrap();
    let in_tree = events.add_watch(&mounted.at("tree/in"), AddWatchFlags::IN_DELETE_SELF).unwrap();
    let mounts = ["f1", "goes", "tree/in", "d/e/x", "back"].map(|name| bind(&secret, &mounted.at(name)));
    // Waits for these events, each with the watch that it is of, and for no others.
    let hear = |wanted: &[(WatchDescriptor, &str)]| {
        let wanted: BTreeSet<_> = wanted.iter().map(|(wd, name)| (*wd, OsString::from(name))).collect();
        let mut all = BTreeSet::new();
        eventually(&format!("{wanted:?}"), || {
            let come = events.read_events().unwrap_or_default();
            let come = come.into_iter().filter(|event| !event.mask.contains(AddWatchFlags::IN_IGNORED));
            all.extend(come.map(|event| (event.wd, event.name.unwrap_or_default())));
            all.is_superset(&wanted).then_some(())
        });
        assert_eq!(all, wanted);
    };
    for name in ["f1", "f2", "d/e/x", "back"] {
        std::fs::write(a.join(name), "22").unwrap();
    }
    std::fs::remove_file(a.join("goes")).unwrap();
    std::fs::remove_dir_all(a.join("tree")).unwrap();
    std::fs::write(a.join("tree"), "22").unwrap();
    reload(&mounted);
    hear(&[(top, "f2")]);
    let [f1, goes, in_it, x, back] = mounts;
    drop(f1);
    hear(&[(top, "f1"), (itself, "")]);
    assert_eq!(mounted.read("f1"), "22");
    drop(goes);
    hear(&[(top, "goes")]);
    assert!(!mounted.at("goes").exists());
    drop(x);
    hear(&[(below, "x")]);
    drop(in_it);
    hear(&[(top, "tree"), (in_tree, "")]);
    assert_eq!(mounted.read("tree"), "22");
    // Also where a switch is the first to see the unmount.
    drop(back);
    std::fs::write(a.join("f2"), "333").unwrap();
    reload(&mounted);
    hear(&[(top, "back"), (top, "f2")]);
    assert_eq!(mounted.read("back"), "22");
}

#[test]
fn a_mount_in_a_projection_stays_where_it_is_said_to_be() {
    needs_mount!("a_mount_in_a_projection_stays_where_it_is_said_to_be");
    let dir = tempfile::tempdir().unwrap();
    let a = tree(&dir.path().join("a"), &[("s", "1"), ("d/t", "1")]);
    let layer = format!("a=dir:{},watch=off", a.display());
    let mounted = Mounted::with_config(&["--layer", &layer], "projection = \"kubernetes\"\n");
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "mounted").unwrap();
    let place = mounted.at("s").canonicalize().unwrap();
    let _mount = bind(&secret, &place);
    assert_eq!(mounted.read("s"), "mounted");
    for turn in 2..6 {
        for name in ["s", "d/t"] {
            std::fs::write(a.join(name), turn.to_string()).unwrap();
        }
        reload(&mounted);
        // A new state has no mounts, as kubelet's has none; the old one keeps its own.
        assert_eq!((mounted.read("s"), mounted.read("d/t")), (turn.to_string(), turn.to_string()));
        assert_eq!(std::fs::read_to_string(&place).unwrap(), "mounted", "turn {turn}");
        let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(table.lines().any(|line| line.split(' ').nth(1) == place.to_str()), "turn {turn}");
    }
    umount2(&place, MntFlags::empty()).unwrap();
}
