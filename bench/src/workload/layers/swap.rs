//! Probes of change: how soon new content is seen, and whether anything old or mixed is.
//!
//! A swap puts another version of one layer in place while the union is mounted. Nothing is pinned
//! here: program, requester and reader each run where there is room.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, mpsc};
use std::time::{Duration, Instant};

use ffs::control::{Request, Response, ask};
use ffs::edit::Op;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::fs::{Mode, OFlags, open};
use serde::{Deserialize, Serialize};

use super::probe::c_path;
use super::tree::{CACHED, CHANGED, CHANGED_BYTES, CHANGED_FILES, tag_of};

/// After this long new content does not come any more.
const LATE: Duration = Duration::from_secs(60);
/// After a swap that is done, events do not come any more when none has come for so long.
const EVENT_LATE: Duration = Duration::from_secs(1);
/// So many swaps without any event show that there are none.
const SILENT: usize = 3;
/// Threads that read during a storm.
const READERS: usize = 2;

/// How a layer is put in the place of another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Files renamed over the present ones, one by one: what a program does without layers.
    Rename {
        /// The folder that is shown.
        root: PathBuf,
        /// A folder on the same file system for files not shown yet.
        stage: PathBuf,
    },
    /// mergerfs's list of branches, by an extended attribute.
    Mergerfs {
        /// The mount point.
        root: PathBuf,
        /// The layers below, highest first.
        below: Vec<PathBuf>,
    },
    /// A request to `ffs`.
    Ffs {
        /// Its control socket.
        socket: PathBuf,
        /// Name of the layer.
        layer: String,
        /// Its priority.
        priority: u16,
    },
}

impl Control {
    /// What is done before the time counts.
    fn prepare(&self, version: &Path) -> io::Result<()> {
        let Self::Rename { stage, .. } = self else { return Ok(()) };
        std::fs::create_dir_all(stage)?;
        for name in names() {
            std::fs::copy(version.join(CHANGED).join(&name), stage.join(&name))?;
        }
        Ok(())
    }

    /// Puts a version of the layer in place; returns when the file system says that it is done.
    fn apply(&self, version: &Path) -> io::Result<()> {
        match self {
            Self::Rename { root, stage } => names()
                .try_for_each(|name| std::fs::rename(stage.join(&name), root.join(CHANGED).join(&name))),
            Self::Mergerfs { root, below } => {
                let branches: Vec<_> = std::iter::once(version)
                    .chain(below.iter().map(PathBuf::as_path))
                    .map(|path| format!("{}=RO", path.display()))
                    .collect();
                let value = branches.join(":");
                let flags = rustix::fs::XattrFlags::empty();
                Ok(rustix::fs::setxattr(
                    root.join(".mergerfs"),
                    "user.mergerfs.branches",
                    value.as_bytes(),
                    flags,
                )?)
            }
            Self::Ffs { socket, layer, priority } => {
                let spec = format!("{layer}=dir:{},priority={priority}", version.display());
                let replace = Request::Apply { ops: vec![Op::Replace(spec)], if_generation: None };
                match ask(socket, &replace)? {
                    Response::Status(_) => Ok(()),
                    Response::Conflict(reason) | Response::Error(reason) => Err(io::Error::other(reason)),
                }
            }
        }
    }
}

fn names() -> impl Iterator<Item = String> {
    (0..CHANGED_FILES).map(|number| format!("{number:02}"))
}

/// Reads one of the changed files in two halves, as a program with a small buffer does.
fn read(path: &std::ffi::CStr, buffer: &mut [u8; CHANGED_BYTES]) -> io::Result<usize> {
    let file = open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let (first, second) = buffer.split_at_mut(CHANGED_BYTES / 2);
    let some = rustix::io::read(&file, first)?;
    Ok(some + rustix::io::read(&file, second)?)
}

fn tag(path: &std::ffi::CStr) -> io::Result<Option<u64>> {
    let mut buffer = [0; CHANGED_BYTES];
    let bytes = read(path, &mut buffer)?;
    Ok(tag_of(&buffer[..bytes]))
}

/// A version with its tag.
pub type Version = (PathBuf, u64);

/// Times from the request of each swap until a reader that never rests has seen the new content, in ms.
///
/// # Errors
/// A swap fails, or its content is not seen within a minute.
pub fn visible(root: &Path, control: &Control, versions: &[Version], swaps: u32) -> io::Result<Vec<f64>> {
    let path = c_path(&root.join(CHANGED).join("00"))?;
    // The tag that is awaited; 0 is none.
    let wanted = AtomicU64::new(0);
    let end = AtomicBool::new(false);
    let (seen, sightings) = mpsc::channel();
    std::thread::scope(|scope| {
        let (wanted, end) = (&wanted, &end);
        scope.spawn(move || {
            while !end.load(Ordering::Acquire) {
                let want = wanted.load(Ordering::Acquire);
                // A file that cannot be read now is one that has not changed yet.
                if want != 0 && tag(&path).is_ok_and(|tag| tag == Some(want)) {
                    wanted.store(0, Ordering::Release);
                    if seen.send(Instant::now()).is_err() {
                        return;
                    }
                }
                std::hint::spin_loop();
            }
        });
        let times = (0..swaps as usize)
            .map(|number| {
                let (version, tag) = &versions[(number + 1) % versions.len()];
                control.prepare(version)?;
                wanted.store(*tag, Ordering::Release);
                let began = Instant::now();
                control.apply(version)?;
                let at = sightings.recv_timeout(LATE).map_err(|_| {
                    io::Error::other(format!("swap {number}: the new content was not seen within {LATE:?}"))
                })?;
                Ok(at.duration_since(began).as_secs_f64() * 1e3)
            })
            .collect();
        end.store(true, Ordering::Release);
        times
    })
}

/// What a watcher of the changed directory got.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// Times from the request of each swap until the last changed path was told, in ms.
    pub times: Vec<f64>,
    /// Paths that were told before their new content was there, and paths that were never told.
    pub faults: u32,
    /// No event came at all.
    pub silent: bool,
}

/// Watches the changed directory by inotify while a layer is swapped.
///
/// # Errors
/// A swap fails, or the directory cannot be watched.
pub fn events(root: &Path, control: &Control, versions: &[Version], swaps: u32) -> io::Result<Events> {
    let directory = root.join(CHANGED);
    let paths = names().map(|name| c_path(&directory.join(name))).collect::<io::Result<Vec<_>>>()?;
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    let told = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_ATTRIB
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVED_TO;
    watch.add_watch(&directory, told)?;
    let mut all = Events::default();
    for number in 0..swaps as usize {
        let (version, tag_now) = &versions[(number + 1) % versions.len()];
        control.prepare(version)?;
        // What a swap before this one still had to say.
        while next(&watch, Duration::from_millis(2))?.is_some() {}
        let began = Instant::now();
        let mut missing: BTreeSet<usize> = (0..paths.len()).collect();
        let mut last = None;
        // The watcher is a program of its own: it waits beside the one that swaps.
        std::thread::scope(|scope| {
            let swapped = scope.spawn(|| control.apply(version));
            while !missing.is_empty() {
                // Before the wait: on a busy machine the swap itself may take longer than that.
                let done = swapped.is_finished();
                let Some(batch) = next(&watch, EVENT_LATE)? else {
                    if done {
                        break;
                    }
                    continue;
                };
                let at = began.elapsed();
                for name in batch {
                    let Some(index) = name.and_then(|name| name.parse::<usize>().ok()) else { continue };
                    if missing.remove(&index) {
                        last = Some(at);
                        let content = paths.get(index).and_then(|path| tag(path).ok()).flatten();
                        all.faults += u32::from(content != Some(*tag_now));
                    }
                }
            }
            swapped.join().map_err(|_| io::Error::other("the swap panicked"))?
        })?;
        match last {
            Some(at) if missing.is_empty() => all.times.push(at.as_secs_f64() * 1e3),
            Some(_) => all.faults += u32::try_from(missing.len()).unwrap_or(u32::MAX),
            None if all.times.is_empty() && number + 1 >= SILENT => {
                return Ok(Events { silent: true, ..Events::default() });
            }
            None => all.faults += CHANGED_FILES,
        }
    }
    Ok(all)
}

/// The names of the next events; none when there is none in time.
fn next(watch: &Inotify, wait: Duration) -> io::Result<Option<Vec<Option<String>>>> {
    let millis = u16::try_from(wait.as_millis()).unwrap_or(u16::MAX);
    let mut ready = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::from(millis))? == 0 {
        return Ok(None);
    }
    let name = |event: nix::sys::inotify::InotifyEvent| {
        event.name.map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned())
    };
    Ok(Some(watch.read_events()?.into_iter().map(name).collect()))
}

/// A swap of a layer with many entries that the kernel has cached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cached {
    /// Times until the request was done with all entries cached, in ms.
    pub cached: Vec<f64>,
    /// The same with none cached.
    pub fresh: Vec<f64>,
    /// Entries that still had their old size after a swap was done, in all rounds.
    pub stale: u32,
}

/// Swaps a layer whose `entries` all change, with all of them cached and with none.
///
/// # Errors
/// A swap fails, or an entry cannot be looked up.
pub fn cached(
    root: &Path,
    control: &Control,
    versions: &[Version],
    entries: u32,
    rounds: u32,
) -> io::Result<Cached> {
    let paths = (0..entries)
        .map(|number| c_path(&root.join(CACHED).join(format!("{number:05}"))))
        .collect::<io::Result<Vec<_>>>()?;
    // Sizes are 1 and 2 bytes, by the version's place.
    let sizes = |place: usize| -> io::Result<u32> {
        let mut old = 0;
        for path in &paths {
            let size = rustix::fs::stat(path.as_c_str())?.st_size;
            old += u32::from(usize::try_from(size).unwrap_or(0) != place + 1);
        }
        Ok(old)
    };
    let timed = |place: usize| -> io::Result<f64> {
        let began = Instant::now();
        control.apply(&versions[place].0)?;
        Ok(began.elapsed().as_secs_f64() * 1e3)
    };
    let mut found = Cached { cached: Vec::new(), fresh: Vec::new(), stale: 0 };
    control.apply(&versions[0].0)?;
    for _ in 0..rounds {
        let began = Instant::now();
        sizes(0)?;
        let rest = began.elapsed();
        found.cached.push(timed(1)?);
        found.stale += sizes(1)?;
        // This one makes the kernel forget what the look has cached; the next finds nothing, and the file system has had as
        // long for what it does behind a swap as before the other.
        control.apply(&versions[0].0)?;
        std::thread::sleep(rest);
        found.fresh.push(timed(1)?);
        control.apply(&versions[0].0)?;
    }
    Ok(found)
}

/// What readers saw while layers changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storm {
    /// Reads of a whole file.
    pub reads: u64,
    /// Reads of a version older than one that the same reader had seen before, in whatever file.
    pub mixed: u64,
    /// Reads of a file that was not all of one version.
    pub torn: u64,
    /// Reads that failed.
    pub errors: u64,
    /// Changes made.
    pub changes: u32,
}

/// Reads all changed files over and over while the layer goes through `versions`, `rate` a second.
///
/// Versions only grow. A reader that has seen a version in one file has seen the switch; an older
/// one in any file after that is a mixture of two states that were never there together.
///
/// # Errors
/// A swap fails.
pub fn storm(root: &Path, control: &Control, versions: &[Version], rate: u32) -> io::Result<Storm> {
    let paths = names().map(|name| c_path(&root.join(CHANGED).join(name))).collect::<io::Result<Vec<_>>>()?;
    let Some(((first, first_tag), rest)) = versions.split_first() else { return Ok(Storm::default()) };
    control.prepare(first)?;
    control.apply(first)?;
    let deadline = Instant::now() + LATE;
    while !paths.iter().all(|path| tag(path).is_ok_and(|tag| tag == Some(*first_tag))) {
        if Instant::now() > deadline {
            return Err(io::Error::other("the storm's first version was not seen"));
        }
    }
    let end = AtomicBool::new(false);
    let ready = Barrier::new(READERS + 1);
    let period = Duration::from_secs(1) / rate.max(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|number| {
                scope.spawn({
                    let (paths, ready, end) = (&paths, &ready, &end);
                    move || {
                        ready.wait();
                        reader(paths, number, end)
                    }
                })
            })
            .collect();
        ready.wait();
        let began = Instant::now();
        let mut swapped = Ok(());
        let mut changes = 0;
        for (number, (version, _)) in (1..).zip(rest) {
            swapped = control.prepare(version);
            std::thread::sleep((began + period * number).saturating_duration_since(Instant::now()));
            swapped = swapped.and_then(|()| control.apply(version));
            if swapped.is_err() {
                break;
            }
            changes += 1;
        }
        std::thread::sleep(period);
        end.store(true, Ordering::Release);
        let mut all = Storm { changes, ..Storm::default() };
        for reader in readers {
            let one = reader.join().map_err(|_| io::Error::other("a reader panicked"))?;
            all.reads += one.reads;
            all.mixed += one.mixed;
            all.torn += one.torn;
            all.errors += one.errors;
        }
        swapped.map(|()| all)
    })
}

fn reader(paths: &[std::ffi::CString], number: usize, end: &AtomicBool) -> Storm {
    let mut storm = Storm::default();
    let mut newest = 0;
    // 5 and 16 have no factor in common, so every file comes.
    for path in paths.iter().cycle().skip(number).step_by(5) {
        // Once at least.
        if storm.reads > 0 && end.load(Ordering::Acquire) {
            break;
        }
        storm.reads += 1;
        match tag(path) {
            Err(_) => storm.errors += 1,
            Ok(Some(tag)) if tag >= newest => newest = tag,
            Ok(Some(_)) => storm.mixed += 1,
            Ok(None) => storm.torn += 1,
        }
    }
    storm
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Shape, Trees, storm_tag};
    use super::*;

    fn native() -> (tempfile::TempDir, Trees, Control) {
        let folder = tempfile::tempdir().unwrap();
        let trees = Trees::write(folder.path(), &Shape::SMALL).unwrap();
        let control = Control::Rename { root: trees.native(), stage: folder.path().join("stage") };
        (folder, trees, control)
    }

    #[test]
    fn a_rename_is_seen_and_told() {
        let (_folder, trees, control) = native();
        let versions = [(trees.version(0), 1), (trees.version(1), 2)];
        let times = visible(&trees.native(), &control, &versions, 6).unwrap();
        assert_eq!(times.len(), 6);
        assert!(times.iter().all(|ms| *ms >= 0.0), "{times:?}");
        let events = events(&trees.native(), &control, &versions, 4).unwrap();
        assert_eq!((events.times.len(), events.faults, events.silent), (4, 0, false));
    }

    #[test]
    fn renames_one_by_one_are_seen_mixed_and_never_torn_into_errors() {
        let (_folder, trees, control) = native();
        let versions: Vec<Version> = (0..3).map(|n| (trees.storm(n), storm_tag(n))).collect();
        let storm = storm(&trees.native(), &control, &versions, 50).unwrap();
        assert_eq!((storm.changes, storm.errors, storm.torn), (2, 0, 0));
        assert!(storm.reads >= READERS as u64, "{storm:?}");
    }

    #[test]
    fn nobody_is_told_of_nothing() {
        let (folder, trees, _) = native();
        // Renames elsewhere: the watched folder stays as it is.
        let other = Trees::write(&folder.path().join("other"), &Shape::SMALL).unwrap();
        let control = Control::Rename { root: other.native(), stage: folder.path().join("stage") };
        let versions = [(trees.version(0), 1), (trees.version(1), 2)];
        let events = events(&trees.native(), &control, &versions, 10).unwrap();
        assert!(events.silent && events.times.is_empty());
    }
}
