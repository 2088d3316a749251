//! Directories that are layers, followed: a change in one becomes a new generation by itself.
//!
//! inotify watches every directory of a followed tree. Events say only that a layer changed: what
//! changed is found by reading the layer again, so that lost events cost nothing but that. A burst
//! is taken together: the layer is read when nothing has happened for [`QUIET`], or [`PATIENCE`]
//! after the first event if it never gets quiet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use crate::layer::{COMPARED, Layer, LayerDir, LayerNode};

/// A change is shown when nothing more has happened for so long: an editor's or a package manager's
/// steps are a millisecond apart.
pub const QUIET: Duration = Duration::from_millis(10);
/// A change is shown after so long although more is happening.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// Following of directories.
pub struct Follower {
    inotify: Arc<Inotify>,
    watched: Arc<Mutex<Watched>>,
}

#[derive(Default)]
struct Watched {
    /// The directory of each followed layer.
    roots: BTreeMap<String, PathBuf>,
    /// What each watch is on: layers of the same directory share it.
    paths: HashMap<WatchDescriptor, PathBuf>,
}

impl Follower {
    /// Starts following nothing yet. `tell` is called with the names of layers that changed.
    ///
    /// # Errors
    /// What `inotify_init(2)` or starting a thread returns.
    pub fn start(tell: impl Fn(BTreeSet<String>) + Send + 'static) -> io::Result<Self> {
        let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?);
        let watched = Arc::new(Mutex::new(Watched::default()));
        let (heard, known) = (inotify.clone(), watched.clone());
        std::thread::Builder::new().name("directories".to_owned()).spawn(move || {
            if let Err(error) = listen(&heard, &known, &tell) {
                tracing::error!(%error, "directory layers are no longer followed");
            }
        })?;
        Ok(Self { inotify, watched })
    }

    /// Follows a layer from now on: the directories that are added to what is returned.
    pub fn follow<'a>(&'a self, layer: &'a str) -> Following<'a> {
        Following { follower: self, layer, begun: OnceLock::new(), failed: OnceLock::new() }
    }

    /// Follows none but these layers any more.
    pub fn retain(&self, layers: &BTreeSet<&str>) {
        let mut watched = locked(&self.watched);
        watched.roots.retain(|layer, _| layers.contains(layer.as_str()));
        let Watched { roots, paths } = &mut *watched;
        paths.retain(|watch, path| {
            let wanted = roots.values().any(|root| path.starts_with(root));
            if !wanted {
                // Gone already when its directory is.
                let _ = self.inotify.rm_watch(*watch);
            }
            wanted
        });
    }

    /// Whether a layer is followed.
    pub fn follows(&self, layer: &str) -> bool {
        locked(&self.watched).roots.contains_key(layer)
    }
}

/// A layer whose tree is being read, and followed.
pub struct Following<'a> {
    follower: &'a Follower,
    layer: &'a str,
    begun: OnceLock<()>,
    failed: OnceLock<Errno>,
}

impl Following<'_> {
    /// Adds a directory, the top one first. To be called before the directory is listed, so that no change falls between.
    pub fn add(&self, dir: &Path) {
        let mut watched = locked(&self.follower.watched);
        if self.begun.set(()).is_ok() {
            watched.roots.insert(self.layer.to_owned(), dir.to_owned());
        }
        if let Err(error) = watched.watch(&self.follower.inotify, dir) {
            let _ = self.failed.set(error);
        }
    }

    /// Ends with the tree. Where that could not be read, `unread` says why: what was not reached is followed all the
    /// same, for what stands in the way may go.
    ///
    /// # Errors
    /// What `inotify_add_watch(2)` first returned, `ENOSPC` beyond `fs.inotify.max_user_watches`; what `unread` is where
    /// not even the top was reached.
    pub fn end(self, unread: Option<&io::Error>) -> nix::Result<()> {
        if let Some(error) = unread {
            let mut watched = locked(&self.follower.watched);
            let root = self.begun.get().and_then(|()| watched.roots.get(self.layer).cloned());
            // An error without a number says that the top is no directory.
            let Some(root) = root else {
                return Err(error.raw_os_error().map_or(Errno::ENOTDIR, Errno::from_raw));
            };
            watched.add(&self.follower.inotify, &root)?;
        }
        self.failed.into_inner().map_or(Ok(()), Err)
    }
}

fn locked(watched: &Mutex<Watched>) -> MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    /// Watches a directory. Whether it is still there: if not, its parent's event tells.
    fn watch(&mut self, inotify: &Inotify, dir: &Path) -> nix::Result<bool> {
        let mask = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_ONLYDIR
            | AddWatchFlags::IN_DONT_FOLLOW;
        match inotify.add_watch(dir, mask) {
            Ok(watch) => self.paths.insert(watch, dir.to_owned()),
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(true)
    }

    /// Watches a directory and all below it.
    fn add(&mut self, inotify: &Inotify, top: &Path) -> nix::Result<()> {
        let mut left = vec![top.to_owned()];
        while let Some(dir) = left.pop() {
            if !self.watch(inotify, &dir)? {
                continue;
            }
            // Watched before it is listed: a directory made meanwhile is heard of.
            let Ok(entries) = dir.read_dir() else { continue };
            let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            left.extend(dirs.map(|entry| entry.path()));
        }
        Ok(())
    }

    /// Takes in one event; returns the layers that it concerns.
    fn event(&mut self, inotify: &Inotify, event: &InotifyEvent) -> BTreeSet<String> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            // Directories may have come without being heard of.
            let roots: Vec<PathBuf> = self.roots.values().cloned().collect();
            for root in roots {
                self.add_or_warn(inotify, &root);
            }
            return self.roots.keys().cloned().collect();
        }
        let Some(dir) = self.paths.get(&event.wd).cloned() else { return BTreeSet::new() };
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.paths.remove(&event.wd);
            return BTreeSet::new();
        }
        let came = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
        if let Some(name) = &event.name
            && event.mask.contains(AddWatchFlags::IN_ISDIR)
            && event.mask.intersects(came)
        {
            // A directory that was renamed keeps its watches under the old path: this corrects them.
            self.add_or_warn(inotify, &dir.join(name));
        }
        let of = self.roots.iter().filter(|(_, root)| dir.starts_with(root));
        of.map(|(layer, _)| layer.clone()).collect()
    }

    fn add_or_warn(&mut self, inotify: &Inotify, dir: &Path) {
        if let Err(error) = self.add(inotify, dir) {
            tracing::warn!(%error, dir = %dir.display(), "cannot follow");
        }
    }
}

fn listen(inotify: &Inotify, watched: &Mutex<Watched>, tell: &impl Fn(BTreeSet<String>)) -> nix::Result<()> {
    let mut changed = BTreeSet::new();
    let mut first: Option<Instant> = None;
    loop {
        let wait = match first {
            None => PollTimeout::NONE,
            Some(first) => {
                let left = QUIET.min(PATIENCE.saturating_sub(first.elapsed()));
                // At most QUIET; the millisecond more is for rounding down.
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO)
            }
        };
        let heard = match poll(&mut [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(ready) => ready > 0,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        };
        if heard {
            match inotify.read_events() {
                Ok(events) => {
                    let mut watched = locked(watched);
                    for event in events {
                        changed.extend(watched.event(inotify, &event));
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
            if !changed.is_empty() {
                first.get_or_insert_with(Instant::now);
            }
        }
        if first.is_some_and(|first| !heard || first.elapsed() >= PATIENCE) {
            first = None;
            tell(std::mem::take(&mut changed));
        }
    }
}

/// Whether two readings of a layer cannot be told apart: then there is nothing to show.
pub fn same(a: &Layer, b: &Layer) -> bool {
    let facts = |layer: &Layer| {
        (layer.name.clone(), layer.priority, layer.origin.clone(), layer.class.clone(), layer.generation)
    };
    facts(a) == facts(b) && same_tree(&a.root, &b.root, &mut { COMPARED })
}

fn same_tree(a: &Arc<LayerDir>, b: &Arc<LayerDir>, budget: &mut u64) -> bool {
    Arc::ptr_eq(a, b)
        || (a.meta == b.meta
            && a.opaque == b.opaque
            && a.xattrs == b.xattrs
            && a.entries.len() == b.entries.len()
            && a.entries.iter().zip(&b.entries).all(|((x, m), (y, n))| x == y && same_node(m, n, budget)))
}

fn same_node(a: &LayerNode, b: &LayerNode, budget: &mut u64) -> bool {
    match (a, b) {
        (LayerNode::Dir(a), LayerNode::Dir(b)) => same_tree(a, b, budget),
        (LayerNode::Leaf(a), LayerNode::Leaf(b)) => {
            a.meta == b.meta && a.xattrs == b.xattrs && a.same_content(b, budget)
        }
        (LayerNode::Whiteout, LayerNode::Whiteout) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// For what takes milliseconds on an idle machine.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_could_not_be_read_is_followed_too() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("not/reached")).unwrap();
        let (tx, rx) = channel();
        let follower = Follower::start(move |layers| tx.send(layers).unwrap()).unwrap();
        let unread = io::Error::from_raw_os_error(nix::libc::EIO);
        assert_eq!(follower.follow("a").end(Some(&unread)), Err(Errno::EIO));
        assert_eq!(follower.follow("a").end(Some(&io::ErrorKind::NotADirectory.into())), Err(Errno::ENOTDIR));
        let following = follower.follow("a");
        following.add(dir.path());
        following.end(Some(&unread)).unwrap();
        std::fs::write(dir.path().join("not/reached/file"), "").unwrap();
        assert_eq!(rx.recv_timeout(LONG).unwrap(), BTreeSet::from(["a".to_owned()]));
    }

    #[test]
    fn changes_are_told_by_layer() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, end] = ["a", "b", "end"].map(|name| dir.path().join(name));
        std::fs::create_dir_all(a.join("deep")).unwrap();
        std::fs::create_dir(&b).unwrap();
        std::fs::create_dir(&end).unwrap();
        let (tx, rx) = channel();
        let follower = Follower::start(move |layers| tx.send(layers).unwrap()).unwrap();
        let layers =
            [("a", vec![a.clone(), a.join("deep")]), ("b", vec![b.clone()]), ("end", vec![end.clone()])];
        for (layer, dirs) in layers {
            let following = follower.follow(layer);
            for dir in &dirs {
                following.add(dir);
            }
            following.end(None).unwrap();
        }
        // The layers that were told of since the last call. How many events are told at once depends on the machine; their order
        // does not, and a directory that is made is one event.
        let mut ends = 0..;
        let mut told = || {
            std::fs::create_dir(end.join(ends.next().unwrap().to_string())).unwrap();
            let mut told = BTreeSet::new();
            while !told.remove("end") {
                told.extend(rx.recv_timeout(LONG).unwrap());
            }
            told
        };
        let only = |name: &str| BTreeSet::from([name.to_owned()]);
        for at in 0..100 {
            std::fs::write(a.join(format!("deep/{at}")), "x").unwrap();
        }
        assert_eq!(told(), only("a"));
        // Directories that come are followed too.
        std::fs::create_dir_all(b.join("x/y")).unwrap();
        assert_eq!(told(), only("b"));
        std::fs::write(b.join("x/y/z"), "x").unwrap();
        assert_eq!(told(), only("b"));
        follower.retain(&BTreeSet::from(["a", "end"]));
        assert!(!follower.follows("b"));
        std::fs::write(b.join("x/y/z"), "y").unwrap();
        std::fs::write(a.join("last"), "").unwrap();
        assert_eq!(told(), only("a"));
    }
}
