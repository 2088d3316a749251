//! The guest of an experiment: started on a host, migrated between hosts, stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ctx::libvirt::{Connection, Domain, Event, EventKind, MigrateFlags, MigrateOptions};
use tokio::sync::Mutex;
use tokio::task::{JoinError, JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::exec::{Exec as _, ExecError};
use crate::observe::arrivals::{Arrivals, arrivals};
use crate::observe::moment;
use crate::observe::trace::What;
use crate::scenario::Migration;
use crate::testbed::hypervisor::{Hypervisor, Stop};
use crate::testbed::site::Site;
use crate::testbed::ssh::Ssh;
use crate::testbed::up::Testbed;

/// Why something could not be done with the guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Libvirt refused.
    #[error(transparent)]
    Libvirt(#[from] ctx::libvirt::Error),
    /// A migration took too long and was stopped; the guest is still at the source.
    #[error(
        "migration from {from} to {to} was stopped after {seconds} s, the scenario's `migration.timeout`"
    )]
    MigrationTimeout {
        /// The source.
        from: &'static str,
        /// The destination.
        to: &'static str,
        /// The deadline.
        seconds: u64,
    },
    /// A command on the source's host.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A domain did not start or arrive. After a failed migration it is where the hypervisor left it.
    #[error("{error}; host {host} says: {evidence}")]
    Refused {
        /// Libvirt's error.
        error: Box<ctx::libvirt::Error>,
        /// Where it was to run.
        host: &'static str,
        /// What that host wrote down.
        evidence: String,
    },
    /// A thread ended abnormally.
    #[error("a libvirt call stopped: {0}")]
    Join(#[from] JoinError),
}

/// How long libvirt's events of a migration may take after it: its statistics, and that the guest runs.
const ACCOUNT: Duration = Duration::from_secs(5);

/// A migration that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Migrated {
    /// When the call was made.
    pub started: Instant,
    /// When the guest ran at the destination, by the news of it; when the call returned, where no news came.
    pub arrived: Instant,
}

/// Connections to both hosts' libvirt, and the guest between them.
pub struct GuestControl {
    connections: [Mutex<Connection>; 2],
    hosts: [Ssh; 2],
    xml: String,
    name: String,
    migration: Migration,
    hypervisor: Hypervisor,
}

impl GuestControl {
    /// Connects to both hosts.
    ///
    /// # Errors
    /// When a libvirt does not answer.
    pub async fn connect(testbed: &Testbed, migration: &Migration) -> Result<GuestControl, GuestError> {
        let hypervisor = testbed.hypervisor;
        let open = |site: Site| spawn_blocking(move || Connection::open(&hypervisor.libvirt_uri(site)));
        let (remote, local) = tokio::join!(open(Site::Remote), open(Site::Local));
        Ok(GuestControl {
            connections: [Mutex::new(remote??), Mutex::new(local??)],
            xml: hypervisor.domain_xml(&testbed.guest, &testbed.guest_append),
            hosts: Site::ALL.map(|site| testbed.host(site).ssh.clone()),
            name: testbed.guest.name.clone(),
            migration: migration.clone(),
            hypervisor,
        })
    }

    /// The connection to a site's host, made anew when it was lost: a libvirtd that has died is started again by its
    /// socket.
    ///
    /// # Errors
    /// When libvirt does not answer.
    async fn connection(&self, site: Site) -> Result<Connection, GuestError> {
        let mut connection = self.connections[site as usize].lock().await;
        if !connection.is_alive() {
            let uri = self.hypervisor.libvirt_uri(site);
            *connection = spawn_blocking(move || Connection::open(&uri)).await??;
        }
        Ok(connection.clone())
    }

    /// Calls libvirt from a thread that may block.
    ///
    /// # Errors
    /// What the call returned.
    pub async fn call<T: Send + 'static>(
        &self,
        site: Site,
        call: impl FnOnce(&Connection) -> Result<T, ctx::libvirt::Error> + Send + 'static,
    ) -> Result<T, GuestError> {
        let connection = self.connection(site).await?;
        Ok(spawn_blocking(move || call(&connection)).await??)
    }

    /// Starts the guest at a site.
    ///
    /// # Errors
    /// What libvirt refused.
    pub async fn start(&self, site: Site) -> Result<Domain, GuestError> {
        let xml = self.xml.clone();
        match self.call(site, move |connection| connection.create(&xml)).await {
            Err(GuestError::Libvirt(error)) => Err(self.refused(error, site).await),
            other => other,
        }
    }

    /// The guest's domain at a site.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn domain(&self, site: Site) -> Result<Domain, GuestError> {
        let name = self.name.clone();
        self.call(site, move |connection| connection.domain(&name)).await
    }

    /// Where the guest runs now, as libvirt says; none when at neither site.
    ///
    /// # Errors
    /// When a libvirt does not answer.
    pub async fn site(&self) -> Result<Option<Site>, GuestError> {
        for site in Site::ALL {
            let name = self.name.clone();
            let here = self
                .call(site, move |connection| {
                    Ok(connection.running_domains()?.iter().any(|domain| domain.name() == name))
                })
                .await?;
            if here {
                return Ok(Some(site));
            }
        }
        Ok(None)
    }

    /// The error of a domain that did not start or arrive at a site, with what the host there says where libvirt's error
    /// does not.
    async fn refused(&self, error: ctx::libvirt::Error, to: Site) -> GuestError {
        let Some(command) = self.hypervisor.host().refusals else { return error.into() };
        match self.hosts[to as usize].demand("read why", command, ACCOUNT).await {
            Ok(said) if !said.trim().is_empty() => {
                let evidence = said.trim().replace('\n', " | ");
                GuestError::Refused { error: error.into(), host: to.host_name(), evidence }
            }
            _ => error.into(),
        }
    }

    /// Migrates the guest, live, and waits until it runs at the destination. What is seen of it goes to `tell`.
    ///
    /// # Errors
    /// What libvirt refused, or that it took longer than the scenario allows; then it was aborted.
    pub async fn migrate(&self, from: Site, to: Site, tell: Tell<'_>) -> Result<Migrated, GuestError> {
        let domain = self.domain(from).await?;
        let destination = self.connection(to).await?;
        let control = self.hypervisor.migration(&self.migration);
        let options = MigrateOptions {
            flags: MigrateFlags { auto_converge: control.auto_converge, ..MigrateFlags::default() },
            uri: Some(self.hypervisor.migration_uri(to)),
            ..MigrateOptions::default()
        };
        let deadline = self.migration.timeout.duration();
        let moving = domain.clone();
        let events = self.events([from, to]).await?;
        if let Some(limit) = control.max_downtime_ms {
            self.call(from, move |_| moving.set_max_downtime_ms(limit)).await?;
        }
        let moving = domain.clone();
        let started = Instant::now();
        tell(
            started,
            What::MigrateCalled {
                from: from.host_name().to_owned(),
                to: to.host_name().to_owned(),
                accounts: control.accounts,
            },
        );
        let mut task = spawn_blocking(move || {
            let done = moving.migrate(&destination, &options);
            (done, Instant::now())
        });
        let ended = timeout(deadline, &mut task).await;
        if matches!(ended, Ok(Ok((Ok(_), _)))) {
            events.settle(from, to, started, control.accounts).await;
        }
        let seen = events.seen.since(started);
        for arrival in &seen {
            tell(arrival.at, arrival.value.1.clone());
        }
        let Ok(done) = ended else {
            let late = GuestError::MigrationTimeout {
                from: from.host_name(),
                to: to.host_name(),
                seconds: deadline.as_secs(),
            };
            tell(Instant::now(), What::MigrateReturned { error: Some(late.to_string()) });
            // Stopping it ends the call in the other thread, whose own error says less than ours.
            match control.stop {
                Stop::AbortJob => spawn_blocking(move || domain.abort_job()).await??,
                Stop::Command(command) => {
                    let host = &self.hosts[from as usize];
                    host.demand("stop the migration", command, ACCOUNT).await?;
                }
            }
            let _ = task.await?;
            return Err(late);
        };
        let (done, returned) = done?;
        let error = done.err();
        tell(returned, What::MigrateReturned { error: error.as_ref().map(ToString::to_string) });
        if let Some(error) = error {
            return Err(self.refused(error, to).await);
        }
        let resumed = seen.iter().find(|news| is_resumed(&news.value, to));
        Ok(Migrated { started, arrived: resumed.map_or(returned, |news| news.at) })
    }

    /// What the libvirts of some sites tell of the guest from now on.
    async fn events<const N: usize>(&self, sites: [Site; N]) -> Result<News, GuestError> {
        let (inlet, seen) = arrivals();
        let inlet = Arc::new(inlet);
        let mut tasks = JoinSet::new();
        for site in sites {
            let mut events = self.call(site, Connection::subscribe).await?;
            let (inlet, name) = (Arc::clone(&inlet), self.name.clone());
            tasks.spawn(async move {
                while let Some(event) = events.recv().await {
                    let Event::Domain(event) = event else { continue };
                    if event.domain.name != name {
                        continue;
                    }
                    if let Some(what) = news(site.host_name(), event.kind) {
                        inlet.put_at(moment::of_nanoseconds(event.received.monotonic_ns), (site, what));
                    }
                }
            });
        }
        Ok(News { seen, _tasks: tasks })
    }
}

/// Where what is seen of a migration goes, with its moment.
pub type Tell<'a> = &'a (dyn Fn(Instant, What) + Sync);

/// What libvirts tell of the guest, until the value is dropped.
struct News {
    seen: Arrivals<(Site, What)>,
    _tasks: JoinSet<()>,
}

impl News {
    /// Waits for what libvirt tells after a migration: its statistics, where it keeps any, and that the guest runs.
    async fn settle(&self, from: Site, to: Site, started: Instant, accounts: bool) {
        let account =
            |news: &(Site, What)| !accounts || news.0 == from && matches!(news.1, What::JobCompleted { .. });
        tokio::join!(
            self.seen.first(started, ACCOUNT, account),
            self.seen.first(started, ACCOUNT, |news| is_resumed(news, to)),
        );
    }
}

/// An event of libvirt as an observation; none of those that say nothing of a migration.
fn news(host: &str, kind: EventKind) -> Option<What> {
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
