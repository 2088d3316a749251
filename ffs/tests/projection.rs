//! `projection = "kubernetes"`, on a real mount: what programs written for `ConfigMap` volumes see and hear.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;

use common::site::Site;
use common::{OnDrop, eventually};
use nix::fcntl::{OFlag, openat};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;

fn projected(files: &[(&str, &str)], more: &str) -> Site {
    Site::with_config(files, |_| format!("projection = \"kubernetes\"\n{more}"))
}

/// The directory of the present state, by its name.
fn state(site: &Site) -> String {
    let target = std::fs::read_link(site.mounted.at("..data")).expect("a link");
    target.into_os_string().into_string().expect("ASCII")
}

#[test]
fn it_looks_and_sounds_like_a_configmap() {
    needs_mount!("it_looks_and_sounds_like_a_configmap");
    let mut site = projected(&[("site", "1"), ("same", "="), ("old", ""), ("d/x", "1")], "");
    let mut before = state(&site);
    assert_eq!(site.mounted.names(""), [before.as_str(), "..data", "d", "old", "same", "site"]);
    assert_eq!(std::fs::read_link(site.mounted.at("site")).expect("a link"), PathBuf::from("..data/site"));
    assert_eq!((site.mounted.read("site"), site.mounted.read("d/x")), ("1".into(), "1".into()));
    let point = site.mounted.at("");
    for (content, files, told) in [
        ("2", vec![("site", "2"), ("same", "="), ("new", ""), ("d/x", "1")], vec!["new", "-old"]),
        ("3", vec![("site", "3"), ("same", "="), ("new", ""), ("d/x", "1")], vec![]),
        ("4", vec![("site", "4"), ("same", "="), ("d/x", "1")], vec!["-new"]),
    ] {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).expect("inotify");
        let watch = |path: &str, flags| inotify.add_watch(&point.join(path), flags).expect("a watch");
        let tree = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVE | AddWatchFlags::IN_DELETE;
        let top = watch("", tree);
        // Through the links, as programs do.
        let file = watch("site", AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MODIFY);
        let same = watch("same", AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_ATTRIB);
        site.switch(&files);
        let now = state(&site);
        let mut expected = vec![now.clone(), "..data".to_owned()];
        expected.extend(told.into_iter().map(str::to_owned));
        expected.push(format!("-{before}"));
        let (mut seen, mut replaced) = (Vec::new(), false);
        eventually("the events", || {
            for event in inotify.read_events().unwrap_or_default() {
                assert_ne!(event.wd, same, "what is the same is not told of: {event:?}");
                replaced |= event.wd == file && event.mask.contains(AddWatchFlags::IN_DELETE_SELF);
                let Some(name) = event.name.filter(|_| event.wd == top) else { continue };
                let gone = event.mask.contains(AddWatchFlags::IN_DELETE);
                seen.push(format!("{}{}", if gone { "-" } else { "" }, name.to_str().expect("ASCII")));
                // Content before events, all of it.
                assert_eq!(site.mounted.read("site"), content);
            }
            (seen.len() >= expected.len() && replaced).then_some(())
        });
        assert_eq!(seen, expected);
        before = now;
    }
    // The same content again is no new state.
    site.switch(&[("site", "4"), ("same", "="), ("d/x", "1")]);
    assert_eq!(state(&site), before);
}

#[test]
fn who_has_the_old_state_open_keeps_it() {
    needs_mount!("who_has_the_old_state_open_keeps_it");
    let mut site = projected(&[("site", "1"), ("d/x", "1")], "");
    let old = site.mounted.at(&state(&site));
    let dir = std::fs::File::open(&old).expect("a directory");
    let mut file = std::fs::File::open(site.mounted.at("site")).expect("a file");
    site.switch(&[("site", "2"), ("d/x", "2")]);
    assert_eq!(site.mounted.read("site"), "2");
    // Not listed, and still there for who was on the way to it.
    assert!(!site.mounted.names("").iter().any(|name| old.ends_with(name)));
    assert_eq!(std::fs::read_to_string(old.join("d/x")).expect("the old state"), "1");
    let names: Vec<_> = nix::dir::Dir::from_fd(dir.as_fd().try_clone_to_owned().expect("a descriptor"))
        .expect("a listing")
        .iter()
        .map(|entry| entry.expect("an entry").file_name().to_str().expect("ASCII").to_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert_eq!(names, ["d", "site"]);
    let x =
        openat(dir.as_fd(), "d/x", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).expect("the old file");
    let mut text = String::new();
    std::fs::File::from(x).read_to_string(&mut text).expect("read");
    assert_eq!(text, "1");
    // An open file stays for as long as it is open; the directory's name goes with the next state.
    site.switch(&[("site", "3"), ("d/x", "3")]);
    assert_eq!(std::fs::metadata(&old).expect_err("gone").kind(), std::io::ErrorKind::NotFound);
    let mut text = String::new();
    file.read_to_string(&mut text).expect("read");
    assert_eq!(text, "1");
}

#[test]
fn another_program_that_takes_over_goes_on_with_it() {
    needs_mount!("another_program_that_takes_over_goes_on_with_it");
    let mut site = projected(&[("site", "1"), ("d/x", "1")], "");
    site.switch(&[("site", "2"), ("d/x", "2")]);
    let second = state(&site);
    let names = site.mounted.names("");
    let upgrade = site.mounted.upgrade(None);
    assert!(upgrade.status.success(), "{}", String::from_utf8_lossy(&upgrade.stderr));
    assert_eq!((state(&site), site.mounted.names("")), (second.clone(), names));
    assert_eq!((site.mounted.read("site"), site.mounted.read("d/x")), ("2".into(), "2".into()));
    // The state that was shown at the hand-over is let in to for one switch more, and then it is gone.
    let old = site.mounted.at(&second);
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).expect("inotify");
    inotify.add_watch(&old.join("d"), AddWatchFlags::IN_DELETE_SELF).expect("a watch");
    site.switch(&[("site", "3"), ("d/x", "3")]);
    assert_eq!((site.mounted.read("site"), state(&site) != second), ("3".into(), true));
    assert_eq!(std::fs::read_to_string(old.join("d/x")).expect("the old state"), "2");
    let upgrade = site.mounted.upgrade(None);
    assert!(upgrade.status.success(), "{}", String::from_utf8_lossy(&upgrade.stderr));
    assert_eq!(std::fs::read_to_string(old.join("d/x")).expect("the old state"), "2");
    site.switch(&[("site", "4"), ("d/x", "4")]);
    assert_eq!(std::fs::metadata(&old).expect_err("gone").kind(), std::io::ErrorKind::NotFound);
    eventually("the end of the old directory", || {
        let events = inotify.read_events().unwrap_or_default();
        events.iter().any(|event| event.mask.contains(AddWatchFlags::IN_DELETE_SELF)).then_some(())
    });
}

/// Switches under readers; each takes a program that asks for it.
const SWITCHES: u64 = 40;

#[test]
fn readers_through_the_links_see_no_error_and_nothing_older() {
    needs_mount!("readers_through_the_links_see_no_error_and_nothing_older");
    let mut site = projected(&[("a", "0"), ("d/b", "0")], "");
    let (done, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _end = OnDrop(|| done.store(true, Ordering::Relaxed));
        for _ in 0..3 {
            let (a, b) = (site.mounted.at("a"), site.mounted.at("d/b"));
            let (done, reads) = (&done, &reads);
            scope.spawn(move || {
                let read = |path: &PathBuf| -> u64 {
                    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{error}"));
                    text.parse().expect("a number")
                };
                let mut last = 0;
                while !done.load(Ordering::Relaxed) {
                    for path in [&a, &b] {
                        let now = read(path);
                        assert!(now >= last, "{now} after {last}");
                        last = now;
                    }
                    reads.fetch_add(2, Ordering::Relaxed);
                }
            });
        }
        for number in 1..=SWITCHES {
            let text = number.to_string();
            site.switch(&[("a", &text), ("d/b", &text)]);
            assert_eq!(site.mounted.read("d/b"), text);
        }
        eventually("reads", || (reads.load(Ordering::Relaxed) > SWITCHES).then_some(()));
    });
}

#[test]
fn hooks_hear_of_the_paths_of_the_layers() {
    needs_mount!("hooks_hear_of_the_paths_of_the_layers");
    let hook = "[[hook]]\nname = \"d\"\npath = \"d/**\"\nrun = [\"true\"]\n[[hook]]\nname = \"site\"\npath = \"site\"\nrun = [\"true\"]\n";
    let mut site = projected(&[("site", "1"), ("d/x", "1")], hook);
    site.switch(&[("site", "1"), ("d/x", "2")]);
    eventually("the hook", || site.mounted.status().hooks.iter().any(|hook| hook.hook == "d").then_some(()));
    site.switch(&[("site", "2"), ("d/x", "2")]);
    eventually("the other hook", || {
        site.mounted.status().hooks.iter().any(|hook| hook.hook == "site").then_some(())
    });
    let hooks = site.mounted.status().hooks;
    let ran = |name: &str| hooks.iter().find(|hook| hook.hook == name).map(|hook| hook.generation);
    assert_eq!((ran("d"), ran("site")), (Some(1), Some(2)), "{hooks:?}");
}

#[test]
fn a_watcher_like_configmap_reload_acts_at_every_switch() {
    needs_mount!("a_watcher_like_configmap_reload_acts_at_every_switch");
    let has = Command::new("/usr/bin/python3").args(["-c", "import watchdog"]).stderr(Stdio::null()).status();
    if !has.is_ok_and(|status| status.success()) {
        eprintln!(
            "SKIPPED a_watcher_like_configmap_reload_acts_at_every_switch: needs the package python3-watchdog"
        );
        return;
    }
    let mut site = projected(&[("site", "1")], "");
    // It watches the directory alone, and acts when `..data` is created, as what is renamed into place counts there.
    let script = "
import os, sys, time
from watchdog.observers.inotify import InotifyObserver
from watchdog.events import FileSystemEventHandler
class Handler(FileSystemEventHandler):
    def act(self, path):
        if os.path.basename(path) == '..data':
            print('reload', open(os.path.join(sys.argv[1], 'site')).read(), flush=True)
    def on_created(self, event): self.act(event.src_path)
    def on_moved(self, event): self.act(event.dest_path)
observer = InotifyObserver()
observer.schedule(Handler(), sys.argv[1], recursive=False)
observer.start()
print('watching', flush=True)
sys.stdin.read()
";
    let mut program = Command::new("/usr/bin/python3")
        .args(["-c", script])
        .arg(site.mounted.at(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it is there");
    let (to, said) = channel();
    let output = BufReader::new(program.stdout.take().expect("a pipe"));
    let listener =
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
    let program = std::cell::RefCell::new(program);
    let _end = OnDrop(|| {
        let _ = program.borrow_mut().kill();
        let _ = program.borrow_mut().wait();
    });
    let says = |line: &str| eventually(line, || said.try_iter().any(|have| have == line).then_some(()));
    says("watching");
    for content in ["2", "3", "4"] {
        site.switch(&[("site", content)]);
        says(&format!("reload {content}"));
    }
    let _ = program.borrow_mut().kill();
    let _ = listener.join();
}
