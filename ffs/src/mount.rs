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

use fuser::{Config, MountOption, Notifier, SessionACL};
use nix::mount::{MntFlags, umount2};

use crate::fs::{Ffs, Shared};
use crate::generation::Generation;
use crate::handover::{self, state::Agreed};
use crate::kernel::covers::Covers;
use crate::kernel::mountinfo::rows;
use crate::layer::Layer;
use crate::merge::Inodes;
use crate::prefetch::Prefetch;
use crate::projection::Projection;
use crate::sys;
use crate::teller::Teller;
use crate::watch::Twin;

/// Threads that answer the kernel: a cold burst from several programs runs side by side. None of them waits for a disk
/// ([`readers`](crate::readers)). The kernel wakes one at a time, so the others cost nothing.
const THREADS: usize = 8;

/// How far the kernel reads ahead, in KiB: four requests, so that it has some to do while others are answered.
const READ_AHEAD_KIB: &str = "1024";

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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// What is shown in place of the tree itself.
    pub projection: Option<Projection>,
    /// The kernel reads large files of directory layers by itself, where it can and we are root; each open is then a request.
    pub passthrough: bool,
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
    /// What is mounted on it.
    covers: Arc<Mutex<Covers>>,
    /// The way to tell watchers; without it they are not told.
    twin: Mutex<Result<Arc<Twin>, String>>,
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
        Self::with(point, layers, Options::default())
    }

    /// Mounts a union of `layers` on a directory, in a way that is asked for.
    ///
    /// # Errors
    /// [`MountError::Mount`].
    pub fn with(
        point: &Path,
        layers: Vec<Arc<Layer>>,
        options: Options,
    ) -> Result<(Self, Session), MountError> {
        let error = |source| MountError::Mount { point: point.to_owned(), source };
        let point = point.canonicalize().map_err(error)?;
        let inodes = Inodes::default();
        let mut generation = Generation::build(layers, None, &inodes, SystemTime::now());
        if options.projection == Some(Projection::Kubernetes) {
            generation = generation.projected(&inodes, SystemTime::now());
        }
        let shared = Arc::new(Shared::new(generation, options.passthrough));
        let mut config = config();
        config.mount_options = vec![
            MountOption::FSName("ffs".to_owned()),
            MountOption::Subtype("ffs".to_owned()),
            MountOption::DefaultPermissions,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoAtime,
        ];
        let error = |source| MountError::Mount { point: point.clone(), source };
        let session = fuser::Session::new(Ffs(shared.clone()), &point, &config).map_err(error)?;
        let notifier = session.notifier();
        let device = Arc::new(session.as_fd().try_clone_to_owned().map_err(error)?);
        let _ = shared.connection.set(device.clone());
        let session = Session::run(session).map_err(error)?;
        read_ahead(&point);
        let twin = Twin::of(&point, shared.renames_over()).map_err(|error| error.to_string());
        let number = std::fs::metadata(&point).map_err(error)?.dev();
        Ok((Self::of(point, shared, inodes, notifier, (device, number), twin), session))
    }

    fn of(
        point: PathBuf,
        shared: Arc<Shared>,
        inodes: Inodes,
        notifier: Notifier,
        (device, number): (Arc<OwnedFd>, u64),
        twin: Result<Twin, String>,
    ) -> Self {
        let covers = Arc::new(Mutex::new(Covers::of(number)));
        let mut twin = twin.map(Arc::new);
        let mut teller = None;
        if let Ok(clone) = &twin {
            // Without it first lookups cost what they cost.
            let _ = Prefetch::start(&shared, clone.root());
            match Teller::start(&shared, &covers, Arc::downgrade(clone), notifier.clone()) {
                Ok(started) => teller = Some(started),
                Err(error) => twin = Err(error.to_string()),
            }
        }
        let twin = Mutex::new(twin);
        Self { point, shared, inodes, notifier, device, covers, twin, teller, switching: Mutex::new(()) }
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
        let Resumed { fuse, number, agreed, twin } = connection;
        let error = |source| MountError::Mount { point: point.clone(), source };
        let shared = Arc::new(shared);
        let fuse = Arc::new(fuse);
        let _ = shared.connection.set(fuse.clone());
        let session = handover::session(Ffs(shared.clone()), &fuse, &agreed, config()).map_err(error)?;
        let notifier = session.notifier();
        let session = Session::run(session).map_err(error)?;
        Ok((Self::of(point, shared, inodes, notifier, (fuse, number), twin), session))
    }

    /// What the handlers share, and the numbers that they gave out.
    pub(crate) fn parts(&self) -> (&Shared, &Inodes) {
        (&self.shared, &self.inodes)
    }

    /// Runs something with the private clone, or why there is none.
    pub(crate) fn with_twin<T>(&self, run: impl FnOnce(&Result<Arc<Twin>, String>) -> T) -> T {
        run(&self.twin.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The descriptor of the connection that nobody reads from.
    pub(crate) fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Tells watchers as on a kernel before Linux 6.1, for tests.
    #[must_use]
    pub fn as_on_older_kernels(self) -> Self {
        if let Ok(twin) = &*self.twin.lock().unwrap_or_else(PoisonError::into_inner) {
            twin.not_over();
        }
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

    /// Blocks until nothing is mounted any more under this file system's device number, whoever
    /// unmounted it: the clone for watchers would keep the session from ending by itself.
    ///
    /// Calls `changed` whenever mounts came or went.
    ///
    /// # Errors
    /// What reading `/proc/self/mountinfo` returns.
    pub fn watch_gone(
        device: u64,
        changed: impl Fn() + Send + 'static,
    ) -> io::Result<impl FnOnce() -> io::Result<()> + Send + 'static> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::io::{Read, Seek, SeekFrom};
        let device = (u64::from(nix::libc::major(device)), u64::from(nix::libc::minor(device)));
        let mut mounts = std::fs::File::open("/proc/self/mountinfo")?;
        Ok(move || {
            loop {
                let mut table = Vec::new();
                mounts.seek(SeekFrom::Start(0))?;
                mounts.read_to_end(&mut table)?;
                if !rows(&table).any(|row| row.device == device) {
                    return Ok(());
                }
                changed();
                // Mounts that came or went since the last read make this return (proc(5)).
                let mut wait = [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)];
                match poll(&mut wait, PollTimeout::NONE) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        })
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
            readdirplus: self.shared.readdirplus.load(std::sync::atomic::Ordering::Relaxed),
            prefetch: self.shared.prefetch.runs(),
            events: self.twin.lock().unwrap_or_else(PoisonError::into_inner).is_ok(),
            passthrough: self.shared.passes(),
            threads: THREADS,
        }
    }

    /// What this kernel or these privileges do not allow.
    pub fn reduced(&self) -> Vec<String> {
        let twin = self.twin.lock().unwrap_or_else(PoisonError::into_inner);
        let told = twin.as_ref().err().map(|error| format!("no inotify events for changes ({error})"));
        told.into_iter().collect()
    }

    /// Unmounts. What is still open keeps working until the program ends.
    ///
    /// # Errors
    /// [`MountError::Unmount`]; not when it is already unmounted.
    pub fn unmount(&self) -> Result<(), MountError> {
        // The clone alone would keep the file system alive.
        *self.twin.lock().unwrap_or_else(PoisonError::into_inner) = Err("unmounted".to_owned());
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
    /// Of the mounted device.
    pub(crate) number: u64,
    pub(crate) agreed: Agreed,
    pub(crate) twin: Result<Twin, String>,
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

/// Lets the kernel read further ahead than the 128 KiB that it has for a FUSE mount: every request costs two switches
/// between threads. Not allowed to everybody, and not needed.
fn read_ahead(point: &Path) {
    let set = || {
        let device = std::fs::metadata(point)?.dev();
        let (major, minor) = (nix::libc::major(device), nix::libc::minor(device));
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD_KIB)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "reads ahead as far as the kernel does by itself");
    }
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
