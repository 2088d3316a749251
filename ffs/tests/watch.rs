//! Watchers of a mount that nobody writes hear of a switch, and find the new content.

#![allow(clippy::unwrap_used)] // In what the tests share, too.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{Mounted, eventually, tree};
use ffs::layer::{Layer, dir};
use ffs::mount::Mount;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

#[test]
fn watchers_hear_of_exactly_what_changed() {
    needs_mount!("watchers_hear_of_exactly_what_changed");
    let dir = tempfile::tempdir().unwrap();
    let old = tree(
        &dir.path().join("old"),
        &[("d/changed", "old"), ("d/same", "same"), ("d/gone", ""), ("gone-dir/x", ""), ("kept/x", "")],
    );
    let new = tree(&dir.path().join("new"), &[("d/changed", "new"), ("d/added", ""), ("new-dir/y", "")]);
    // The same file, so that it is unchanged.
    std::fs::hard_link(old.join("d/same"), new.join("d/same")).unwrap();
    std::fs::create_dir(new.join("kept")).unwrap();
    std::fs::hard_link(old.join("kept/x"), new.join("kept/x")).unwrap();
    // A hard link changes the time of change, which tells files apart: link first, then scan.
    let mounted = Mounted::new(&["--layer", &format!("l=dir:{}", old.display())]);
    let status = mounted.status();
    common::assert_all_works(&status.abilities, &status.reduced);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
    let mask = AddWatchFlags::IN_ALL_EVENTS
        & !(AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE_NOWRITE);
    let mut watches = Vec::new();
    for path in ["", "d", "kept", "d/changed", "d/same", "d/gone", "gone-dir"] {
        watches.push((inotify.add_watch(&mounted.at(path), mask).unwrap(), path));
    }
    mounted.layer("replace", &format!("l=dir:{}", new.display()));
    let mut heard = BTreeSet::new();
    let wanted = wanted();
    eventually("all events", || {
        if let Ok(events) = inotify.read_events() {
            for event in events {
                let at = watches.iter().find(|(watch, _)| *watch == event.wd).unwrap().1;
                let name = event.name.map(|name| name.into_string().unwrap()).unwrap_or_default();
                // Content comes before the event.
                if name == "changed" {
                    assert_eq!(mounted.read("d/changed"), "new");
                }
                let mask = event.mask & !AddWatchFlags::IN_ISDIR;
                heard.insert(format!("{at}:{name}:{mask:?}").replace("AddWatchFlags", ""));
            }
        }
        wanted.is_subset(&heard).then_some(())
    });
    assert_eq!(heard, wanted);
    assert_eq!(mounted.names("d"), ["added", "changed", "same"]);
    assert_eq!(mounted.names(""), ["d", "kept", "new-dir"]);
    assert_eq!(mounted.names("new-dir"), ["y"]);
    assert_eq!(mounted.read("d/same"), "same");
}

/// What is heard of it: what is watched, the name in it, and what became of that.
fn wanted() -> BTreeSet<String> {
    let wanted = [
        ("", "gone-dir", "IN_DELETE"),
        ("", "new-dir", "IN_MOVED_TO"),
        ("d", "added", "IN_MOVED_TO"),
        ("d", "changed", "IN_MOVED_TO"),
        ("d", "gone", "IN_DELETE"),
        ("d/changed", "", "IN_ATTRIB"),
        ("d/changed", "", "IN_DELETE_SELF"),
        ("d/changed", "", "IN_IGNORED"),
        ("d/gone", "", "IN_ATTRIB"),
        ("d/gone", "", "IN_DELETE_SELF"),
        ("d/gone", "", "IN_IGNORED"),
        ("gone-dir", "", "IN_DELETE_SELF"),
        ("gone-dir", "", "IN_IGNORED"),
    ];
    wanted.iter().map(|(watched, name, mask)| format!("{watched}:{name}:({mask})")).collect()
}

/// More names than are told before a request is answered.
const MANY: usize = 400;

#[test]
fn a_large_switch_is_seen_before_it_is_told_and_told_whole() {
    needs_mount!("a_large_switch_is_seen_before_it_is_told_and_told_whole");
    told(|mount| mount);
}

#[test]
fn a_large_switch_is_told_on_older_kernels() {
    needs_mount!("a_large_switch_is_told_on_older_kernels");
    told(Mount::as_on_older_kernels);
}

/// Four switches as fast as they go, under a watcher; every third file goes and comes back.
fn told(on: impl Fn(Mount) -> Mount) {
    let base = tempfile::tempdir().unwrap();
    let layers: Vec<Arc<Layer>> = (0..5)
        .map(|version: usize| {
            let text = format!("version {version}");
            let there = |i: &usize| !i.is_multiple_of(3) || version.is_multiple_of(2);
            let names: Vec<String> = (0..MANY).filter(there).map(|i| format!("d/{i:04}")).collect();
            let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), text.as_str())).collect();
            let at = tree(&base.path().join(version.to_string()), &files);
            Arc::new(dir::layer(&at, "l", 1).unwrap())
        })
        .collect();
    let point = base.path().join("mnt");
    std::fs::create_dir(&point).unwrap();
    let (mount, session) = Mount::new(&point, vec![layers[0].clone()]).unwrap();
    let mount = on(mount);
    let version = |name: &str| -> Option<usize> {
        let text = std::fs::read_to_string(point.join("d").join(name)).ok()?;
        Some(text.strip_prefix("version ").unwrap().parse().unwrap())
    };
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
    inotify.add_watch(&point.join("d"), AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE).unwrap();
    // One file of its own, watched and read before: its end is told too.
    let gone = inotify.add_watch(&point.join("d/0001"), AddWatchFlags::IN_DELETE_SELF).unwrap();
    assert_eq!(version("0001"), Some(0));
    for (number, layer) in layers.iter().enumerate().skip(1) {
        // What the kernel had is put in its place when it is told, beside what it is asked meanwhile.
        for i in (0..MANY).step_by(2) {
            let name = format!("{i:04}");
            let there = !i.is_multiple_of(3) || (number - 1).is_multiple_of(2);
            assert_eq!(version(&name), there.then_some(number - 1), "{name}");
        }
        let switch = mount.switch(|_| vec![layer.clone()]);
        assert_eq!(switch.changes.len(), MANY);
        mount.tell_watchers(&switch);
        assert_eq!(version("0001"), Some(number), "seen at once");
    }
    let (mut heard, mut last) = (BTreeMap::new(), false);
    eventually("all names, and the end of the file", || {
        for event in inotify.read_events().unwrap_or_default() {
            assert!(!event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW), "the queue ran over");
            if event.wd == gone {
                last |= event.mask.contains(AddWatchFlags::IN_DELETE_SELF);
                continue;
            }
            let name = event.name.unwrap().into_string().unwrap();
            heard.insert(name, event.mask);
        }
        (last && heard.len() == MANY && heard.values().all(|mask| mask.contains(AddWatchFlags::IN_MOVED_TO)))
            .then_some(())
    });
    for i in 0..MANY {
        assert_eq!(version(&format!("{i:04}")), Some(4));
    }
    assert_eq!(point.join("d").read_dir().unwrap().count(), MANY);
    mount.unmount().unwrap();
    session.wait().unwrap();
}
