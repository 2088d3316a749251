//! Real inotify events for what a switch changed.
//!
//! inotify hears of what the VFS does, and a FUSE server's invalidations are not that. So the server
//! does what a writer would do, on a private writable mount: inotify's marks sit on
//! inodes, which both mounts share, while the mount that everybody sees is read-only. The operations
//! come back to this server as requests of one known thread and change nothing: the new generation
//! is shown, and the kernel has forgotten the old one, before the first event.
//!
//! | change | in the directory | on the file or directory itself |
//! |---|---|---|
//! | added, replaced | `MOVED_TO` name, as if renamed into place | replaced: `ATTRIB`, `DELETE_SELF` |
//! | removed | `DELETE` name | `ATTRIB`, `DELETE_SELF` |
//! | attributes | `ATTRIB` name | `ATTRIB` |
//!
//! That is what an atomic replacement by rename(2) looks like, which programs that watch configuration
//! know. Who watches the new file itself by then hears `MOVE_SELF`, as there. The source of the renames is
//! a hidden directory, `.ffs`: nobody sees the other half. In it three kinds of names exist, for this
//! thread alone: `old-N`, the inode N of an earlier generation; `now-N`, the file that is told of, as it
//! is now; and `newdir-N`, a stand-in for a directory, which cannot have a second name. A file that had
//! been looked at before the switch stays in the kernel's cache where the rename has put it, so that
//! watchers find it without a request; all else is forgotten at once, and the next lookup finds what is
//! there.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use fuser::{INodeNo, Notifier};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, RenameFlags, ResolveFlag, openat2, renameat2};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::diff::{Change, What};
use crate::fs::Shared;
use crate::merge::Node;
use crate::teller::News;

/// The name of the hidden directory.
pub(crate) const HIDDEN_NAME: &[u8] = b".ffs";
/// Its inode; real numbers count up from 2 and stand-ins from above it: they never meet.
pub(crate) const HIDDEN: u64 = 1 << 62;
/// The name that mergerfs has for it; another directory, for a directory has one name only.
pub(crate) const ALIAS_NAME: &[u8] = b".mergerfs";
/// The inode of that.
pub(crate) const ALIAS: u64 = HIDDEN - 1;
/// A name that somebody looks up all the time is tried so often.
const TRIES: usize = 100;

/// What a name in the hidden directory stands for.
pub(crate) enum HiddenName {
    /// A stand-in for a directory.
    NewDir(u64),
    /// The file that is told of.
    Now,
    /// An inode of an earlier generation.
    Old(u64),
}

/// Reads a name in the hidden directory.
pub(crate) fn hidden_name(name: &[u8]) -> Option<HiddenName> {
    let (kind, number) = std::str::from_utf8(name).ok()?.split_once('-')?;
    let ino = number.parse().ok()?;
    match kind {
        "now" => Some(HiddenName::Now),
        "newdir" => Some(HiddenName::NewDir(ino)),
        "old" => Some(HiddenName::Old(ino)),
        _ => None,
    }
}

/// What the handlers must know of the replay.
#[derive(Default)]
pub(crate) struct Replay {
    /// The thread whose requests are the replay; 0 for none. FUSE's `pid` is the thread's number.
    thread: AtomicI32,
    /// The name that is being replayed, and what it stands for.
    name: Mutex<Option<Pretence>>,
}

/// What a name in a directory is, for the replaying thread alone.
#[derive(Debug, Clone)]
pub(crate) struct Pretence {
    pub(crate) parent: u64,
    pub(crate) name: Vec<u8>,
    pub(crate) is: Pretended,
}

/// What a name is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pretended {
    /// It is not there.
    Nothing,
    /// A stand-in, and whether it is a directory.
    StandIn(u64, bool),
    /// An inode of an earlier generation.
    Old(u64),
}

impl Replay {
    /// The present thread is the one that replays.
    pub(crate) fn begin(&self) {
        self.thread.store(nix::unistd::gettid().as_raw(), Ordering::Release);
    }

    /// Whether a request comes from the replay.
    pub(crate) fn is(&self, pid: u32) -> bool {
        let thread = self.thread.load(Ordering::Acquire);
        thread > 0 && thread.unsigned_abs() == pid
    }

    /// What a name is for the replaying thread, where that is not what it is for others.
    pub(crate) fn pretence(&self, parent: u64, name: &[u8]) -> Option<Pretence> {
        let pretence = self.name.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pretence.as_ref().filter(|have| have.parent == parent && have.name == name).cloned()
    }

    /// Whether a request comes from the replay and is about the name that it is at: its own descriptor of a directory
    /// can be of another one than was meant, when that was replaced meanwhile.
    pub(crate) fn may(&self, pid: u32, parent: u64, name: &[u8]) -> bool {
        self.is(pid) && (parent == HIDDEN || self.pretence(parent, name).is_some())
    }

    /// The name that is told of: its directory and it.
    pub(crate) fn told(&self) -> Option<(u64, Vec<u8>)> {
        let pretence = self.name.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pretence.as_ref().map(|pretence| (pretence.parent, pretence.name.clone()))
    }

    fn pretend(&self, pretence: Option<Pretence>) {
        *self.name.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = pretence;
    }
}

/// The directory that changes are told in. They come by directory, so it is kept from one to the next.
#[derive(Debug, Default)]
pub(crate) struct Place(Option<(u64, Option<OwnedFd>)>);

impl Place {
    /// The directory of a change; `None` where it is gone by now, and its watchers with it.
    fn of(&mut self, root: &impl AsFd, change: &Change) -> Option<BorrowedFd<'_>> {
        if self.0.as_ref().is_none_or(|(ino, _)| *ino != change.parent) {
            let len = change.path.len() - change.name().len();
            let path = if len == 0 { b"." } else { &change.path[..len - 1] };
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
            let dir = openat2(root, path, OpenHow::new().flags(flags).resolve(resolve)).ok();
            self.0 = Some((change.parent, dir));
        }
        self.0.as_ref().and_then(|(_, dir)| dir.as_ref()).map(AsFd::as_fd)
    }
}

/// The private mount: writable, and attached nowhere ([`mounting`](crate::kernel::mounting)). Changes are replayed on it.
#[derive(Debug)]
pub(crate) struct PrivateMount {
    root: Arc<OwnedFd>,
    /// Whether the kernel asks for the target of a rename whatever it has cached (Linux 6.1): what is renamed over is
    /// then what we say.
    over: AtomicBool,
    stand_ins: std::sync::atomic::AtomicU64,
}

impl PrivateMount {
    /// Tells of what was replaced in two steps from now on, as before Linux 6.1.
    pub(crate) fn not_over(&self) {
        self.over.store(false, Ordering::Relaxed);
    }

    /// The mount with this root. `over` is whether the kernel asks for the target of a rename (Linux 6.1).
    pub(crate) fn new(root: OwnedFd, over: bool) -> Self {
        Self::resume(root, over, HIDDEN + 1)
    }

    /// The mount that another program made, and the number of the next stand-in.
    pub(crate) fn resume(root: OwnedFd, over: bool, stand_in: u64) -> Self {
        Self { root: Arc::new(root), over: over.into(), stand_ins: stand_in.into() }
    }

    /// The number of its device.
    ///
    /// # Errors
    /// What fstat(2) returns.
    pub(crate) fn device(&self) -> std::io::Result<u64> {
        Ok(nix::sys::stat::fstat(&self.root)?.st_dev)
    }

    /// The number of the next stand-in.
    pub(crate) fn stand_in(&self) -> u64 {
        self.stand_ins.load(Ordering::Relaxed)
    }

    /// Its root, for who wants it only as long as it is there.
    pub(crate) fn root(&self) -> std::sync::Weak<OwnedFd> {
        Arc::downgrade(&self.root)
    }

    /// Lets watchers know of one change. Blocks until the kernel has taken it; must not be called by a thread that
    /// answers the kernel. `news` are those that it is of; `place` keeps the directory from one change to the next.
    ///
    /// What nobody can watch, since the kernel does not have its inode, is told to nobody: a watch holds it. Where a
    /// later change of the same name is still to be told, `again`, that one is for the watchers of the directory.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn tell(
        &self,
        change: &Change,
        again: bool,
        news: &News,
        place: &mut Place,
        shared: &Shared,
        notifier: &Notifier,
    ) -> nix::Result<()> {
        let known = |ino| shared.table.has(ino);
        let (come, gone, was_dir) = match change.what {
            What::Attributes { ino } if again || (!known(ino) && !known(change.parent)) => return Ok(()),
            What::Attributes { .. } => {
                let now = TimeSpec::new(0, nix::libc::UTIME_NOW);
                let Some(dir) = place.of(&self.root, change) else { return Ok(()) };
                return utimensat(dir, change.name(), &now, &now, UtimensatFlags::NoFollowSymlink);
            }
            What::Added { .. } => (true, None, change.dir),
            What::Removed { ino } => (false, Some(ino), change.dir),
            What::Replaced { old, .. } => (true, Some(old), false),
        };
        let gone = gone.filter(|ino| known(*ino));
        // The listing of a directory that came or went has no watcher that was there before and is
        // still there: its own entry is told of.
        let told = if !again && news.kept.contains(&change.parent) && known(change.parent) {
            let Some(dir) = place.of(&self.root, change) else { return Ok(()) };
            let had = matches!(change.what, What::Replaced { old, .. } if news.known.contains(&old));
            let told = self.tell_directory(change, come, gone, was_dir, had, dir, shared, notifier);
            shared.replay.pretend(None);
            told?
        } else {
            false
        };
        match gone {
            // Under the name by which it would be told, what is mounted on it could not be reached.
            Some(ino) if !told && !shared.announced.holds(ino) => self.tell_gone(ino, was_dir),
            _ => Ok(()),
        }
    }

    /// Has the kernel forget names, and with them each old inode that nobody uses or watches: nobody needs to be told of
    /// those. Worth it for many names, for the kernel says only later what it has forgotten.
    pub(crate) fn forget<'a>(
        changes: impl Iterator<Item = &'a Change>,
        shared: &Shared,
        notifier: &Notifier,
    ) {
        for change in changes {
            let (What::Removed { ino: old } | What::Replaced { old, .. }) = change.what else { continue };
            if shared.table.has(old) && shared.table.has(change.parent) {
                let _ = notifier.inval_entry(INodeNo(change.parent), OsStr::from_bytes(change.name()));
            }
        }
    }

    /// Lets watchers of the directory know; whether those of what was there know by that too.
    #[allow(clippy::too_many_arguments)] // One step of one loop.
    fn tell_directory(
        &self,
        change: &Change,
        come: bool,
        gone: Option<u64>,
        was_dir: bool,
        had: bool,
        dir: BorrowedFd<'_>,
        shared: &Shared,
        notifier: &Notifier,
    ) -> nix::Result<bool> {
        let name = change.name();
        let forget = || {
            let _ = notifier.inval_entry(INodeNo(change.parent), OsStr::from_bytes(name));
        };
        let pretend = |is| {
            let name = name.to_vec();
            shared.replay.pretend(Some(Pretence { parent: change.parent, name, is }));
        };
        let next = || self.stand_ins.fetch_add(1, Ordering::Relaxed);
        let told = if come {
            let kind = if change.dir { "newdir" } else { "now" };
            let rename = |flags| {
                // Each try asks anew what it is now.
                let source = format!("{kind}-{}", next());
                let path = Path::new(OsStr::from_bytes(HIDDEN_NAME)).join(&source);
                renameat2(&self.root, &path, dir, name, flags).inspect_err(|_| {
                    let _ = notifier.inval_entry(INodeNo(HIDDEN), OsStr::new(&source));
                })
            };
            let dir_gone = |ino: &u64| matches!(shared.table.get(*ino), Some(Node::Dir(_)));
            let over = self.over.load(Ordering::Relaxed) && !change.dir;
            let told = if let Some(old) = gone.filter(|ino| over && !dir_gone(ino)) {
                // One step for both.
                pretend(Pretended::Old(old));
                rename(RenameFlags::empty()).map(|()| true)
            } else {
                pretend(Pretended::Nothing);
                until_free(Errno::EEXIST, forget, || rename(RenameFlags::RENAME_NOREPLACE)).map(|()| false)
            };
            match told {
                // Who had what was there finds this in its place. Of what nobody has looked at the cache is kept free.
                Ok(_) if had && !change.dir => return told,
                // Not there any more, or a directory: a later change, which is yet to be told.
                Err(Errno::ENOENT) => Ok(false),
                other => other,
            }
        } else {
            pretend(Pretended::StandIn(next(), was_dir));
            let flag = if was_dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
            until_free(Errno::ENOENT, forget, || unlinkat(dir, name, flag)).map(|()| false)
        };
        forget();
        told
    }

    /// Lets watchers of what was there know.
    fn tell_gone(&self, ino: u64, was_dir: bool) -> nix::Result<()> {
        let old = Path::new(OsStr::from_bytes(HIDDEN_NAME)).join(format!("old-{ino}"));
        let flag = if was_dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
        match unlinkat(&self.root, &old, flag) {
            // The kernel does not hold it any more: nobody can watch it. Or it was a directory that a file
            // replaced.
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR) => unlinkat(&self.root, &old, UnlinkatFlags::RemoveDir),
            Err(error) => Err(error),
        }
    }
}

/// Tries again while somebody else's lookup of the same name came in between.
fn until_free(taken: Errno, forget: impl Fn(), mut run: impl FnMut() -> nix::Result<()>) -> nix::Result<()> {
    for _ in 0..TRIES {
        forget();
        match run() {
            Err(error) if error == taken => {}
            other => return other,
        }
    }
    Err(taken)
}
