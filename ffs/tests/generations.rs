//! Several changes as one switch, compare-and-swap, order, rollback, and what comes by itself.

#![allow(clippy::unwrap_used)] // In what the tests share, as in them.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{Drive, Mounted, eventually, image, tree};
use ffs::events::Step;

fn point(mounted: &Mounted) -> String {
    mounted.at("").to_str().unwrap().trim_end_matches('/').to_owned()
}

fn iso(dir: &Path, name: &str, generation: u64, files: &[(&str, &str)]) -> PathBuf {
    let path = dir.join(format!("{name}-{generation}.iso"));
    std::fs::write(&path, image(name, 5, generation, files)).unwrap();
    path
}

#[track_caller]
fn refused(mounted: &Mounted, args: &[&str], says: &str) {
    let output = mounted.ffs(args);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
    assert!(error.contains(says), "{args:?}: {error}");
}

#[track_caller]
fn done(mounted: &Mounted, args: &[&str]) {
    let output = mounted.ffs(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn several_operations_are_one_switch_or_none() {
    needs_mount!("several_operations_are_one_switch_or_none");
    let dir = tempfile::tempdir().unwrap();
    let a = tree(&dir.path().join("a"), &[("x", "a"), ("only-a", "")]);
    let b = tree(&dir.path().join("b"), &[("x", "b"), ("only-b", "")]);
    let c = iso(dir.path(), "c", 1, &[("x", "c")]);
    let mounted = Mounted::new(&["--layer", &format!("a=dir:{},priority=1", a.display())]);
    let at = point(&mounted);

    // One of them is wrong: neither happens.
    let good = format!("b=dir:{},priority=2", b.display());
    refused(&mounted, &["layer", "add", &at, &good, "c=iso:/does/not/exist"], "/does/not/exist");
    assert_eq!((mounted.status().generation, mounted.names("").join(" ")), (0, "only-a x".to_owned()));

    done(&mounted, &["layer", "add", &at, &good, &format!("c=iso:{},priority=3", c.display())]);
    assert_eq!((mounted.status().generation, mounted.read("x")), (1, "c".to_owned()));

    let script = format!("# b goes, a changes\nremove b\nreplace a=dir:{}\norder a c\n", b.display());
    let file = dir.path().join("script");
    std::fs::write(&file, &script).unwrap();
    refused(
        &mounted,
        &["layer", "apply", &at, file.to_str().unwrap(), "--if-generation", "0"],
        "at generation 1, not 0: nothing was changed",
    );
    assert_eq!(mounted.status().generation, 1);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_ffs"))
        .args(["layer", "apply", &at, "-", "--if-generation", "1", "--socket"])
        .arg(mounted.dir.path().join("socket"))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    let status = mounted.status();
    let layers: Vec<&str> = status.layers.iter().map(|layer| layer.name.as_str()).collect();
    assert_eq!((status.generation, layers), (2, vec!["a", "c"]));
    assert_eq!(mounted.read("x"), "b");
    // What the operations name is found before anything is done.
    refused(&mounted, &["layer", "order", &at, "a"], "leaves out `c`");
    refused(&mounted, &["layer", "remove", &at, "a", "b"], "no layer is named `b`");
    assert_eq!(mounted.status().generation, 2);
}

#[test]
fn a_rollback_shows_the_generation_before_again() {
    needs_mount!("a_rollback_shows_the_generation_before_again");
    let dir = tempfile::tempdir().unwrap();
    let first = iso(dir.path(), "i", 1, &[("x", "first"), ("gone", "")]);
    let second = iso(dir.path(), "i", 2, &[("x", "second")]);
    let mounted = Mounted::new(&["--layer", &format!("i=iso:{}", first.display())]);
    let at = point(&mounted);
    refused(&mounted, &["rollback", &at], "nothing to roll back to");
    mounted.layer("replace", &format!("i=iso:{}", second.display()));
    let status = mounted.status();
    assert_eq!((status.generation, status.rollback_to), (1, Some(0)));
    let held: u64 = [&first, &second].map(|path| path.metadata().unwrap().len()).iter().sum();
    assert_eq!(status.memory.in_use, held, "both generations are kept");
    let layer = &status.layers[0];
    assert_eq!((layer.class.as_deref(), layer.generation), (Some("i"), Some(2)));
    let output = std::process::Command::new("sha256sum").arg(&second).output().unwrap();
    let digest = String::from_utf8(output.stdout).unwrap();
    assert_eq!(layer.digest.as_deref(), Some(format!("sha256:{}", &digest[..64]).as_str()));
    assert_eq!(layer.bytes, second.metadata().unwrap().len());

    // The files are gone: what is shown again was kept in memory.
    std::fs::remove_file(&first).unwrap();
    refused(&mounted, &["rollback", &at, "--to", "7"], "generation 7 is not kept: only 0");
    refused(&mounted, &["rollback", &at, "--if-generation", "0"], "at generation 1, not 0");
    done(&mounted, &["rollback", &at, "--to", "0"]);
    assert_eq!((mounted.status().generation, mounted.read("x")), (2, "first".to_owned()));
    assert!(mounted.at("gone").exists());
    // And back: a rollback is a generation like any other.
    done(&mounted, &["rollback", &at]);
    assert_eq!((mounted.status().generation, mounted.read("x")), (3, "second".to_owned()));

    // Older generations are given up.
    let third = iso(dir.path(), "i", 3, &[("x", "third")]);
    for _ in 0..2 {
        mounted.layer("replace", &format!("i=iso:{}", third.display()));
    }
    let third = third.metadata().unwrap().len();
    eventually("the release", || (mounted.status().memory.in_use <= 2 * third).then_some(()));
}

#[test]
fn what_was_rolled_back_does_not_come_back_by_itself() {
    needs_mount!("what_was_rolled_back_does_not_come_back_by_itself");
    let Some(mut drive) = Drive::with(&image("infrastructure", 9, 1, &[("site", "first")])) else {
        eprintln!("SKIPPED what_was_rolled_back_does_not_come_back_by_itself: no loop device");
        return;
    };
    let mounted = Mounted::new(&["--auto", "--auto-device", drive.name()]);
    let at = point(&mounted);
    refused(&mounted, &["rollback", &at], "nothing to roll back to");
    let second = image("infrastructure", 9, 2, &[("site", "second")]);
    drive.eject();
    drive.insert(&second);
    eventually("the second", || (mounted.read("site") == "second").then_some(()));
    done(&mounted, &["rollback", &at]);
    assert_eq!(mounted.read("site"), "first");
    let refusals = || {
        let events = mounted.events();
        let of = |step: &Step| matches!(step, Step::Refused { reason, .. } if reason.contains("rolled back"));
        events.iter().filter(|event| of(&event.step)).count()
    };
    drive.eject();
    drive.insert(&second);
    eventually("the refusal", || (refusals() > 0).then_some(()));
    assert_eq!(mounted.read("site"), "first");
    // A newer one is taken; so is the same one when somebody asks for it.
    done(&mounted, &["reload", &at]);
    eventually("the second, asked for", || (mounted.read("site") == "second").then_some(()));
    done(&mounted, &["rollback", &at]);
    drive.eject();
    drive.insert(&image("infrastructure", 9, 3, &[("site", "third")]));
    eventually("the third", || (mounted.read("site") == "third").then_some(()));
}

#[test]
fn an_order_holds_for_what_a_drive_brings_later() {
    needs_mount!("an_order_holds_for_what_a_drive_brings_later");
    let Some(mut drive) = Drive::with(&image("infrastructure", 9, 1, &[("x", "disc")])) else {
        eprintln!("SKIPPED an_order_holds_for_what_a_drive_brings_later: no loop device");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let low = tree(dir.path(), &[("x", "low")]);
    let mounted = Mounted::new(&[
        "--auto",
        "--auto-device",
        drive.name(),
        "--layer",
        &format!("l=dir:{}", low.display()),
    ]);
    assert_eq!(mounted.read("x"), "disc");
    done(&mounted, &["layer", "order", &point(&mounted), "l", "infrastructure"]);
    assert_eq!(mounted.read("x"), "low");
    drive.eject();
    drive.insert(&image("infrastructure", 9, 2, &[("x", "disc"), ("y", "")]));
    eventually("the second disc", || mounted.at("y").exists().then_some(()));
    assert_eq!(mounted.read("x"), "low");
}

#[test]
fn directories_are_followed() {
    needs_mount!("directories_are_followed");
    let dir = tempfile::tempdir().unwrap();
    let a = tree(&dir.path().join("a"), &[("x", "1"), ("d/y", "1")]);
    let b = tree(&dir.path().join("b"), &[("z", "1")]);
    let mounted = Mounted::new(&[
        "--layer",
        &format!("a=dir:{}", a.display()),
        "--layer",
        &format!("b=dir:{},watch=off", b.display()),
    ]);
    // While it is stopped: a burst, however long this thread takes for it.
    let stopped = mounted.stopped();
    for name in 0..50 {
        std::fs::write(a.join(format!("d/{name}")), "new").unwrap();
    }
    std::fs::create_dir_all(a.join("deep/er")).unwrap();
    std::fs::write(a.join("deep/er/file"), "new").unwrap();
    drop(stopped);
    eventually("the last file", || mounted.at("deep/er/file").exists().then_some(()));
    assert_eq!(mounted.names("d").len(), 51);
    assert_eq!(mounted.status().generation, 1, "a burst is taken together");
    // Removal, in a directory that came later.
    std::fs::remove_file(a.join("deep/er/file")).unwrap();
    eventually("the removal", || (!mounted.at("deep/er/file").exists()).then_some(()));
    // What is not followed waits for a reload; what is not a change is no generation.
    std::fs::write(b.join("new"), "").unwrap();
    let generation = mounted.status().generation;
    std::fs::write(a.join("x"), "2").unwrap();
    eventually("the next generation", || (mounted.status().generation > generation).then_some(()));
    assert!(!mounted.at("new").exists());
    done(&mounted, &["reload", &point(&mounted)]);
    assert!(mounted.at("new").exists());
    let generation = mounted.status().generation;
    done(&mounted, &["reload", &point(&mounted)]);
    assert_eq!(mounted.status().generation, generation);
}

#[test]
fn what_was_refused_leaves_directories_followed_where_they_are() {
    needs_mount!("what_was_refused_leaves_directories_followed_where_they_are");
    let base = tempfile::tempdir().unwrap();
    let dir = |name: &str, text: &str| tree(&base.path().join(name), &[("a", text)]).display().to_string();
    let (one, two, three) = (dir("one", "one"), dir("two", "two"), dir("three", "three"));
    let mounted = Mounted::new(&["--layer", &format!("a=dir:{one}")]);
    let changed = |at: &str, text: &str| {
        std::fs::write(Path::new(at).join("a"), text).unwrap();
        eventually("the change", || (mounted.read("a") == text).then_some(()));
    };
    let script = base.path().join("script");
    std::fs::write(&script, format!("replace a=dir:{two}\nadd b=dir:/nonexistent\n")).unwrap();
    refused(&mounted, &["layer", "apply", &point(&mounted), script.to_str().unwrap()], "nonexistent");
    assert_eq!(mounted.read("a"), "one");
    changed(&one, "one again");

    done(&mounted, &["layer", "replace", &point(&mounted), &format!("a=dir:{two},priority=9")]);
    done(&mounted, &["layer", "add", &point(&mounted), &format!("b=dir:{three}")]);
    done(&mounted, &["layer", "replace", &point(&mounted), &format!("a=dir:{one},priority=9")]);
    std::fs::remove_dir_all(&three).unwrap();
    // The generation before has `a` in the other directory, which is read first, and needs one that is gone.
    refused(&mounted, &["rollback", &point(&mounted)], "three");
    changed(&one, "one at last");
}

#[test]
fn an_image_over_the_memory_limit_is_refused_unread() {
    needs_mount!("an_image_over_the_memory_limit_is_refused_unread");
    let dir = tempfile::tempdir().unwrap();
    let large = "x".repeat(1 << 20);
    let small = iso(dir.path(), "small", 1, &[("s", "small")]);
    let big = iso(dir.path(), "big", 1, &[("b", &large)]);
    let len = |path: &Path| path.metadata().unwrap().len();
    let limit = len(&small) * 2 + len(&big);
    let mounted = Mounted::new(&[
        "--max-memory",
        &limit.to_string(),
        "--layer",
        &format!("small=iso:{}", small.display()),
        "--layer",
        &format!("big=iso:{}", big.display()),
    ]);
    let at = point(&mounted);
    let status = mounted.status();
    assert_eq!((status.memory.limit, status.memory.in_use), (limit, len(&small) + len(&big)));
    let other = iso(dir.path(), "big", 2, &[("b", &large), ("new", "")]);
    refused(&mounted, &["layer", "replace", &at, &format!("big=iso:{}", other.display())], "`max_memory`");
    assert_eq!(mounted.status().generation, 0);
    assert_eq!(mounted.read("b").len(), 1 << 20);
    // With the layer gone there is room, once the generation kept for a rollback is given up for it.
    done(&mounted, &["layer", "remove", &at, "big"]);
    assert_eq!(mounted.status().rollback_to, Some(0));
    eventually("room", || {
        let output = mounted.ffs(&["layer", "add", &at, &format!("big=iso:{}", other.display())]);
        output.status.success().then_some(())
    });
    assert!(mounted.at("new").exists());
}
