//! Real inotify events for what a switch changed.
//!
//! inotify hears of what the VFS does, and a FUSE server's invalidations are not that. So the server
//! does what a writer would do, on a private writable clone of the mount: inotify's marks sit on
//! inodes, which the clone shares, while the mount that everybody sees is read-only. The operations
//! come back to this server as requests of one known thread and change nothing: the new generation
//! is shown, and the kernel has forgotten the old one, before the first event.
//!
//! | change | in the directory | on the file or directory itself |
//! |---|---|---|
//! | added, replaced | `MOVED_TO` name, as if renamed into place | replaced: `ATTRIB`, `DELETE_SELF` |
//! | removed | `DELETE` name | `ATTRIB`, `DELETE_SELF` |
//! | attributes | `ATTRIB` name | `ATTRIB` |
//!
//! That is what an atomic replacement by rename(2) looks like, which programs that watch
//! configuration know. The source of the renames is a hidden directory, `.ffs`: nobody sees the other
//! half. In it the names `old-N` (the inode N of an earlier generation) and `new-N` (a stand-in) exist
//! for this thread alone; stand-ins are forgotten at once, and the next lookup finds the real inode.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use fuser::{INodeNo, Notifier};
use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::diff::{Change, What};
use crate::sys;

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
    /// A stand-in, and whether it is a directory.
    New { ino: u64, dir: bool },
    /// An inode of an earlier generation.
    Old(u64),
}

/// Reads a name in the hidden directory.
pub(crate) fn hidden_name(name: &[u8]) -> Option<HiddenName> {
    let (kind, number) = std::str::from_utf8(name).ok()?.split_once('-')?;
    let ino = number.parse().ok()?;
    match kind {
        "new" => Some(HiddenName::New { ino, dir: false }),
        "newdir" => Some(HiddenName::New { ino, dir: true }),
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
    /// `None`: it is not there.
    pub(crate) stand_in: Option<(u64, bool)>,
}

impl Replay {
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

    fn pretend(&self, pretence: Option<Pretence>) {
        *self.name.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = pretence;
    }
}

/// The private writable clone of a mount.
#[derive(Debug)]
pub(crate) struct Twin {
    root: Arc<OwnedFd>,
    stand_ins: std::sync::atomic::AtomicU64,
}

impl Twin {
    /// Clones a mount that was just made and is still writable, then makes it read-only for all.
    ///
    /// # Errors
    /// What `open_tree(2)` (Linux 5.2, `CAP_SYS_ADMIN`) and mount(2) return.
    pub(crate) fn of(point: &Path) -> io::Result<Self> {
        let root = sys::clone_mount(point)?;
        let flags = MsFlags::MS_REMOUNT
            | MsFlags::MS_BIND
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOATIME;
        nix::mount::mount(None::<&str>, point, None::<&str>, flags, None::<&str>)?;
        Ok(Self { root: Arc::new(root), stand_ins: (HIDDEN + 1).into() })
    }

    /// The clone that another program made, and the number of the next stand-in.
    pub(crate) fn resume(root: OwnedFd, stand_in: u64) -> Self {
        Self { root: Arc::new(root), stand_ins: stand_in.into() }
    }

    /// The number of the next stand-in.
    pub(crate) fn stand_in(&self) -> u64 {
        self.stand_ins.load(Ordering::Relaxed)
    }

    /// The root of the clone, for who wants it only as long as it is there.
    pub(crate) fn root(&self) -> std::sync::Weak<OwnedFd> {
        Arc::downgrade(&self.root)
    }

    /// Lets watchers know of `changes`. Blocks until the kernel has taken all of them; must not be
    /// called by a thread that answers the kernel. `known` says which old inodes the kernel has.
    pub(crate) fn tell(
        &self,
        changes: &[Change],
        replay: &Replay,
        notifier: &Notifier,
        kept: &std::collections::HashSet<u64>,
    ) {
        replay.thread.store(nix::unistd::gettid().as_raw(), Ordering::Release);
        let mut failed = 0_usize;
        for change in changes {
            let told = self.tell_one(change, replay, notifier, kept);
            replay.pretend(None);
            if let Err(error) = told {
                failed += 1;
                tracing::debug!(%error, path = %String::from_utf8_lossy(&change.path), "no event");
            }
        }
        replay.thread.store(0, Ordering::Release);
        if failed > 0 {
            tracing::warn!(failed, of = changes.len(), "watchers were not told of some changes");
        }
    }

    fn tell_one(
        &self,
        change: &Change,
        replay: &Replay,
        notifier: &Notifier,
        kept: &std::collections::HashSet<u64>,
    ) -> nix::Result<()> {
        let path = Path::new(OsStr::from_bytes(&change.path));
        let (come, gone, was_dir) = match change.what {
            What::Attributes { .. } => {
                let now = TimeSpec::new(0, nix::libc::UTIME_NOW);
                return utimensat(&self.root, path, &now, &now, UtimensatFlags::NoFollowSymlink);
            }
            What::Added { .. } => (true, None, change.dir),
            What::Removed { ino } => (false, Some(ino), change.dir),
            What::Replaced { old, .. } => (true, Some(old), false),
        };
        // The listing of a directory that came or went has no watcher that was there before and is
        // still there: its own entry is told of.
        let in_kept = kept.contains(&change.parent);
        let stand_in = self.stand_ins.fetch_add(1, Ordering::Relaxed);
        let name = OsStr::from_bytes(change.name());
        if in_kept {
            let forget = || {
                let _ = notifier.inval_entry(INodeNo(change.parent), name);
            };
            let told = if come {
                let kind = if change.dir { "newdir" } else { "new" };
                let source = Path::new(OsStr::from_bytes(HIDDEN_NAME)).join(format!("{kind}-{stand_in}"));
                let there = None;
                replay.pretend(Some(Pretence {
                    parent: change.parent,
                    name: change.name().into(),
                    stand_in: there,
                }));
                until_free(Errno::EEXIST, forget, || {
                    nix::fcntl::renameat2(
                        &self.root,
                        &source,
                        &self.root,
                        path,
                        nix::fcntl::RenameFlags::RENAME_NOREPLACE,
                    )
                })
            } else {
                let there = Some((stand_in, was_dir));
                replay.pretend(Some(Pretence {
                    parent: change.parent,
                    name: change.name().into(),
                    stand_in: there,
                }));
                let flag = if was_dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
                until_free(Errno::ENOENT, forget, || unlinkat(&self.root, path, flag))
            };
            forget();
            told?;
        }
        if let Some(ino) = gone {
            let old = Path::new(OsStr::from_bytes(HIDDEN_NAME)).join(format!("old-{ino}"));
            let flag = if was_dir { UnlinkatFlags::RemoveDir } else { UnlinkatFlags::NoRemoveDir };
            match unlinkat(&self.root, &old, flag) {
                // The kernel does not hold it: nobody can watch it. Or it was a directory that a file
                // replaced.
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(Errno::EISDIR) => unlinkat(&self.root, &old, UnlinkatFlags::RemoveDir)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
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
