//! A mount: the kernel session, and the switch from one generation to the next.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use fuser::{Config, INodeNo, Notifier, SessionACL};
use nix::mount::{MntFlags, umount2};

use crate::diff::{Change, Diff, What};
use crate::fs::{Ffs, Shared};
use crate::generation::Generation;
use crate::handover::{self, state::Agreed};
use crate::kernel::guard::{self, Guard};
pub use crate::kernel::mounting::Restrictions;
use crate::kernel::session::{Way, read_ahead};
use crate::layer::Layer;
use crate::merge::{Inodes, Node};
use crate::prefetch::Prefetch;
use crate::projection::Projection;
use crate::sys;
use crate::teller::{News, Teller};
use crate::watch::PrivateMount;

/// Threads that answer the kernel: a cold burst from several programs runs side by side. None of them waits for a disk
/// ([`readers`](crate::readers)). The kernel wakes one at a time, so the others cost nothing.
const THREADS: usize = 8;

/// From so many changed names on, all that the kernel has cached is dropped in one step, and then looked up again. With two a
/// program could already see one as it is and then another as it was.
const TOGETHER: usize = 2;

/// What programs have to do with on kernels that cannot drop all names in one step, for `status`.
const ONE_AFTER_ANOTHER: &str = "cached names are dropped one after the other, and not in one step as from Linux 6.16: during \
                                 a switch of several a program may see one as it is and then another as it was";

/// What is to be known of a mount of an older program, for `status`.
const WAS_WRITABLE: &str = "an older ffs made this mount, and for a moment it was writable: copies of it in other mount \
                            namespaces may still be (unmount it and mount it again)";

/// A name that nobody asks for, and that the kernel thus does not know. One that it knows makes it ask for the directory's
/// attributes besides, which is a request of the first program that looks.
const UNKNOWN: &str = "\u{1}";

/// Up to so many changed names are forgotten one by one as well where no watchers are told, at 10 to 40 µs each on a busy
/// machine: names that the kernel keeps, and be it only to look them up again, keep the memory of their generation. Of
/// more, the kernel's own need of memory takes care.
const ONE_BY_ONE: usize = 32;

/// What the kernel and our privileges allow, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Each is of its own: no state machine hides in them.
pub struct Abilities {
    /// Cached names are invalidated all at once (Linux 6.16).
    pub epoch: bool,
    /// Listings bring attributes (Linux 3.9).
    pub readdirplus: bool,
    /// Directories are listed in advance when programs go through them (root).
    pub prefetch: bool,
    /// Watchers get real inotify events (Linux 5.2, root).
    pub events: bool,
    /// The kernel reads large files of directory layers by itself, as was asked for (Linux 6.9, root).
    pub passthrough: bool,
    /// Threads that answer the kernel.
    pub threads: usize,
}

/// How a mount is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// What is shown in place of the tree itself.
    pub projection: Option<Projection>,
    /// The kernel reads large files of directory layers by itself, where it can and we are root; each open is then a request.
    pub passthrough: bool,
    /// What it forbids.
    pub restrictions: Restrictions,
}

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point cannot be used.
    #[error("cannot mount on `{}`: {source}", point.display())]
    Mount {
        /// The mount point.
        point: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The unmount was refused.
    #[error("cannot unmount `{}`: {source}", point.display())]
    Unmount {
        /// The mount point.
        point: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A mounted union.
pub struct Mount {
    point: PathBuf,
    shared: Arc<Shared>,
    inodes: Inodes,
    notifier: Notifier,
    /// The kernel's end of the connection, for what the notifier cannot say.
    device: Arc<OwnedFd>,
    /// Whether the kernel drops all names in one step.
    epoch: bool,
    /// The way to tell watchers; without it they are not told.
    private: Mutex<Result<Arc<PrivateMount>, String>>,
    /// Keeps the mount read-only.
    guard: Guard,
    /// Whether it was so from the first moment.
    never_writable: bool,
    teller: Option<Teller>,
    /// One switch at a time.
    switching: Mutex<()>,
}

/// Ends when the file system was unmounted, by us or by anybody.
pub struct Session(JoinHandle<io::Result<()>>);

/// What a switch did.
#[derive(Debug)]
pub struct Switch {
    /// The generation that is shown now.
    pub generation: Arc<Generation>,
    /// What changed, by path.
    pub changes: Arc<[Change]>,
    /// For watchers.
    news: News,
}

impl Mount {
    /// Mounts a union of `layers` on a directory.
    ///
    /// # Errors
    /// [`MountError::Mount`].
    pub fn new(point: &Path, layers: Vec<Arc<Layer>>) -> Result<(Self, Session), MountError> {
        Self::with(point, layers, &Options::default())
    }

    /// Mounts a union of `layers` on a directory, in a way that is asked for.
    ///
    /// # Errors
    /// [`MountError::Mount`].
    pub fn with(
        point: &Path,
        layers: Vec<Arc<Layer>>,
        options: &Options,
    ) -> Result<(Self, Session), MountError> {
        let error = |source| MountError::Mount { point: point.to_owned(), source };
        let point = point.canonicalize().map_err(error)?;
        if !point.metadata().map_err(error)?.is_dir() {
            // The kernel would take it, and then say EIO to everybody who looks.
            return Err(error(io::ErrorKind::NotADirectory.into()));
        }
        let inodes = Inodes::default();
        let mut generation = Generation::build(layers, None, &inodes, SystemTime::now());
        if options.projection == Some(Projection::Kubernetes) {
            generation = generation.projected(&inodes, SystemTime::now());
        }
        let error = |source| MountError::Mount { point: point.clone(), source };
        let restrictions = &options.restrictions;
        let way = Way::find(&point, config().acl, restrictions).map_err(error)?;
        let shared = Arc::new(Shared::new(generation, options.passthrough, way.is_users()));
        let (session, detached) =
            way.begin(Ffs(shared.clone()), &point, restrictions, config()).map_err(error)?;
        let notifier = session.notifier();
        let device = Arc::new(session.as_fd().try_clone_to_owned().map_err(error)?);
        let _ = shared.connection.set(device.clone());
        let epoch = sys::inc_epoch(&device).is_ok();
        let session = Session::run(session).map_err(error)?;
        let private = match detached {
            // Linux 6.16 has what came with 6.1.
            Ok(detached) => Ok(PrivateMount::new(detached.attach(&point).map_err(error)?, epoch)),
            Err(why) => Err(why),
        };
        read_ahead(&point);
        Ok((Self::of(point, shared, inodes, notifier, (device, epoch), private, true), session))
    }

    fn of(
        point: PathBuf,
        shared: Arc<Shared>,
        inodes: Inodes,
        notifier: Notifier,
        (device, epoch): (Arc<OwnedFd>, bool),
        private: Result<PrivateMount, String>,
        never_writable: bool,
    ) -> Self {
        let mut private = private.map(Arc::new);
        let mut teller = None;
        if let Ok(mount) = &private {
            // Without it first lookups cost what they cost.
            let _ = Prefetch::start(&shared, mount.root());
            match Teller::start(&shared, Arc::downgrade(mount), notifier.clone()) {
                Ok(started) => teller = Some(started),
                Err(error) => private = Err(error.to_string()),
            }
        }
        if let Err(error) = shared.refused.start(notifier.clone()) {
            tracing::warn!(%error, "writes are refused, but what they leave in the cache is not dropped");
        }
        if shared.refused.count() > 0 {
            // Another program refused some, and may not have come to the last of them.
            shared.refused.drop_pages(shared.table.known().iter().map(|(node, _)| node.ino()));
        }
        let private = Mutex::new(private);
        let (guard, switching) = (Guard::default(), Mutex::new(()));
        Self {
            point,
            shared,
            inodes,
            notifier,
            device,
            epoch,
            private,
            guard,
            never_writable,
            teller,
            switching,
        }
    }

    /// A mount that another program made and let go of; nobody reads its requests any more.
    ///
    /// # Errors
    /// [`MountError::Mount`]; nothing was read then.
    pub(crate) fn resume(
        point: PathBuf,
        shared: Shared,
        inodes: Inodes,
        connection: Resumed,
    ) -> Result<(Self, Session), MountError> {
        let Resumed { fuse, agreed, epoch, private, never_writable } = connection;
        let error = |source| MountError::Mount { point: point.clone(), source };
        let shared = Arc::new(shared);
        let fuse = Arc::new(fuse);
        let _ = shared.connection.set(fuse.clone());
        let session = handover::session(Ffs(shared.clone()), &fuse, &agreed, config()).map_err(error)?;
        let notifier = session.notifier();
        let session = Session::run(session).map_err(error)?;
        Ok((Self::of(point, shared, inodes, notifier, (fuse, epoch), private, never_writable), session))
    }

    /// What the handlers share, and the numbers that they gave out.
    pub(crate) fn parts(&self) -> (&Shared, &Inodes) {
        (&self.shared, &self.inodes)
    }

    /// Runs something with the private mount, or why there is none.
    pub(crate) fn with_private<T>(&self, run: impl FnOnce(&Result<Arc<PrivateMount>, String>) -> T) -> T {
        run(&self.private.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether fusermount3 made it for a user: the kernel does not hold it read-only.
    pub fn is_users(&self) -> bool {
        self.shared.users_mount
    }

    /// Whether the mount that everybody sees was read-only from the first moment.
    pub(crate) fn was_never_writable(&self) -> bool {
        self.never_writable
    }

    /// The descriptor of the connection that nobody reads from.
    pub(crate) fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// The same as on a kernel that cannot drop all names at once (before Linux 6.16), for tests and measurements.
    #[must_use]
    pub fn without_epoch(mut self) -> Self {
        self.epoch = false;
        self.with_private(|private| {
            if let Ok(private) = private {
                private.not_over();
            }
        });
        self
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// What is shown now.
    pub fn current(&self) -> Arc<Generation> {
        self.shared.current.load_full()
    }

    /// What blocks until nothing is mounted any more under this file system's device number, in the namespace of the thread
    /// that calls this, and until then makes read-only what somebody makes writable, and calls `undone` for it.
    ///
    /// # Errors
    /// What opening the mount table returns.
    pub fn watch_table(
        &self,
        device: u64,
        undone: impl Fn(&Path) + Send + 'static,
    ) -> io::Result<impl FnOnce() -> io::Result<()> + Send + 'static> {
        // A user's mount is not the kernel's to hold read-only.
        let guard = (!self.shared.users_mount).then(|| self.guard.clone());
        guard::watch(device, guard, undone)
    }

    /// Inodes that the kernel holds references to.
    pub fn known_inodes(&self) -> usize {
        self.shared.table.len()
    }

    /// Whether a directory layer was found to differ from its scan since this was last asked.
    pub fn take_stale(&self) -> bool {
        self.shared.stale.swap(false, std::sync::atomic::Ordering::Relaxed)
    }

    /// Sets what is called, from a thread that answers the kernel, when a directory layer is first
    /// found to differ from its scan. Only the first setting counts.
    pub fn on_stale(&self, tell: impl Fn() + Send + Sync + 'static) {
        let _ = self.shared.on_stale.set(Box::new(tell));
    }

    /// Sets what is called, from a thread that answers the kernel and must not be held up, with a
    /// command that came as an extended attribute. Only the first setting counts.
    pub fn on_command(
        &self,
        run: impl Fn(crate::control::Request, Box<dyn FnOnce(crate::control::Response) + Send>)
        + Send
        + Sync
        + 'static,
    ) {
        let _ = self.shared.on_command.set(Box::new(run));
    }

    /// Shows other layers: all at once for programs that look from now on.
    ///
    /// `edit` gets the present layers and returns those to come. When this returns, every lookup
    /// and every open sees the new generation; what was open keeps the old one.
    pub fn switch(&self, edit: impl FnOnce(&[Arc<Layer>]) -> Vec<Arc<Layer>>) -> Switch {
        let _one = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.current();
        let next = edit(&before.layers);
        let next = Arc::new(Generation::build(next, Some(&before), &self.inodes, SystemTime::now()));
        let diff = next.diff(&before);
        let kept: HashSet<u64> = diff.dirs.iter().map(|dir| dir.ino).collect();
        let known = self.known(&diff);
        let together = self.epoch && many(&diff, &kept);
        if together {
            self.let_listings_pass(&diff, &kept);
        }
        let dropped = {
            let _gate = self.shared.gate.write().unwrap_or_else(PoisonError::into_inner);
            self.shared.current.store(next.clone());
            for dir in &diff.dirs {
                self.shared.table.renew(&Node::Dir(dir.clone()));
            }
            for node in &diff.same_inode {
                self.shared.table.renew(node);
            }
            // While nobody is answered: until this step the kernel gives programs the names that it has, all of the
            // generation before; after it the kernel asks for each.
            let dropped = together && self.drop_names();
            self.shared.passing.store(false, Ordering::Release);
            dropped
        };
        self.invalidate(&diff, &kept, dropped);
        let changes: Arc<[Change]> = diff.changes.into();
        let news = News { changes: changes.clone(), kept: Arc::new(kept), known: Arc::new(known) };
        Switch { generation: next, changes, news }
    }

    /// Has watchers told of a switch, after those before it. Content comes before events, so this is a step of its own. Waits
    /// until they are told, unless there are many names to tell of: other switches do not wait for those. With that the kernel
    /// also forgets the names, which keep the memory of their generation as long as it has them.
    pub fn tell_watchers(&self, switch: &Switch) {
        if let Some(teller) = self.teller.as_ref().filter(|_| !switch.changes.is_empty()) {
            teller.tell(switch.news.clone());
        }
    }

    /// Waits until watchers were told of all switches so far, at most `patience`. Whether they were.
    pub(crate) fn all_told(&self, patience: Duration) -> bool {
        self.teller.as_ref().is_none_or(|teller| teller.is_done(patience))
    }

    /// What is used of what kernels can do.
    pub fn abilities(&self) -> Abilities {
        Abilities {
            epoch: self.epoch,
            readdirplus: self.shared.readdirplus.load(std::sync::atomic::Ordering::Relaxed),
            prefetch: self.shared.prefetch.runs(),
            events: self.with_private(Result::is_ok),
            passthrough: self.shared.passes(),
            threads: THREADS,
        }
    }

    /// What this kernel or these privileges do not allow.
    pub fn reduced(&self) -> Vec<String> {
        let told = self.with_private(|private| {
            private.as_ref().err().map(|error| format!("no inotify events for changes ({error})"))
        });
        let writable = (!self.never_writable && !self.shared.users_mount).then(|| WAS_WRITABLE.to_owned());
        let epoch = (!self.epoch).then(|| ONE_AFTER_ANOTHER.to_owned());
        let mut reduced: Vec<String> = told.into_iter().chain(epoch).chain(writable).collect();
        reduced.extend(self.guard.reduced());
        reduced.extend(self.shared.refused.reduced());
        reduced
    }

    /// The inodes of what goes or is replaced that the kernel has.
    fn known(&self, diff: &Diff) -> HashSet<u64> {
        let gone = diff.changes.iter().filter_map(|change| match change.what {
            What::Removed { ino: old } | What::Replaced { old, .. } => Some(old),
            What::Added { .. } | What::Attributes { .. } => None,
        });
        gone.filter(|ino| self.shared.table.has(*ino)).collect()
    }

    /// Has no listing under way whose names the kernel would keep, in any directory that changes. It gives the names of a
    /// listing the epoch in which it takes them in: an answer from before the switch would make old names new.
    fn let_listings_pass(&self, diff: &Diff, kept: &HashSet<u64>) {
        {
            // Whoever is answering has not seen this.
            let _gate = self.shared.gate.write().unwrap_or_else(PoisonError::into_inner);
            self.shared.passing.store(true, Ordering::Release);
        }
        self.wait_for_listings(diff, kept);
    }

    /// Waits until the kernel has taken in each listing that was under way in a directory that changes: forgetting a name
    /// takes the lock that a listing holds, and takes it for a name that it does not know, too. Not from a request handler.
    fn wait_for_listings(&self, diff: &Diff, kept: &HashSet<u64>) {
        let mut waited = HashSet::new();
        for change in diff.changes.iter().filter(|change| kept.contains(&change.parent)) {
            if waited.insert(change.parent)
                && self.shared.table.has(change.parent)
                && let Err(error) = self.notifier.inval_entry(INodeNo(change.parent), OsStr::new(UNKNOWN))
            {
                tracing::warn!(%error, "the kernel refused an invalidation");
            }
        }
    }

    /// Drops all cached names at once: this takes no lock that a request may hold. Whether the kernel did.
    fn drop_names(&self) -> bool {
        sys::inc_epoch(&self.device).is_ok()
    }

    /// Makes the kernel forget what is no longer true; its names already are when they were `dropped`. Not from a
    /// request handler: the kernel waits for directory locks that a request may hold.
    fn invalidate(&self, diff: &Diff, kept: &HashSet<u64>, dropped: bool) {
        use std::os::unix::ffi::OsStrExt;
        let mut failed = None;
        // The replay for watchers comes by all of them.
        let later = dropped && (self.teller.is_some() || diff.changes.len() > ONE_BY_ONE);
        if dropped {
            self.shared.prefetch.emptied();
        }
        let known = |ino| self.shared.table.has(ino);
        for change in &diff.changes {
            let told = match change.what {
                What::Attributes { ino } if known(ino) => self.notifier.inval_inode(INodeNo(ino), -1, 0),
                // A name that the kernel holds, it holds with its inode.
                What::Removed { ino: old } | What::Replaced { old, .. } if !known(old) => continue,
                What::Attributes { .. } => continue,
                _ if later || !kept.contains(&change.parent) => continue,
                _ => {
                    let name = OsStr::from_bytes(change.name());
                    self.notifier.inval_entry(INodeNo(change.parent), name)
                }
            };
            failed = told.err().or(failed);
        }
        if later {
            self.wait_for_listings(diff, kept);
        }
        // After the names: their invalidation waited for listings under way, so none of those can
        // fill the cache again with what was true before.
        for dir in diff.dirs.iter().filter(|dir| known(dir.ino)) {
            failed = self.notifier.inval_inode(INodeNo(dir.ino), 0, 0).err().or(failed);
        }
        if let Some(error) = failed {
            tracing::warn!(%error, "the kernel refused an invalidation: old names may show until they are dropped");
        }
    }

    /// Makes the kernel forget all names, attributes and pages. Not from a request handler, as
    /// above.
    pub fn forget(&self) {
        let _one = self.switching.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = vec![self.current().root.clone()];
        while let Some(dir) = left.pop() {
            for (name, node) in &dir.entries {
                use std::os::unix::ffi::OsStrExt;
                // What it does not know it cannot forget.
                let _ = self.notifier.inval_entry(INodeNo(dir.ino), OsStr::from_bytes(name));
                match node {
                    Node::Dir(dir) => left.push(dir.clone()),
                    Node::File(file) => drop(self.notifier.inval_inode(INodeNo(file.ino), 0, 0)),
                }
            }
            let _ = self.notifier.inval_inode(INodeNo(dir.ino), 0, 0);
        }
    }

    /// Unmounts. What is still open keeps working until the program ends.
    ///
    /// # Errors
    /// [`MountError::Unmount`]; not when it is already unmounted.
    pub fn unmount(&self) -> Result<(), MountError> {
        // The private mount alone would keep the file system alive.
        *self.private.lock().unwrap_or_else(PoisonError::into_inner) = Err("unmounted".to_owned());
        // fuser 0.18.0 gives up on a busy mount and leaves a dead one behind: ours is always detached.
        let result = match umount2(&self.point, MntFlags::UMOUNT_NOFOLLOW) {
            Err(nix::errno::Errno::EBUSY) => umount2(&self.point, MntFlags::MNT_DETACH),
            other => other,
        };
        match result {
            // EINVAL: not a mount point any more.
            Ok(()) | Err(nix::errno::Errno::EINVAL) => Ok(()),
            Err(nix::errno::Errno::EPERM) => {
                let status = std::process::Command::new("fusermount3").arg("-uz").arg(&self.point).status();
                match status {
                    Ok(status) if status.success() => Ok(()),
                    Ok(status) => Err(io::Error::other(format!("fusermount3: {status}"))),
                    Err(error) => Err(error),
                }
                .map_err(|source| MountError::Unmount { point: self.point.clone(), source })
            }
            Err(errno) => Err(MountError::Unmount { point: self.point.clone(), source: errno.into() }),
        }
    }
}

/// What another program left of a connection with the kernel.
pub(crate) struct Resumed {
    pub(crate) fuse: OwnedFd,
    pub(crate) agreed: Agreed,
    pub(crate) epoch: bool,
    pub(crate) private: Result<PrivateMount, String>,
    pub(crate) never_writable: bool,
}

/// How the kernel is answered.
pub(crate) fn config() -> Config {
    let mut config = Config::default();
    // Without root the kernel lets only the owner in, unless /etc/fuse.conf says otherwise.
    config.acl = if nix::unistd::geteuid().is_root() { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    config
}

/// Whether so many names change that all are to be dropped. Those below a directory that came or went are reached through
/// it alone.
fn many(diff: &Diff, kept: &HashSet<u64>) -> bool {
    diff.changes.iter().filter(|change| kept.contains(&change.parent)).take(TOGETHER).count() == TOGETHER
}

impl Session {
    fn run(session: fuser::Session<Ffs>) -> io::Result<Self> {
        let thread = std::thread::Builder::new().name("session".to_owned());
        let serve = move || {
            // So do the threads that it starts, which answer.
            sys::short_turns_or_say();
            session.run()
        };
        Ok(Self(thread.spawn(serve)?))
    }

    /// Waits until the file system is unmounted.
    ///
    /// # Errors
    /// What ended the session otherwise.
    pub fn wait(self) -> io::Result<()> {
        self.0.join().map_err(|_| io::Error::other("the thread that answers the kernel panicked"))?
    }
}
