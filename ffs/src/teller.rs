//! One thread that tells watchers of switches, one after the other.
//!
//! Each changed name takes the kernel three requests and more, 100 µs at best, and 5,000 of them half a second. No switch
//! waits for that: its content is shown when it comes, and an event of the one before then finds newer content than it
//! was for. Events come in the order of the switches. Where the telling is behind, the watchers of a directory hear of a
//! name once for all its changes that wait, as inotify(7) itself does with events that nobody has fetched; so what waits
//! is never more than there are names.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use fuser::Notifier;

use crate::diff::Change;
use crate::fs::Shared;
use crate::kernel::covers::Covers;
use crate::rest::{Rest, Rests};
use crate::sys;
use crate::watch::{Place, PrivateMount};

/// Up to so many names are told before the request that changed them is answered.
pub(crate) const SOON: usize = 128;

/// What a switch has to tell.
#[derive(Debug, Clone, Default)]
pub(crate) struct News {
    /// What changed, in order.
    pub(crate) changes: Arc<[Change]>,
    /// Inodes of the directories that were there before and after.
    pub(crate) kept: Arc<HashSet<u64>>,
    /// Inodes of what went or was replaced, of those that the kernel had at the switch: somebody had looked.
    pub(crate) known: Arc<HashSet<u64>>,
}

struct Job {
    news: News,
    number: u64,
    /// Dropped when all is told.
    _told: Sender<()>,
}

/// The way to the thread that tells.
#[derive(Debug)]
pub(crate) struct Teller {
    to: Sender<Job>,
    behind: Arc<Behind>,
}

/// What is still to be told.
#[derive(Debug, Default)]
struct Behind {
    names: AtomicUsize,
    last: Mutex<Last>,
    rests: Arc<Rests>,
}

/// The last switch that changed each name, of those that wait.
#[derive(Debug, Default)]
struct Last {
    number: u64,
    /// By the directory's inode and the name.
    of: HashMap<(u64, Box<[u8]>), u64>,
}

impl Last {
    /// Takes in a switch and returns its number.
    fn add(&mut self, changes: &[Change]) -> u64 {
        self.number += 1;
        let number = self.number;
        self.of.extend(changes.iter().map(|change| (key(change), number)));
        number
    }

    /// Whether a name is told again by a later switch than `number`; forgets it if not.
    fn again(&mut self, change: &Change, number: u64) -> bool {
        let key = key(change);
        match self.of.get(&key) {
            Some(last) if *last > number => true,
            _ => {
                self.of.remove(&key);
                false
            }
        }
    }
}

fn key(change: &Change) -> (u64, Box<[u8]>) {
    (change.parent, change.name().into())
}

impl Behind {
    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Teller {
    /// Starts the thread. It ends with this object, and tells nothing more when the clone of the mount is gone.
    ///
    /// # Errors
    /// What starting a thread returns.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        covers: &Arc<Mutex<Covers>>,
        private: Weak<PrivateMount>,
        notifier: Notifier,
    ) -> std::io::Result<Self> {
        let (to, from) = channel();
        let behind = Arc::new(Behind::default());
        let (shared, covers, left) = (Arc::downgrade(shared), covers.clone(), behind.clone());
        std::thread::Builder::new().name("watchers".to_owned()).spawn(move || {
            sys::short_turns_or_say();
            if let Some(shared) = shared.upgrade() {
                shared.replay.begin();
            }
            serve(&from, &shared, &covers, &private, &notifier, &left);
        })?;
        Ok(Self { to, behind })
    }

    /// Has a switch told; waits for that unless there is much to tell.
    pub(crate) fn tell(&self, news: News) {
        let names = news.changes.len();
        let before = self.behind.names.fetch_add(names, Ordering::Relaxed);
        let end = self.send(news);
        if before + names <= SOON {
            let _ = end.recv();
        }
    }

    /// Has nothing told for a while: somebody waits for a switch.
    pub(crate) fn rest(&self) -> Rest {
        self.behind.rests.begin()
    }

    /// Waits until all that was given so far is told, at most `patience`. Whether it is.
    pub(crate) fn is_done(&self, patience: Duration) -> bool {
        let end = self.send(News::default());
        end.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }

    /// Gives news to the thread. The end of the channel tells when it is done with them.
    fn send(&self, news: News) -> Receiver<()> {
        let number = self.behind.last().add(&news.changes);
        let (told, end) = channel();
        self.behind.rests.cancel();
        // The thread is there as long as this is.
        let _ = self.to.send(Job { news, number, _told: told });
        end
    }
}

fn serve(
    from: &Receiver<Job>,
    shared: &Weak<Shared>,
    covers: &Mutex<Covers>,
    private: &Weak<PrivateMount>,
    notifier: &Notifier,
    behind: &Behind,
) {
    // Mounted on since the switch: telling of a name would take that away.
    let covered = |change: &Change| {
        let mut covers = covers.lock().unwrap_or_else(PoisonError::into_inner);
        covers.now().is_at_or_below(&change.path)
    };
    while let Ok(Job { news, number, _told }) = from.recv() {
        let changes = &news.changes;
        let mut place = Place::default();
        let mut failed = 0_usize;
        if changes.len() > SOON
            && let Some(shared) = shared.upgrade()
        {
            let changes = changes.iter().inspect(|_| behind.rests.wait());
            PrivateMount::forget(changes.filter(|change| !covered(change)), &shared, notifier);
        }
        for change in changes.iter() {
            behind.rests.wait();
            let again = behind.last().again(change, number);
            // Looked for each time, so that neither is kept from going away.
            let result = match (shared.upgrade(), private.upgrade()) {
                (Some(shared), Some(private)) if !covered(change) => {
                    private.tell(change, again, &news, &mut place, &shared, notifier)
                }
                _ => Ok(()),
            };
            behind.names.fetch_sub(1, Ordering::Relaxed);
            if let Err(error) = result {
                failed += 1;
                tracing::debug!(%error, path = %String::from_utf8_lossy(&change.path), "no event");
            }
        }
        if failed > 0 {
            tracing::warn!(failed, of = changes.len(), "watchers were not told of some changes");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diff::What;

    #[test]
    fn a_name_that_waits_is_told_once() {
        let change =
            |path: &str| Change { path: path.into(), parent: 1, what: What::Added { ino: 2 }, dir: false };
        let mut last = Last::default();
        let first = last.add(&[change("a"), change("b")]);
        assert!(!last.again(&change("a"), first), "told before the next");
        let second = last.add(&[change("a"), change("b")]);
        assert!(last.again(&change("b"), first), "the second tells it");
        assert!(!last.again(&change("a"), second) && !last.again(&change("b"), second));
        assert!(last.of.is_empty());
    }
}
