//! All layers replaced together, twenty times a second, under eight readers and a watcher.
//!
//! What is promised, and checked here on every single read: a file is whole and of one generation; what is
//! opened after a switch returned is of that switch's generation or a newer one; what is held keeps its
//! generation; a listing is that of one generation; nobody gets an error; the watcher hears of each changed
//! path of each switch, and finds the new content when it does; afterwards nothing is left.
//!
//! A descriptor of a directory stands for the directory, not for a generation: what is opened through it
//! is what is shown then, never older than what was opened through it before.
//!
//! Two seconds by default; `FFS_STORM_SECONDS` says otherwise, `ci/storm` runs it for a minute, and there the rate is
//! promised too.

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{Drive, Mounted, OnDrop, eventually, image};
use ffs::layer::{Layer, image as iso};
use ffs::mount::Mount;
use ffs::sealed::Sealed;
use ffs::trust::Trust;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;

/// Switches a second.
const RATE: u32 = 20;
/// After so many switches memory grows no more.
const SETTLED: u64 = 20;
/// From so long on, a run must keep the rate.
const LONG: Duration = Duration::from_secs(30);
/// Names and priorities of the layers.
const LAYERS: [(&str, u16); 3] = [("base", 1), ("service", 2), ("infrastructure", 3)];
/// Files that each layer has for itself, and that all have.
const FILES: u64 = 4;
/// In `flip` there is one file at a time, of so many names.
const FLIPS: u64 = 4;

fn seconds() -> Duration {
    let text = std::env::var("FFS_STORM_SECONDS").unwrap_or_else(|_| "2".to_owned());
    Duration::from_secs(text.parse().expect("FFS_STORM_SECONDS is a number"))
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Lines that end, between generations, at different places; the size tells the generation.
fn size(generation: u64, path: &str) -> usize {
    64 + (fnv(path.as_bytes()) % 6000) as usize + (generation % 1000) as usize
}

/// A file of a generation: number, padding up to its size, checksum.
fn content(generation: u64, path: &str) -> String {
    let mut text = format!("{generation:010} {path}\n");
    let fill = char::from(b'a' + (generation % 26) as u8);
    text.extend(std::iter::repeat_n(fill, size(generation, path) - 17 - text.len()));
    let sum = fnv(text.as_bytes());
    text + &format!("\n{sum:016x}")
}

/// The generation of a file that was read, if it is whole.
fn check(text: &[u8], path: &str) -> u64 {
    let (body, sum) = text.split_at(text.len().saturating_sub(17));
    let sum = u64::from_str_radix(std::str::from_utf8(&sum[1..]).expect("text"), 16);
    assert_eq!(sum, Ok(fnv(body)), "`{path}` is torn: {} bytes", text.len());
    let body = std::str::from_utf8(body).expect("text");
    let (number, rest) = body.split_once(' ').expect("a number");
    assert!(rest.starts_with(&format!("{path}\n")), "`{path}` has the content of another: {rest:.40}");
    let generation = number.parse().expect("a number");
    assert_eq!(text.len(), size(generation, path), "`{path}`");
    generation
}

/// The paths that are there in every generation.
fn lasting() -> Vec<String> {
    let own = LAYERS.iter().flat_map(|(layer, _)| (0..FILES).map(move |n| format!("{layer}/own-{n}")));
    let common = (0..FILES).map(|n| format!("common/file-{n}"));
    own.chain(common).chain(["pair/a".to_owned(), "pair/b".to_owned()]).collect()
}

/// The layer `at` of a generation. `pair/a` is the lowest layer's and `pair/b` the highest's.
fn layer(at: usize, generation: u64) -> Arc<Layer> {
    let (name, priority) = LAYERS[at];
    let mut paths: Vec<String> = (0..FILES).map(|n| format!("{name}/own-{n}")).collect();
    paths.extend((0..FILES).map(|n| format!("common/file-{n}")));
    match at {
        0 => paths.push("pair/a".to_owned()),
        1 => paths.push(format!("flip/{}", generation % FLIPS)),
        _ => paths.push("pair/b".to_owned()),
    }
    let contents: Vec<String> = paths.iter().map(|path| content(generation, path)).collect();
    let files: Vec<(&str, &str)> =
        paths.iter().map(String::as_str).zip(contents.iter().map(String::as_str)).collect();
    let bytes = image(name, priority, generation, &files);
    let sealed = Sealed::read_from(&mut &bytes[..], bytes.len() as u64).expect("memory");
    let trust = Trust::without_keys();
    Arc::new(iso::layer(sealed, None, None, "storm", &trust).expect("a layer").0)
}

fn layers(generation: u64) -> Vec<Arc<Layer>> {
    (0..LAYERS.len()).map(|at| layer(at, generation)).collect()
}

/// What the readers know of the switches.
struct Storm {
    point: PathBuf,
    /// The newest generation whose switch has begun.
    begun: AtomicU64,
    /// The newest generation whose switch has returned.
    done: AtomicU64,
    over: AtomicBool,
    reads: AtomicU64,
}

impl Storm {
    /// Runs one access, which gives the generation that it saw, and checks that against the switches.
    fn saw(&self, access: impl FnOnce() -> u64) -> u64 {
        let oldest = self.done.load(Ordering::SeqCst);
        let seen = access();
        let newest = self.begun.load(Ordering::SeqCst);
        assert!((oldest..=newest).contains(&seen), "generation {seen}, not {oldest} to {newest}");
        self.reads.fetch_add(1, Ordering::Relaxed);
        seen
    }

    fn open(&self, path: &str) -> File {
        File::open(self.point.join(path)).unwrap_or_else(|error| panic!("`{path}`: {error}"))
    }

    fn read(&self, path: &str) -> u64 {
        self.saw(|| {
            check(
                &std::fs::read(self.point.join(path)).unwrap_or_else(|error| panic!("`{path}`: {error}")),
                path,
            )
        })
    }

    fn going(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    /// Whole files, one after the other.
    fn read_whole(&self, from: usize) {
        let paths = lasting();
        for path in paths.iter().cycle().skip(from) {
            if !self.going() {
                return;
            }
            self.read(path);
        }
    }

    /// In small pieces, so that switches fall between them.
    fn read_slowly(&self) {
        while self.going() {
            self.saw(|| {
                let file = self.open("common/file-1");
                let (mut text, mut piece) = (Vec::new(), [0; 512]);
                loop {
                    match file.read_at(&mut piece, text.len() as u64).expect("read") {
                        0 => return check(&text, "common/file-1"),
                        read => text.extend_from_slice(&piece[..read]),
                    }
                    std::thread::yield_now();
                }
            });
        }
    }

    /// Two files of two layers through one descriptor of their directory.
    fn read_pairs(&self) {
        let dir: OwnedFd = self.open("pair").into();
        let read = |name: &str| {
            let file = openat(&dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).expect("openat");
            let mut text = Vec::new();
            File::from(file).read_to_end(&mut text).expect("read");
            check(&text, &format!("pair/{name}"))
        };
        let mut before = 0;
        while self.going() {
            let oldest = self.done.load(Ordering::SeqCst);
            let (a, b) = (self.saw(|| read("a")), self.saw(|| read("b")));
            assert!(before <= a && a <= b, "{before}, then {a}, then {b}");
            if self.begun.load(Ordering::SeqCst) == oldest {
                assert_eq!(a, b, "no switch in between");
            }
            before = b;
        }
    }

    /// Listings: all of `common`, and exactly one name in `flip`, of a generation that may be seen.
    fn list(&self) {
        let names = |dir: &str| {
            let entries = std::fs::read_dir(self.point.join(dir)).expect("opendir");
            let mut names: Vec<String> = entries
                .map(|entry| entry.expect("readdir").file_name().into_string().expect("text"))
                .collect();
            names.sort();
            names
        };
        let all: Vec<String> = (0..FILES).map(|n| format!("file-{n}")).collect();
        while self.going() {
            assert_eq!(names("common"), all);
            let oldest = self.done.load(Ordering::SeqCst);
            let flip = names("flip");
            let newest = self.begun.load(Ordering::SeqCst);
            assert_eq!(flip.len(), 1, "{flip:?}");
            let number: u64 = flip[0].parse().expect("a number");
            assert!(
                (oldest..=newest).any(|generation| generation % FLIPS == number),
                "{flip:?} in {oldest} to {newest}"
            );
            self.reads.fetch_add(2, Ordering::Relaxed);
        }
    }

    /// Sizes by path.
    fn stat(&self) {
        let paths = lasting();
        for path in paths.iter().cycle() {
            if !self.going() {
                return;
            }
            let oldest = self.done.load(Ordering::SeqCst);
            let found = self.point.join(path).metadata().expect("stat").len();
            let newest = self.begun.load(Ordering::SeqCst);
            let fits = (oldest..=newest).any(|generation| size(generation, path) as u64 == found);
            assert!(fits, "`{path}` has {found} bytes in {oldest} to {newest}");
            self.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Files held open over switches.
    fn hold(&self) {
        while self.going() {
            let mut file = None;
            let generation = self.saw(|| {
                let held = file.insert(self.open("base/own-0"));
                let mut first = [0; 10];
                held.read_exact_at(&mut first, 0).expect("read");
                std::str::from_utf8(&first).expect("text").parse().expect("a number")
            });
            while self.going() && self.done.load(Ordering::SeqCst) < generation + 3 {
                std::thread::yield_now();
            }
            let mut text = Vec::new();
            file.expect("it is open").read_to_end(&mut text).expect("read");
            assert_eq!(check(&text, "base/own-0"), generation);
        }
    }

    /// Hears of every path of every switch, and finds its content not older than the event.
    fn watch(&self, ready: &mpsc::Sender<()>) -> BTreeMap<String, u64> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("inotify");
        let mask = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE;
        let dirs = ["base", "service", "infrastructure", "common", "pair", "flip"];
        let watches = dirs.map(|dir| (inotify.add_watch(&self.point.join(dir), mask).expect("a watch"), dir));
        ready.send(()).expect("somebody waits");
        let mut heard: BTreeMap<String, u64> = BTreeMap::new();
        loop {
            // Set before the last event is waited for: what came before it is in the queue.
            let over = !self.going();
            let mut wait = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
            if poll(&mut wait, PollTimeout::from(20_u8)).expect("poll") == 0 {
                if over {
                    return heard;
                }
                continue;
            }
            for event in inotify.read_events().expect("events") {
                assert!(!event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW), "the queue ran over");
                let dir = watches.iter().find(|(watch, _)| *watch == event.wd).expect("a watch of ours").1;
                let name = event.name.and_then(|name| name.into_string().ok()).expect("a name");
                let path = format!("{dir}/{name}");
                let count = heard.entry(path.clone()).or_default();
                *count += 1;
                if dir != "flip" {
                    // The nth event of a path is that of the nth switch.
                    let count = *count;
                    let seen = self.read(&path);
                    assert!(seen >= count, "`{path}`: event {count} came before its content, {seen}");
                }
            }
        }
    }
}

/// Sorts times and returns the one in the middle.
fn middle(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Descriptors of images, threads and resident bytes of this process.
fn usage() -> (usize, usize, usize) {
    let links =
        std::fs::read_dir("/proc/self/fd").expect("proc").flatten().map(|fd| std::fs::read_link(fd.path()));
    let images = links.flatten().filter(|to| to.to_string_lossy().contains("ffs-image")).count();
    let threads = std::fs::read_dir("/proc/self/task").expect("proc").count();
    let statm = std::fs::read_to_string("/proc/self/statm").expect("proc");
    let pages: usize = statm.split(' ').nth(1).and_then(|text| text.parse().ok()).expect("a number");
    (images, threads, pages * 4096)
}

#[test]
fn all_layers_switch_together_under_readers_and_a_watcher() {
    needs_mount!("all_layers_switch_together_under_readers_and_a_watcher");
    let dir = tempfile::tempdir().expect("a directory");
    let (_, threads_before, _) = usage();
    let (mount, session) = Mount::new(dir.path(), layers(0)).expect("a mount");
    assert_eq!(mount.reduced(), [] as [String; 0]);
    let storm = Storm {
        point: mount.point().to_owned(),
        begun: 0.into(),
        done: 0.into(),
        over: false.into(),
        reads: 0.into(),
    };
    // Images are made ahead, so that the rate is that of switches.
    let (made, next) = mpsc::sync_channel(8);
    let (switches, heard, resident) = std::thread::scope(|scope| {
        let storm = &storm;
        scope.spawn(move || {
            for generation in 1.. {
                if !storm.going() || made.send(layers(generation)).is_err() {
                    return;
                }
            }
        });
        scope.spawn(|| storm.read_whole(0));
        scope.spawn(|| storm.read_whole(5));
        scope.spawn(|| storm.read_whole(11));
        scope.spawn(|| storm.read_slowly());
        scope.spawn(|| storm.read_pairs());
        scope.spawn(|| storm.list());
        scope.spawn(|| storm.stat());
        scope.spawn(|| storm.hold());
        let (ready, is_ready) = mpsc::channel();
        let watcher = scope.spawn(move || storm.watch(&ready));
        is_ready.recv().expect("the watcher is there");
        // However this ends, the readers end too.
        let _end = OnDrop(|| storm.over.store(true, Ordering::Relaxed));
        let began = Instant::now();
        let (mut shown, mut told) = (Vec::new(), Vec::new());
        let mut switches = 0;
        let mut settled = 0;
        // A slow machine takes longer for so many that there is something to compare with.
        while (began.elapsed() < seconds() || switches < 2 * SETTLED) && !watcher.is_finished() {
            let Ok(layers) = next.recv() else { break };
            switches += 1;
            storm.begun.store(switches, Ordering::SeqCst);
            let start = Instant::now();
            let switch = mount.switch(|_| layers);
            storm.done.store(switches, Ordering::SeqCst);
            shown.push(start.elapsed().as_secs_f64() * 1e3);
            mount.tell_watchers(&switch);
            told.push(start.elapsed().as_secs_f64() * 1e3);
            if switches == SETTLED {
                settled = usage().2;
            }
            let due = began + Duration::from_secs(1) / RATE * u32::try_from(switches).expect("few");
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        storm.over.store(true, Ordering::Relaxed);
        while next.try_recv().is_ok() {}
        let resident = usage().2.saturating_sub(settled);
        let rate = switches as f64 / began.elapsed().as_secs_f64();
        eprintln!(
            "{switches} switches, {rate:.1} a second, {} reads; shown in {:.1} ms and told in {:.1} ms at the median, {:.1} \
             and {:.1} at worst",
            storm.reads.load(Ordering::Relaxed),
            middle(&mut shown),
            middle(&mut told),
            shown.last().copied().unwrap_or_default(),
            told.last().copied().unwrap_or_default(),
        );
        // A short run says how fast it was; a long one was asked to be this fast, and begins and ends once.
        if seconds() >= LONG {
            assert!(rate >= f64::from(RATE) * 0.99, "{rate:.1} switches a second instead of {RATE}");
        }
        drop(next);
        (switches, watcher.join().expect("the watcher"), resident)
    });
    let lasting = lasting();
    for path in &lasting {
        assert_eq!(heard.get(path), Some(&switches), "events of `{path}` in {switches} switches");
    }
    let flips: u64 = heard.iter().filter(|(path, _)| path.starts_with("flip/")).map(|(_, count)| count).sum();
    assert_eq!(flips, 2 * switches, "one name goes and one comes with each switch");
    assert_eq!(mount.current().number, switches);

    // Nothing of earlier generations is left, while it is mounted...
    eventually("old inodes forgotten", || (mount.known_inodes() <= lasting.len() + 16).then_some(()));
    eventually("old images freed", || (usage().0 <= LAYERS.len()).then_some(()));
    assert!(resident < 64 << 20, "{resident} bytes more than after the first switches");
    // ...nor anything at all afterwards.
    mount.unmount().expect("unmount");
    session.wait().expect("the session");
    drop(mount);
    assert_eq!(usage().0, 0, "images");
    eventually("the threads' end", || (usage().1 <= threads_before).then_some(()));
}

/// Replaces a file of a directory as careful programs do.
fn replace(dir: &Path, path: &str, generation: u64) {
    let new = dir.join(format!(".{generation}.new"));
    std::fs::write(&new, content(generation, path)).expect("write");
    std::fs::rename(new, dir.join(path)).expect("rename");
}

#[test]
fn a_drive_is_pulled_and_a_directory_edited_under_readers() {
    needs_mount!("a_drive_is_pulled_and_a_directory_edited_under_readers");
    let disc = |generation: u64| {
        let text = content(generation, "disc");
        image("infrastructure", 9, generation, &[("disc", &text)])
    };
    let Some(mut drive) = Drive::with(&disc(1)) else {
        eprintln!("SKIPPED a_drive_is_pulled_and_a_directory_edited_under_readers: no loop device");
        return;
    };
    let dir = tempfile::tempdir().expect("a directory");
    replace(dir.path(), "edited", 1);
    let mounted = Mounted::new(&[
        "--layer",
        &format!("infrastructure=device:{}", drive.device.display()),
        "--layer",
        &format!("edited=dir:{}", dir.path().display()),
    ]);
    let over = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let discs = std::thread::scope(|scope| {
        let (mounted, over, reads) = (&mounted, &over, &reads);
        for path in ["disc", "disc", "disc", "edited", "edited", "edited"] {
            scope.spawn(move || {
                let mut before = 0;
                while !over.load(Ordering::Relaxed) {
                    let text =
                        std::fs::read(mounted.at(path)).unwrap_or_else(|error| panic!("`{path}`: {error}"));
                    let seen = check(&text, path);
                    assert!(seen >= before, "`{path}` went back from {before} to {seen}");
                    before = seen;
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let beneath = dir.path();
        scope.spawn(move || {
            for generation in 2.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                replace(beneath, "edited", generation);
                std::thread::sleep(Duration::from_secs(1) / RATE);
            }
        });
        let _end = OnDrop(|| over.store(true, Ordering::Relaxed));
        let began = Instant::now();
        let mut generation = 1;
        while began.elapsed() < seconds() {
            // Also in the middle of being read.
            drive.eject();
            generation += 1;
            drive.insert(&disc(generation));
            if generation % 2 == 0 {
                eventually("the disc", || {
                    (check(&std::fs::read(mounted.at("disc")).expect("read"), "disc") == generation)
                        .then_some(())
                });
            }
        }
        generation
    });
    eprintln!("{discs} discs, {} reads", reads.load(Ordering::Relaxed));
    eventually("the last disc", || {
        (check(&std::fs::read(mounted.at("disc")).expect("read"), "disc") == discs).then_some(())
    });
}
