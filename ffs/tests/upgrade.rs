//! The program is replaced under programs that use the mount: `ffs upgrade`.
//!
//! What is promised, and checked here: nobody gets an error or half of anything; what is held keeps its
//! content; a listing goes on where it was; watchers hear of every change; generations count on and can be
//! rolled back behind an upgrade. Who takes over, and what goes on besides: `takeover.rs`.

#![allow(clippy::unwrap_used, unsafe_code)] // In what the tests share, as in them; and mmap(2).

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use common::{Mounted, OnDrop, eventually, image, succeeded, tree, usage, usage_at_rest};
use ffs::control::{Request, Response, Status};
use ffs::edit::Op;
use ffs::events::Step;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Upgrades in a row.
const UPGRADES: u64 = 10;
/// Files that change with each switch.
const FILES: u64 = 6;
/// Names that nobody has looked at.
const COLD: u64 = 1500;
/// Bytes of a file that is held open and not copied.
const LARGE: usize = 3 << 20;

fn text(generation: u64, path: &str) -> String {
    format!("{generation:06} {path}\n").repeat(200)
}

/// The generation of a content, if it is whole.
#[track_caller]
fn whole(content: &[u8], path: &str) -> u64 {
    let content = std::str::from_utf8(content).unwrap();
    let generation = content.get(..6).unwrap_or_else(|| panic!("`{path}` has {content:?}")).parse().unwrap();
    assert_eq!(content, text(generation, path), "`{path}` is torn");
    generation
}

fn iso(dir: &Path, generation: u64) -> PathBuf {
    let names: Vec<(String, String)> = (0..FILES)
        .map(|n| format!("changing/f{n}"))
        .map(|path| (path.clone(), text(generation, &path)))
        .collect();
    let files: Vec<(&str, &str)> = names.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let path = dir.join(format!("{generation}.iso"));
    std::fs::write(&path, image("changing", 5, generation, &files)).unwrap();
    path
}

fn large() -> Vec<u8> {
    (0..251).cycle().take(LARGE).collect()
}

/// The programs that use the mount.
struct Users<'a> {
    mounted: &'a Mounted,
    over: AtomicBool,
    reads: AtomicU64,
    /// The newest generation whose switch has returned, and the newest that has begun.
    done: AtomicU64,
    begun: AtomicU64,
}

impl Users<'_> {
    fn going(&self) -> bool {
        // A dozen programs on two processors are to leave something to the one that is tested.
        std::thread::sleep(Duration::from_micros(100));
        self.reads.fetch_add(1, Ordering::Relaxed);
        !self.over.load(Ordering::Relaxed)
    }

    fn open(&self, path: &str) -> File {
        File::open(self.mounted.at(path)).unwrap_or_else(|error| panic!("`{path}`: {error}"))
    }

    /// Opens, reads and closes.
    fn read(&self, from: u64) {
        let mut n = from;
        while self.going() {
            let path = format!("changing/f{}", n % FILES);
            let oldest = self.done.load(Ordering::SeqCst);
            let content =
                std::fs::read(self.mounted.at(&path)).unwrap_or_else(|error| panic!("`{path}`: {error}"));
            let seen = whole(&content, &path);
            let newest = self.begun.load(Ordering::SeqCst);
            assert!((oldest..=newest).contains(&seen), "{seen}, not {oldest} to {newest}");
            n += 1;
        }
    }

    /// Holds files over switches and upgrades, and reads them from the program and not from the cache.
    fn hold(&self) {
        let mut held: Vec<(File, String, u64)> = Vec::new();
        while self.going() {
            if held.len() < 40 {
                let path = format!("changing/f{}", held.len() as u64 % FILES);
                let file = self.open(&path);
                let mut content = vec![0; text(0, &path).len()];
                file.read_exact_at(&mut content, 0).unwrap();
                let generation = whole(&content, &path);
                held.push((file, path, generation));
            }
            for (file, path, generation) in &held {
                posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
                let mut content = vec![0; text(0, path).len()];
                file.read_exact_at(&mut content, 0).unwrap();
                assert_eq!(whole(&content, path), *generation);
            }
        }
    }

    /// Lists a directory slowly: the kernel asks for it in many pieces.
    fn list(&self) {
        while self.going() {
            let mut names = BTreeSet::new();
            for entry in std::fs::read_dir(self.mounted.at("cold")).unwrap() {
                assert!(names.insert(entry.unwrap().file_name()), "a name came twice");
                if names.len() % 100 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            assert_eq!(names.len() as u64, COLD);
        }
    }

    /// Looks at names that the kernel does not know, or no more.
    fn stat(&self) {
        for n in (0..COLD).cycle() {
            if !self.going() {
                return;
            }
            let path = format!("cold/name-{n}");
            let metadata =
                self.mounted.at(&path).metadata().unwrap_or_else(|error| panic!("`{path}`: {error}"));
            assert_eq!(metadata.len(), n % 10);
        }
    }

    /// Maps a file whose pages come from the program.
    fn map(&self) {
        let expected = large();
        let file = self.open("large");
        let len = NonZeroUsize::new(LARGE).unwrap();
        while self.going() {
            posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
            // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
            let map =
                unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
            // SAFETY: the mapping has so many readable bytes until it is unmapped below.
            let same = unsafe { std::slice::from_raw_parts(map.as_ptr().cast::<u8>(), LARGE) } == expected;
            // SAFETY: the mapping made above; nothing of it is used any more.
            unsafe { munmap(map, LARGE) }.unwrap();
            assert!(same, "a page is wrong");
        }
    }

    /// Works below a directory of the mount.
    fn work_below(&self) {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "while read -r line; do cat f0 >/dev/null || exit 3; cat ../cold/name-7 || exit 4; echo; done"])
            .current_dir(self.mounted.at("changing"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (mut to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(from));
        while self.going() {
            std::io::Write::write_all(&mut to, b"again\n").unwrap();
            assert_eq!(lines.next().unwrap().unwrap(), "7777777");
        }
        drop(to);
        assert!(child.wait().unwrap().success());
    }

    /// Makes the kernel forget what it knows, so that others ask again.
    fn forget(&self) {
        while self.going() {
            let response = self.mounted.ask(&Request::Invalidate);
            assert!(matches!(response, Response::Status(_)), "{response:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Counts the changes of a name, until it is over and nothing more comes.
    fn watch(&self, ready: &mpsc::Sender<()>) -> u64 {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).unwrap();
        inotify.add_watch(&self.mounted.at("changing"), AddWatchFlags::IN_MOVED_TO).unwrap();
        ready.send(()).unwrap();
        let mut heard = 0;
        loop {
            let over = !self.going();
            if poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], PollTimeout::from(50_u8)).unwrap()
                == 0
            {
                if over {
                    return heard;
                }
                continue;
            }
            let events = inotify.read_events().unwrap();
            heard +=
                events.iter().filter(|event| event.name.as_deref().is_some_and(|name| name == "f0")).count()
                    as u64;
        }
    }

    /// Shows the next generation, insisting on the present one.
    fn switch(&self, dir: &Path, generation: u64) -> Status {
        let source = format!("changing=iso:{}", iso(dir, generation).display());
        self.begun.store(generation, Ordering::SeqCst);
        let request = Request::Apply { ops: vec![Op::Replace(source)], if_generation: Some(generation - 1) };
        let response = self.mounted.ask(&request);
        self.done.store(generation, Ordering::SeqCst);
        match response {
            Response::Status(status) => {
                assert_eq!(status.generation, generation);
                *status
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn programs_notice_nothing_of_many_upgrades() {
    needs_mount!("programs_notice_nothing_of_many_upgrades");
    let dir = tempfile::tempdir().unwrap();
    let lower = dir.path().join("lower");
    let names: Vec<(String, String)> = (0..COLD)
        .map(|n| (format!("cold/name-{n}"), (n % 10).to_string().repeat((n % 10) as usize)))
        .collect();
    let files: Vec<(&str, &str)> = names.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    tree(&lower, &files);
    std::fs::write(lower.join("large"), large()).unwrap();
    let mounted = Mounted::new(&[
        "--layer",
        &format!("lower=dir:{}", lower.display()),
        "--layer",
        &format!("changing=iso:{}", iso(dir.path(), 0).display()),
    ]);
    let users =
        Users { mounted: &mounted, over: false.into(), reads: 0.into(), done: 0.into(), begun: 0.into() };
    // What is held from before everything.
    let first = users.open("changing/f0");
    let pid = mounted.pid();
    let (fds, threads, _) = usage_at_rest(pid);
    let (switches, heard, pauses) = std::thread::scope(|scope| {
        let users = &users;
        for from in 0..4 {
            scope.spawn(move || users.read(from));
        }
        for work in [Users::hold, Users::list, Users::stat, Users::map, Users::work_below, Users::forget] {
            scope.spawn(move || work(users));
        }
        let (ready, is_ready) = mpsc::channel();
        let watcher = scope.spawn(move || users.watch(&ready));
        is_ready.recv().unwrap();
        // However this ends, the others end too.
        let _end = OnDrop(|| users.over.store(true, Ordering::Relaxed));
        let mut generation = 0;
        let mut settled = None;
        for upgrade in 1..=UPGRADES {
            generation += 1;
            users.switch(dir.path(), generation);
            succeeded(&mounted.upgrade(None));
            let status = mounted.status();
            assert_eq!((status.pid, status.taken_over, status.generation), (pid, upgrade, generation));
            assert_eq!(status.rollback_to, Some(generation - 1));
            generation += 1;
            users.switch(dir.path(), generation);
            if upgrade == 3 {
                settled = Some((usage(pid).2, mounted.status().memory.in_use));
            }
        }
        // Back behind the last upgrade: what was shown before it is shown again, by its inodes' numbers too.
        generation += 1;
        succeeded(&mounted.upgrade(None));
        users.begun.store(generation, Ordering::SeqCst);
        users.over.store(true, Ordering::Relaxed);
        let heard = watcher.join().unwrap();
        let (resident, in_use) = settled.unwrap();
        let resident_now = usage(pid).2;
        eprintln!("{resident} → {resident_now} bytes");
        // Files that readers hold of other generations hold their images.
        assert!(resident_now <= resident + (64 << 20), "{resident} → {resident_now}");
        assert!(mounted.status().memory.in_use <= in_use + (45 << 20));
        let pauses: Vec<u64> = mounted
            .events()
            .iter()
            .filter_map(|event| match event.step {
                Step::TakenOver { pause_us, .. } => Some(pause_us),
                _ => None,
            })
            .collect();
        (generation - 1, heard, pauses)
    });
    eprintln!("{} reads, pauses of {pauses:?} µs", users.reads.load(Ordering::Relaxed));
    assert_eq!(pauses.len() as u64, UPGRADES + 1);
    assert_eq!(heard, switches, "an event for each switch");
    let mut content = vec![0; text(0, "changing/f0").len()];
    posix_fadvise(&first, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    first.read_exact_at(&mut content, 0).unwrap();
    assert_eq!(whole(&content, "changing/f0"), 0, "what is held keeps its content");
    drop(first);

    // A rollback behind the upgrade.
    let response = mounted.ask(&Request::Rollback { to: Some(switches - 1), if_generation: Some(switches) });
    assert!(matches!(response, Response::Status(status) if status.generation == switches + 1));
    assert_eq!(whole(mounted.read("changing/f0").as_bytes(), "changing/f0"), switches - 1);
    // Only the images of the generation that is shown and the one before are left, and few inodes.
    eventually("old images are freed", || {
        let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let images = links.flat_map(|fd| std::fs::read_link(fd.path()));
        (images.filter(|to| to.to_string_lossy().contains("ffs-image")).count() <= 3).then_some(())
    });
    // Threads that read from a disk end when they have had nothing to do for ten seconds.
    eventually("descriptors and threads as before", || {
        let (fds_now, threads_now, _) = usage(pid);
        // The generation that is kept for a rollback has an image, too.
        (fds_now <= fds + 4 && threads_now <= threads).then_some(())
    });
}

#[test]
fn a_directory_that_is_being_listed_goes_on_where_it_was() {
    needs_mount!("a_directory_that_is_being_listed_goes_on_where_it_was");
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..1500).map(|n| format!("list/a-rather-long-name-{n:05}")).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    let lower = tree(&dir.path().join("lower"), &files);
    let mounted = Mounted::new(&["--layer", &format!("lower=dir:{}", lower.display())]);
    let mut listing = std::fs::read_dir(mounted.at("list")).unwrap();
    let mut seen: BTreeSet<_> = listing.by_ref().take(10).map(|entry| entry.unwrap().file_name()).collect();
    let inode = mounted.at("list").metadata().unwrap().ino();
    succeeded(&mounted.upgrade(None));
    // The directory changes for those who look now: the listing is of what it was.
    let other = tree(&dir.path().join("other"), &[("list/other", "")]);
    mounted.layer("replace", &format!("lower=dir:{}", other.display()));
    succeeded(&mounted.upgrade(None));
    seen.extend(listing.map(|entry| entry.unwrap().file_name()));
    assert_eq!(seen.len(), 1500);
    assert_eq!(mounted.names("list"), ["other"]);
    assert_eq!(mounted.at("list").metadata().unwrap().ino(), inode);
    // Numbers count on: what is new has none that was used before.
    let new = mounted.at("list/other").metadata().unwrap().ino();
    assert!(new > 1500, "{new}");
}
