//! What the libvirts of hosts tell of the guest while it moves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ctx::libvirt::{Connection, Event, EventKind};
use tokio::task::JoinSet;

use super::guest::{GuestControl, GuestError, Tell};
use crate::observe::arrivals::{Arrivals, arrivals};
use crate::observe::moment;
use crate::observe::trace::What;
use crate::testbed::site::Site;

/// How long libvirt's events of a migration may take after it: its statistics, and that the guest runs.
const ACCOUNT: Duration = Duration::from_secs(5);

/// What libvirts tell, until the value is dropped.
pub struct News {
    seen: Arrivals<(Site, What)>,
    _tasks: JoinSet<()>,
}

impl News {
    /// What the libvirts of some sites tell of the guest from now on.
    ///
    /// # Errors
    /// When one does not answer.
    pub async fn of<const N: usize>(guest: &GuestControl, sites: [Site; N]) -> Result<News, GuestError> {
        let (inlet, seen) = arrivals();
        let inlet = Arc::new(inlet);
        let mut tasks = JoinSet::new();
        for site in sites {
            let mut events = guest.call(site, "subscribe to events", Connection::subscribe).await?;
            let (inlet, name) = (Arc::clone(&inlet), guest.name().to_owned());
            tasks.spawn(async move {
                while let Some(event) = events.recv().await {
                    let Event::Domain(event) = event else { continue };
                    if event.domain.name != name {
                        continue;
                    }
                    if let Some(what) = observation(site.host_name(), event.kind) {
                        inlet.put_at(moment::of_nanoseconds(event.received.monotonic_ns), (site, what));
                    }
                }
            });
        }
        Ok(News { seen, _tasks: tasks })
    }

    /// Waits for what libvirt tells after a migration: its statistics, where it keeps any, and that the guest runs.
    pub async fn settle(&self, from: Site, to: Site, started: Instant, accounts: bool) {
        let resumed = self.seen.first(started, ACCOUNT, |news| is_resumed(news, to));
        if !accounts {
            resumed.await;
            return;
        }
        let account = |news: &(Site, What)| news.0 == from && matches!(news.1, What::JobCompleted { .. });
        tokio::join!(self.seen.first(started, ACCOUNT, account), resumed);
    }

    /// Tells all that comes while something is waited for, as it comes: a trial that is cut off then has seen it. `told` counts what was
    /// told, here and before.
    pub async fn while_waiting<R>(
        &self,
        told: &mut usize,
        tell: Tell<'_>,
        wait: impl Future<Output = R>,
    ) -> R {
        self.seen.while_waiting(told, |news| tell(news.at, news.value.1), wait).await
    }

    /// When a site's libvirt told that the guest runs there.
    pub fn arrived(&self, site: Site, from: Instant) -> Option<Instant> {
        self.seen.since(from).into_iter().find(|news| is_resumed(&news.value, site)).map(|news| news.at)
    }
}

/// An event of libvirt as an observation; none of those that say nothing of a migration.
fn observation(host: &str, kind: EventKind) -> Option<What> {
    let host = host.to_owned();
    match kind {
        EventKind::Lifecycle(change) => Some(What::lifecycle(&host, change)),
        EventKind::MigrationIteration(pass) => Some(What::Iteration { host, pass }),
        EventKind::JobCompleted(stats) => Some(What::JobCompleted { host, stats }),
        _ => None,
    }
}

fn is_resumed((site, what): &(Site, What), at: Site) -> bool {
    *site == at && matches!(what, What::Lifecycle { change, .. } if change == "resumed")
}
