//! Writes that reach the daemon: all are refused, and the kernel drops what they left in its cache.
//!
//! The mounts are read-only, so there should be none. But root can make one writable in a mount namespace of its own, and the
//! kernel serves open(2) from its cache there. A write(2) is then an error for its caller. A store into a shared map is not: it
//! changes the page that all readers see until it is written back, and that is what arrives here.
//!
//! Dropping pages waits for those that are being written back, so the threads that answer the kernel must not do it.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use fuser::{INodeNo, Notifier};

/// The way to the thread that drops pages, and how many writes there were.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    to: OnceLock<Sender<u64>>,
    count: AtomicU64,
    /// Held while the kernel is told.
    telling: Arc<Mutex<()>>,
}

impl Refused {
    /// Starts the thread. It ends with this object.
    ///
    /// # Errors
    /// What starting a thread returns.
    pub(crate) fn start(&self, notifier: Notifier) -> io::Result<()> {
        let (to, from) = channel();
        let telling = self.telling.clone();
        std::thread::Builder::new().name("refused".to_owned()).spawn(move || {
            while let Ok(first) = from.recv() {
                let _telling = telling.lock().unwrap_or_else(PoisonError::into_inner);
                let inodes: BTreeSet<u64> = std::iter::once(first).chain(from.try_iter()).collect();
                for ino in inodes {
                    if let Err(error) = notifier.inval_inode(INodeNo(ino), 0, 0) {
                        tracing::warn!(%error, ino, "what somebody wrote may still be shown");
                    }
                }
            }
        })?;
        let _ = self.to.set(to);
        Ok(())
    }

    /// A write was refused: call after it was answered.
    pub(super) fn wrote(&self, ino: u64) {
        if self.count.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!("somebody wrote through a writable copy of the mount: all writes are refused");
        }
        self.drop_pages([ino]);
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Counts those that another program refused.
    pub(crate) fn count_also(&self, count: u64) {
        self.count.fetch_add(count, Ordering::Relaxed);
    }

    /// Has the kernel drop the pages of inodes, of whatever is not told yet.
    pub(crate) fn drop_pages(&self, inodes: impl IntoIterator<Item = u64>) {
        if let Some(to) = self.to.get() {
            for ino in inodes {
                let _ = to.send(ino);
            }
        }
    }

    /// Keeps the kernel from being told, until this is dropped: for an upgrade, while nobody answers the kernel.
    pub(crate) fn rest(&self) -> MutexGuard<'_, ()> {
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What people have to know, for the status.
    pub(crate) fn reduced(&self) -> Option<String> {
        let count = self.count();
        (count > 0).then(|| {
            format!(
                "{count} writes through a writable copy of the mount were refused: somebody with root's rights has \
                 remounted it in another mount namespace"
            )
        })
    }
}
