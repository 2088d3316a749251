//! The guest of an experiment: started on a host, migrated between hosts, stopped.

use std::time::{Duration, Instant};

use ctx::libvirt::{
    Connection, Domain, DomainEvent, Event, EventKind, JobStats, MigrateFlags, MigrateOptions,
};
use tokio::sync::Mutex;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;

use crate::exec::{Exec as _, ExecError};
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

/// How long libvirt's event with a migration's statistics may take after the migration.
const ACCOUNT: Duration = Duration::from_secs(5);

/// A migration as it was seen from outside and as libvirt accounts for it.
#[derive(Debug, Clone)]
pub struct Migrated {
    /// When the call was made, on the bench's clock.
    pub started: Instant,
    /// When it returned.
    pub ended: Instant,
    /// Libvirt's account of it.
    pub account: Account,
}

/// Libvirt's account of a migration.
#[derive(Debug, Clone)]
pub enum Account {
    /// Its driver keeps none.
    NotKept,
    /// Statistics of the completed job; none when they did not come.
    Kept(Option<Box<JobStats>>),
}

impl Migrated {
    /// From the call to its return.
    pub fn total(&self) -> Duration {
        self.ended.duration_since(self.started)
    }
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

    /// Migrates the guest, live, and waits until it runs at the destination.
    ///
    /// # Errors
    /// What libvirt refused, or that it took longer than the scenario allows; then it was aborted.
    pub async fn migrate(&self, from: Site, to: Site) -> Result<Migrated, GuestError> {
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
        let mut events = self.call(from, Connection::subscribe).await?;
        let mut task = spawn_blocking(move || {
            if let Some(limit) = control.max_downtime_ms {
                moving.set_max_downtime_ms(limit)?;
            }
            let started = Instant::now();
            moving.migrate(&destination, &options)?;
            Ok::<_, ctx::libvirt::Error>((started, Instant::now()))
        });
        let Ok(done) = timeout(deadline, &mut task).await else {
            // Stopping it ends the call in the other thread, whose own error says less than ours.
            match control.stop {
                Stop::AbortJob => spawn_blocking(move || domain.abort_job()).await??,
                Stop::Command(command) => {
                    let host = &self.hosts[from as usize];
                    host.demand("stop the migration", command, ACCOUNT).await?;
                }
            }
            let _ = task.await?;
            return Err(GuestError::MigrationTimeout {
                from: from.host_name(),
                to: to.host_name(),
                seconds: deadline.as_secs(),
            });
        };
        let (started, ended) = match done? {
            Ok(times) => times,
            Err(error) => return Err(self.refused(error, to).await),
        };
        if !control.accounts {
            return Ok(Migrated { started, ended, account: Account::NotKept });
        }
        // The source's own account: the destination's mixes the clocks of two hosts.
        let account = async {
            while let Some(event) = events.recv().await {
                if let Event::Domain(DomainEvent { kind: EventKind::JobCompleted(stats), .. }) = event {
                    return Some(stats);
                }
            }
            None
        };
        let stats = timeout(ACCOUNT, account).await.ok().flatten();
        Ok(Migrated { started, ended, account: Account::Kept(stats) })
    }
}
