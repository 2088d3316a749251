//! One thread that tells watchers of switches, one after the other.
//!
//! Each changed name takes the kernel two to five requests, 100 µs and more, and 5,000 of them half a second. No
//! switch waits for that: its content is shown when it comes, and what was told of the one before is then not older
//! than said. Events come in the order of the switches, all of them; only when a queue of [`QUEUE`] switches is full does
//! whoever has the next one wait.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Weak};

use fuser::Notifier;

use crate::diff::Change;
use crate::fs::Shared;
use crate::watch::{Place, Twin};

/// Switches that wait to be told.
const QUEUE: usize = 16;

/// What a switch has to tell.
#[derive(Debug, Clone)]
pub(crate) struct News {
    /// What changed, in order.
    pub(crate) changes: Arc<[Change]>,
    /// Inodes of the directories that were there before and after.
    pub(crate) kept: Arc<HashSet<u64>>,
}

/// The way to the thread that tells.
#[derive(Debug)]
pub(crate) struct Teller {
    to: SyncSender<(News, Sender<()>)>,
    /// Names that are still to be told.
    names: Arc<AtomicUsize>,
}

impl Teller {
    /// Starts the thread. It ends with this object, and tells nothing more when the clone of the mount is gone.
    ///
    /// # Errors
    /// What starting a thread returns.
    pub(crate) fn start(shared: &Arc<Shared>, twin: Weak<Twin>, notifier: Notifier) -> std::io::Result<Self> {
        let (to, from) = sync_channel(QUEUE);
        let names = Arc::new(AtomicUsize::new(0));
        let (shared, left) = (Arc::downgrade(shared), names.clone());
        std::thread::Builder::new().name("watchers".to_owned()).spawn(move || {
            if let Some(shared) = shared.upgrade() {
                shared.replay.begin();
            }
            serve(&from, &shared, &twin, &notifier, &left);
        })?;
        Ok(Self { to, names })
    }

    /// How many names are still to be told.
    pub(crate) fn names(&self) -> usize {
        self.names.load(Ordering::Relaxed)
    }

    /// Has a switch told; what is returned hears of the end, by its channel's.
    pub(crate) fn tell(&self, news: News) -> Receiver<()> {
        let (told, end) = channel();
        self.names.fetch_add(news.changes.len(), Ordering::Relaxed);
        // The thread is there as long as this is.
        let _ = self.to.send((news, told));
        end
    }
}

fn serve(
    from: &Receiver<(News, Sender<()>)>,
    shared: &Weak<Shared>,
    twin: &Weak<Twin>,
    notifier: &Notifier,
    left: &AtomicUsize,
) {
    while let Ok((News { changes, kept }, told)) = from.recv() {
        let mut place = Place::default();
        let mut failed = 0_usize;
        for change in changes.iter() {
            // Looked for each time, so that neither is kept from going away.
            let result = match (shared.upgrade(), twin.upgrade()) {
                (Some(shared), Some(twin)) => twin.tell(change, &kept, &mut place, &shared, notifier),
                _ => break,
            };
            left.fetch_sub(1, Ordering::Relaxed);
            if let Err(error) = result {
                failed += 1;
                tracing::debug!(%error, path = %String::from_utf8_lossy(&change.path), "no event");
            }
        }
        if failed > 0 {
            tracing::warn!(failed, of = changes.len(), "watchers were not told of some changes");
        }
        drop(told);
    }
}
