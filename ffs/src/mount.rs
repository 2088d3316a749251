//! A mount: the kernel session; in `switch`, the way from one generation to the next.

mod switch;

pub use switch::Switch;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use fuser::{Config, Notifier, SessionACL};

use crate::fs::{Ffs, Shared};
use crate::generation::Generation;
use crate::handover::{self, state::Agreed};
use crate::kernel::covers::Covers;
use crate::kernel::guard::{self, Guard, Seen};
pub use crate::kernel::mounting::Restrictions;
use crate::kernel::session::{Way, read_ahead};
pub use crate::kernel::unmount::UnmountError;
use crate::kernel::unmount::{self, Policy};
use crate::layer::Layer;
use crate::merge::Inodes;
use crate::prefetch::Prefetch;
use crate::projection::Projection;
use crate::rest::Rest;
use crate::sys;
use crate::teller::{News, Teller};
use crate::watch::PrivateMount;

/// Threads that answer the kernel: a cold burst from several programs runs side by side. None of them waits for a disk
/// ([`readers`](crate::readers)). The kernel wakes one at a time, so the others cost nothing.
const THREADS: usize = 8;

/// What the kernel and our privileges allow, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Each is of its own: no state machine hides in them.
pub struct Abilities {
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
    /// The unmount was refused, or did not work.
    #[error(transparent)]
    Unmount(#[from] UnmountError),
}

/// A mounted union.
pub struct Mount {
    point: PathBuf,
    /// The number of its device, by which the mount table tells its mounts.
    number: u64,
    shared: Arc<Shared>,
    inodes: Inodes,
    notifier: Notifier,
    /// The kernel's end of the connection, for what the notifier cannot say.
    device: Arc<OwnedFd>,
    /// What is mounted on it.
    covers: Arc<Mutex<Covers>>,
    /// The way to tell watchers; without it they are not told.
    private: Mutex<Result<Arc<PrivateMount>, String>>,
    /// Keeps the mount read-only.
    guard: Guard,
    teller: Option<Teller>,
    /// One switch at a time.
    switching: Mutex<()>,
}

/// Ends when the file system was unmounted, by us or by anybody.
pub struct Session(JoinHandle<io::Result<()>>);

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
        let session = Session::run(session).map_err(error)?;
        let private = match detached {
            Ok(detached) => {
                Ok(PrivateMount::new(detached.attach(&point).map_err(error)?, shared.renames_over()))
            }
            Err(why) => Err(why),
        };
        read_ahead(&point);
        let number = match &private {
            Ok(private) => private.device(),
            Err(_) => std::fs::metadata(&point).map(|metadata| metadata.dev()),
        };
        let number = number.map_err(error)?;
        Ok((Self::of(point, shared, inodes, notifier, (device, number), private), session))
    }

    fn of(
        point: PathBuf,
        shared: Arc<Shared>,
        inodes: Inodes,
        notifier: Notifier,
        (device, number): (Arc<OwnedFd>, u64),
        private: Result<PrivateMount, String>,
    ) -> Self {
        let covers = Arc::new(Mutex::new(Covers::of(number)));
        let mut private = private.map(Arc::new);
        let mut teller = None;
        if let Ok(mount) = &private {
            // Without it first lookups cost what they cost.
            let _ = Prefetch::start(&shared, mount.root());
            match Teller::start(&shared, &covers, Arc::downgrade(mount), notifier.clone()) {
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
        Self { point, number, shared, inodes, notifier, device, covers, private, guard, teller, switching }
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
        let Resumed { fuse, number, agreed, private } = connection;
        let error = |source| MountError::Mount { point: point.clone(), source };
        let shared = Arc::new(shared);
        let fuse = Arc::new(fuse);
        let _ = shared.connection.set(fuse.clone());
        let session = handover::session(Ffs(shared.clone()), &fuse, &agreed, config()).map_err(error)?;
        let notifier = session.notifier();
        let session = Session::run(session).map_err(error)?;
        Ok((Self::of(point, shared, inodes, notifier, (fuse, number), private), session))
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

    /// The descriptor of the connection that nobody reads from.
    pub(crate) fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Tells watchers as on a kernel before Linux 6.1, for tests.
    #[must_use]
    pub fn as_on_older_kernels(self) -> Self {
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

    /// The number of its device.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What is shown now.
    pub fn current(&self) -> Arc<Generation> {
        self.shared.current.load_full()
    }

    /// What blocks until nothing is mounted any more under this file system's device number, in the namespace of the thread
    /// that calls this, and until then makes read-only what somebody makes writable. It calls `seen` for that, and whenever
    /// mounts came or went.
    ///
    /// # Errors
    /// What opening the mount table returns.
    pub fn watch_table(
        &self,
        device: u64,
        seen: impl Fn(Seen<'_>) + Send + 'static,
    ) -> io::Result<impl FnOnce() -> io::Result<()> + Send + 'static> {
        // A user's mount is not the kernel's to hold read-only.
        let guard = (!self.shared.users_mount).then(|| self.guard.clone());
        guard::watch(device, guard, seen)
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

    /// Has watchers told of a switch, after those before it. Content comes before events, so this is a step of its own. Waits
    /// until they are told, unless there are many names to tell of: other switches do not wait for those. With that the kernel
    /// also forgets the names, which keep the memory of their generation as long as it has them.
    pub fn tell_watchers(&self, switch: &Switch) {
        self.tell(switch.news.clone());
    }

    fn tell(&self, news: News) {
        if let Some(teller) = self.teller.as_ref().filter(|_| !news.changes.is_empty()) {
            teller.tell(news);
        }
    }

    /// Has watchers told of nothing for a while, but for what is being told: somebody waits for a switch.
    pub(crate) fn rest(&self) -> Option<Rest> {
        self.teller.as_ref().map(Teller::rest)
    }

    /// Waits until watchers were told of all switches so far, at most `patience`. Whether they were.
    pub(crate) fn all_told(&self, patience: Duration) -> bool {
        self.teller.as_ref().is_none_or(|teller| teller.is_done(patience))
    }

    /// What is used of what kernels can do.
    pub fn abilities(&self) -> Abilities {
        Abilities {
            readdirplus: self.shared.readdirplus.load(std::sync::atomic::Ordering::Relaxed),
            prefetch: self.shared.prefetch.runs(),
            events: self.with_private(Result::is_ok),
            passthrough: self.shared.passes(),
            threads: THREADS,
        }
    }

    /// Names that stand for what they were, since something is mounted on them or below them; for the status.
    fn covered(&self) -> Option<String> {
        /// So many are named.
        const NAMED: usize = 5;
        let covered = self.shared.announced.all_covered();
        let mut names: Vec<String> =
            covered.values().map(|cover| String::from_utf8_lossy(&cover.path).into_owned()).collect();
        names.sort();
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        (!names.is_empty()).then(|| {
            format!(
                "something is mounted on or below `{}`{more}, which changed since: until it is unmounted, whoever does not \
                 see that mount sees there what was before",
                names.join("`, `")
            )
        })
    }

    /// What this kernel or these privileges do not allow.
    pub fn reduced(&self) -> Vec<String> {
        let told = self.with_private(|private| {
            private.as_ref().err().map(|error| format!("no inotify events for changes ({error})"))
        });
        let mut reduced: Vec<String> = told.into_iter().collect();
        reduced.extend(self.covered());
        reduced.extend(self.guard.reduced());
        reduced.extend(self.shared.refused.reduced());
        reduced
    }

    /// Unmounts it wherever it is in the mount namespace of this thread. What is still open keeps working until the program ends.
    ///
    /// # Errors
    /// [`MountError::Unmount`]: something is mounted on it, and nothing has changed; or a mount is left, and is still served. None
    /// when it is already unmounted.
    pub fn unmount(&self) -> Result<(), MountError> {
        if let Some(left) = unmount::unmount(self.number, Policy::Ask)?.into_iter().next() {
            return Err(left.into());
        }
        self.let_go();
        Ok(())
    }

    /// Unmounts it as far as that takes away nothing that others see, since nobody will answer for it any more. Whether all of its
    /// mounts are gone; it says which are not.
    pub(crate) fn abandon(&self) -> bool {
        let left = unmount::unmount(self.number, Policy::End).unwrap_or_else(|error| vec![error]);
        for error in &left {
            tracing::error!(%error, "a mount is left that nobody answers for");
        }
        self.let_go();
        left.is_empty()
    }

    /// Closes the private mount, which alone would keep the file system alive.
    pub(crate) fn let_go(&self) {
        *self.private.lock().unwrap_or_else(PoisonError::into_inner) = Err("unmounted".to_owned());
    }

    /// Whether it is mounted somewhere in the mount namespace of this thread. Only known for sure until its session ends.
    pub(crate) fn is_mounted(&self) -> bool {
        !unmount::points(self.number).is_empty()
    }

    /// Whether it is still mounted though its session has ended, as when the connection was cut.
    pub(crate) fn is_dead(&self) -> bool {
        let points = unmount::points(self.number);
        // The private mount keeps the kernel from giving the number to another file system.
        if self.with_private(Result::is_ok) { !points.is_empty() } else { points.contains(&self.point) }
    }
}

/// What another program left of a connection with the kernel.
pub(crate) struct Resumed {
    pub(crate) fuse: OwnedFd,
    pub(crate) agreed: Agreed,
    /// Of the mounted device.
    pub(crate) number: u64,
    pub(crate) private: Result<PrivateMount, String>,
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
