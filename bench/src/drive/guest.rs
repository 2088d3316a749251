//! The guest of an experiment: started on a host, migrated between hosts, stopped.

use std::fmt;
use std::time::{Duration, Instant};

use ctx::libvirt::{Connection, ErrorKind, MigrateFlags, MigrateOptions};
use tokio::sync::oneshot;

use super::libvirt::{ANSWER, Libvirt};
use super::news::News;
use super::whereabouts::Whereabouts;
use crate::deadline::{Call, CallError};
use crate::exec::{Exec as _, ExecError};
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
    /// A call of libvirt did not end in time.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A migration took too long and was told to stop.
    #[error(
        "migration from {from} to {to} took longer than {seconds} s, the scenario's `migration.timeout`: {end}; \
         now {now}"
    )]
    MigrationTimeout {
        /// The source.
        from: &'static str,
        /// The destination.
        to: &'static str,
        /// The deadline.
        seconds: u64,
        /// What came of telling it to stop.
        end: End,
        /// Where the guest is now, as libvirt says.
        now: Box<Whereabouts>,
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
}

/// What came of telling a migration to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It failed, as it was to.
    Stopped,
    /// It had succeeded before it could be stopped.
    Succeeded,
    /// It goes on, for all that is known.
    GoesOn {
        /// How long it was waited for.
        limit: Duration,
        /// Why it could not be told, if that is so.
        refused: Option<String>,
    },
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("it was stopped"),
            Self::Succeeded => f.write_str("it ended while it was told to stop"),
            Self::GoesOn { limit, refused: None } => {
                write!(f, "it was told to stop and did not within {} s", limit.as_secs_f64())
            }
            Self::GoesOn { limit, refused: Some(why) } => {
                write!(f, "it could not be stopped ({why}) and did not end within {} s", limit.as_secs_f64())
            }
        }
    }
}

/// How long a host may take to tell why it refused a guest, from a log.
const EVIDENCE: Duration = Duration::from_secs(30);
/// How long a guest's process may take to start. An emulated Xen builds a domain for minutes.
const START: Duration = Duration::from_secs(300);
/// How long a migration may take to stop, from being told, and a host to tell it.
const STOP: Duration = Duration::from_secs(60);

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
    libvirts: [Libvirt; 2],
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
        let libvirts = Site::ALL.map(|site| Libvirt::new(site.host_name(), hypervisor.libvirt_uri(site)));
        tokio::try_join!(libvirts[0].connection(), libvirts[1].connection())?;
        Ok(GuestControl {
            libvirts,
            xml: hypervisor.domain_xml(&testbed.guest, &testbed.guest_append),
            hosts: Site::ALL.map(|site| testbed.host(site).ssh.clone()),
            name: testbed.guest.name.clone(),
            migration: migration.clone(),
            hypervisor,
        })
    }

    fn libvirt(&self, site: Site) -> &Libvirt {
        &self.libvirts[site as usize]
    }

    /// The guest's name, also as a domain.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls a host's libvirt; `what` says in the imperative what the call does.
    ///
    /// # Errors
    /// What the call returned, or that it did not end in time.
    pub async fn call<T: Send + 'static>(
        &self,
        site: Site,
        what: &'static str,
        call: impl FnOnce(&Connection) -> Result<T, ctx::libvirt::Error> + Send + 'static,
    ) -> Result<T, GuestError> {
        self.libvirt(site).call(what, ANSWER, call).await
    }

    /// Starts the guest at a site.
    ///
    /// # Errors
    /// What libvirt refused.
    pub async fn start(&self, site: Site) -> Result<(), GuestError> {
        let xml = self.xml.clone();
        let started = self
            .libvirt(site)
            .call("start the guest", START, move |connection| connection.create(&xml).map(drop));
        match started.await {
            Err(GuestError::Libvirt(error)) => Err(self.refused(error, site).await),
            other => other,
        }
    }

    /// Where the guest is now, as both hosts say.
    pub async fn whereabouts(&self) -> Whereabouts {
        Whereabouts::of(&self.name, &self.libvirts).await
    }

    /// Ends the guest wherever it is, in whatever state: a trial was cut off, and a call of it may still be under way.
    ///
    /// # Errors
    /// When a host still has it, or does not say.
    pub async fn clear(&self) -> Result<(), GuestError> {
        for libvirt in &self.libvirts {
            libvirt.forget().await;
        }
        for site in Site::ALL {
            // Without a job there is nothing to stop; and what counts is whether the guest is gone.
            let _ = self.stop(site).await;
        }
        for libvirt in &self.libvirts {
            let name = self.name.clone();
            libvirt.call("end the guest", ANSWER, move |connection| end(connection, &name)).await?;
        }
        Ok(())
    }

    /// The error of a domain that did not start or arrive at a site, with what the host there says where libvirt's error
    /// does not.
    async fn refused(&self, error: ctx::libvirt::Error, to: Site) -> GuestError {
        let Some(command) = self.hypervisor.host().refusals else { return error.into() };
        match self.hosts[to as usize].demand("read why", command, EVIDENCE).await {
            Ok(said) if !said.trim().is_empty() => {
                let evidence = said.trim().replace('\n', " | ");
                GuestError::Refused { error: error.into(), host: to.host_name(), evidence }
            }
            _ => error.into(),
        }
    }

    /// Tells a migration from a site to stop.
    async fn stop(&self, from: Site) -> Result<(), GuestError> {
        match self.hypervisor.migration(&self.migration).stop {
            Stop::AbortJob => {
                let name = self.name.clone();
                let abort = move |connection: &Connection| connection.domain(&name)?.abort_job();
                self.libvirt(from).call("stop the migration", STOP, abort).await
            }
            Stop::Command(command) => {
                let host = &self.hosts[from as usize];
                Ok(host.demand("stop the migration", command, STOP).await.map(drop)?)
            }
        }
    }

    /// Migrates the guest, live, and waits until it runs at the destination. What is seen of it goes to `tell`.
    ///
    /// # Errors
    /// What libvirt refused, or that it took longer than the scenario allows; then it was told to stop.
    pub async fn migrate(&self, from: Site, to: Site, tell: Tell<'_>) -> Result<Migrated, GuestError> {
        let destination = self.libvirt(to).connection().await?;
        let control = self.hypervisor.migration(&self.migration);
        let options = MigrateOptions {
            flags: MigrateFlags { auto_converge: control.auto_converge, ..MigrateFlags::default() },
            uri: Some(self.hypervisor.migration_uri(to)),
            ..MigrateOptions::default()
        };
        let deadline = self.migration.timeout.duration();
        let news = News::of(self, [from, to]).await?;
        let (asked, name) = (Instant::now(), self.name.clone());
        let (begun, begins) = oneshot::channel();
        let mut moving = self
            .libvirt(from)
            .start("migrate", move |connection| {
                let domain = connection.domain(&name)?;
                if let Some(limit) = control.max_downtime_ms {
                    domain.set_max_downtime_ms(limit)?;
                }
                // Nobody waits for it any more where this came too late.
                let _ = begun.send(Instant::now());
                let done = domain.migrate(&destination, &options).err();
                Ok((done, Instant::now()))
            })
            .await?;
        // It fails before where the guest is gone; and what is late is told below.
        let called = tokio::time::timeout(deadline, begins).await.ok().and_then(Result::ok);
        let started = called.unwrap_or(asked);
        let (from_host, to_host) = (from.host_name().to_owned(), to.host_name().to_owned());
        tell(started, What::MigrateCalled { from: from_host, to: to_host, accounts: control.accounts });
        let mut told = 0;
        let ended = Box::pin(async {
            let done = moving.within(deadline).await;
            if matches!(done, Ok(Ok((None, _)))) {
                news.settle(from, to, asked, control.accounts).await;
            }
            done
        });
        let done = news.while_waiting(&mut told, tell, ended).await;
        let done = match done {
            Err(late) if late.is_late() => {
                let stopping = Box::pin(stopped(self.stop(from), &mut moving, STOP));
                let end = news.while_waiting(&mut told, tell, stopping).await;
                if let End::GoesOn { .. } = end {
                    // The call has both connections.
                    self.libvirt(from).forget().await;
                    self.libvirt(to).forget().await;
                }
                let late = GuestError::MigrationTimeout {
                    from: from.host_name(),
                    to: to.host_name(),
                    seconds: deadline.as_secs(),
                    end,
                    now: self.whereabouts().await.into(),
                };
                tell(Instant::now(), What::MigrateReturned { error: Some(late.to_string()) });
                return Err(late);
            }
            done => done?,
        };
        let (error, returned) = match done {
            Ok(done) => done,
            Err(error) => (Some(error), Instant::now()),
        };
        tell(returned, What::MigrateReturned { error: error.as_ref().map(ToString::to_string) });
        match error {
            Some(error) => Err(self.refused(error, to).await),
            None => Ok(Migrated { started, arrived: news.arrived(to, started).unwrap_or(returned) }),
        }
    }
}

/// Where what is seen of a migration goes, with its moment.
pub type Tell<'a> = &'a (dyn Fn(Instant, What) + Sync);

/// Tells a migration that is too late to stop, and waits for its end. Whether it could be told matters only when it then goes on:
/// one that has just ended cannot be told any more.
async fn stopped<T: Send + 'static, E: Send + 'static>(
    stop: impl Future<Output = Result<(), GuestError>>,
    migration: &mut Call<Result<T, E>>,
    limit: Duration,
) -> End {
    let told = stop.await;
    match migration.within(limit).await {
        Ok(Ok(_)) => End::Succeeded,
        Ok(Err(_)) | Err(CallError::Panicked { .. } | CallError::Thread { .. }) => End::Stopped,
        Err(CallError::Late { .. }) => {
            End::GoesOn { limit, refused: told.err().map(|error| error.to_string()) }
        }
    }
}

/// Ends a domain; none is no error.
fn end(connection: &Connection, name: &str) -> Result<(), ctx::libvirt::Error> {
    match connection.domain(name).and_then(|domain| domain.destroy()) {
        Err(error) if matches!(error.kind(), ErrorKind::NoDomain | ErrorKind::InvalidState) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::drive::whereabouts::Stand;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(600);

    type Outcome = Result<(), String>;

    /// A migration that ends as it is told, and not before.
    fn migration() -> (Sender<Outcome>, Call<Outcome>) {
        let (end, ended) = channel();
        (end, Call::start("host a", "migrate", move || ended.recv().unwrap()).unwrap())
    }

    #[tokio::test]
    async fn a_migration_that_is_told_to_stop_stops() {
        let (end, mut migration) = migration();
        let stop = async {
            end.send(Err("aborted".into())).unwrap();
            Ok(())
        };
        assert_eq!(stopped(stop, &mut migration, LONG).await, End::Stopped);
    }

    #[tokio::test]
    async fn one_that_ends_at_that_moment_has_succeeded_although_it_cannot_be_told() {
        let (end, mut migration) = migration();
        let stop = async {
            end.send(Ok(())).unwrap();
            Err(CallError::Panicked { host: "host a".into(), what: "stop the migration" }.into())
        };
        assert_eq!(stopped(stop, &mut migration, LONG).await, End::Succeeded);
    }

    #[tokio::test]
    async fn one_that_does_not_stop_is_not_waited_for_without_end() {
        let (_end, mut migration) = migration();
        let told = stopped(async { Ok(()) }, &mut migration, SOON).await;
        assert_eq!(told.to_string(), "it was told to stop and did not within 0.02 s");
        let late = CallError::Late { host: "host a".into(), what: "stop the migration", limit: STOP };
        let stop = async { Err(late.into()) };
        let refused = stopped(stop, &mut migration, SOON).await;
        let why = "host a: stop the migration did not end within 60 s";
        assert_eq!(
            refused.to_string(),
            format!("it could not be stopped ({why}) and did not end within 0.02 s")
        );
    }

    #[test]
    fn a_late_migration_is_told_with_where_the_guest_is_and_not_with_where_it_was() {
        let error = GuestError::MigrationTimeout {
            from: "a",
            to: "b",
            seconds: 300,
            end: End::Succeeded,
            now: Whereabouts([Stand::Absent, Stand::Runs]).into(),
        };
        assert_eq!(
            error.to_string(),
            "migration from a to b took longer than 300 s, the scenario's `migration.timeout`: it ended while it was \
             told to stop; now the guest runs on host b"
        );
    }

    #[test]
    fn a_guest_is_ended_in_any_state_and_none_is_no_error() {
        let xml =
            "<domain type='test'><name>guest</name><memory>1024</memory><os><type>hvm</type></os></domain>";
        let connection = Connection::open("test:///default").unwrap();
        assert!(end(&connection, "guest").is_ok());
        connection.create(xml).unwrap();
        connection.domain("guest").unwrap().suspend().unwrap();
        end(&connection, "guest").unwrap();
        assert_eq!(connection.domain("guest").unwrap_err().kind(), ErrorKind::NoDomain);
    }
}
