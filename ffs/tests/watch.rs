//! Watchers of a mount that nobody writes hear of a switch, and find the new content.

mod common;

use std::collections::BTreeSet;

use common::{Mounted, eventually, tree};
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
    assert_eq!(mounted.status().reduced, Vec::<String>::new());
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
    let mask = AddWatchFlags::IN_ALL_EVENTS
        & !(AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE_NOWRITE);
    let mut watches = Vec::new();
    for path in ["", "d", "kept", "d/changed", "d/same", "d/gone", "gone-dir"] {
        watches.push((inotify.add_watch(&mounted.at(path), mask).unwrap(), path));
    }
    mounted.layer("replace", &format!("l=dir:{}", new.display()));
    let mut heard = BTreeSet::new();
    eventually("the last event", || {
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
        heard.iter().any(|event| event.starts_with(":new-dir:")).then_some(())
    });
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
    let wanted: BTreeSet<String> =
        wanted.iter().map(|(watched, name, mask)| format!("{watched}:{name}:({mask})")).collect();
    assert_eq!(heard, wanted);
    assert_eq!(mounted.names("d"), ["added", "changed", "same"]);
    assert_eq!(mounted.names(""), ["d", "kept", "new-dir"]);
    assert_eq!(mounted.names("new-dir"), ["y"]);
    assert_eq!(mounted.read("d/same"), "same");
}
