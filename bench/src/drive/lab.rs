//! Everything that a trial needs, up and connected: machines, guest, heartbeat, recontextualizers.

use std::path::Path;
use std::time::{Duration, Instant};

use bench_probe::{Beat, Seen};

use super::guest::{GuestControl, GuestError};
use super::limits::LimitError;
use super::recontextualizer::{Context, RecontextError, Recontextualizer};
use super::whereabouts::Found;
use crate::derive::measure::Conditions;
use crate::exec::ExecError;
use crate::observe::beats::{self, Beats};
use crate::observe::clock;
use crate::observe::pings::{self, Pings};
use crate::observe::trace::{Recorder, Wanted, What};
use crate::scenario::{Arm, Class, Experiment, Scenario};
use crate::shape::ShapeError;
use crate::testbed::address::Network;
use crate::testbed::plain::Private;
use crate::testbed::site::Site;
use crate::testbed::ssh::{Ssh, SshError};
use crate::testbed::up::{Images, Spec, Testbed, UpError, up};

/// Why a trial, or the run, could not be done.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The testbed did not come up.
    #[error(transparent)]
    Up(#[from] UpError),
    /// Libvirt or a migration.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A command on a machine.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// A connection.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// A recontextualization.
    #[error(transparent)]
    Recontext(#[from] RecontextError),
    /// A link is not as asked.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The run's folder.
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
    /// The bench's own socket.
    #[error("cannot listen for heartbeats: {0}")]
    Listen(#[source] std::io::Error),
    /// The pings.
    #[error("cannot run ping: {0}; run ci/setup, or install the Debian package iputils-ping")]
    Ping(#[source] std::io::Error),
    /// Something that had to happen did not.
    #[error("{what} within {seconds} s{evidence}")]
    Late {
        /// What did not happen, e.g. `the guest sent no heartbeat`.
        what: String,
        /// The deadline.
        seconds: u64,
        /// What was seen instead.
        evidence: String,
    },
    /// A deadline of the design.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A file system of experiment `layers`.
    #[error(transparent)]
    Layers(#[from] super::layers::LayersError),
    /// The workload.
    #[error("{0}")]
    Workload(String),
}

/// How long a guest may take to boot, nested and emulated.
const GUEST_BOOT: Duration = Duration::from_secs(300);
/// How long new content may take to be readable in the guest.
pub const VISIBLE: Duration = Duration::from_secs(120);

/// What a program in the guest read, without the line's end.
fn read(beat: &Beat) -> Option<&str> {
    match &beat.seen {
        Seen::Content { head, .. } => Some(head.trim_end()),
        Seen::Error(_) => None,
    }
}

/// A testbed with the guest on it.
pub struct Lab {
    /// The machines.
    pub testbed: Testbed,
    /// The guest.
    pub guest: GuestControl,
    /// Its heartbeat.
    pub beats: Beats,
    /// Its answers to pings.
    pub pings: Pings,
    /// The recontextualizers of both hosts.
    pub recontextualizer: Recontextualizer,
    /// What was asked.
    pub scenario: Scenario,
    /// What all samples share.
    pub conditions: Conditions,
}

impl Lab {
    /// Boots the machines, connects to them and starts the guest at the remote site.
    ///
    /// # Errors
    /// Whatever did not come up, with evidence.
    pub async fn up(
        scenario: &Scenario,
        spec: &Spec,
        images: &Images,
        state: &Private,
        logs: &Path,
    ) -> Result<Lab, DriveError> {
        let testbed = up(spec, images, state, logs).await?;
        let beats = beats::listen(Network::bench_address()).await.map_err(DriveError::Listen)?;
        let pings =
            pings::ping(testbed.guest.member.address(Network::Management)).map_err(DriveError::Ping)?;
        let guest = GuestControl::connect(&testbed, &scenario.migration).await?;
        // The GlusterFS experiment measures before recontextualization, so there it runs by request.
        let on = match scenario.experiment {
            Experiment::Migration => "migrated",
            Experiment::Gluster | Experiment::Layers => "",
        };
        let context = Context {
            on,
            service: scenario.recontext.classes.contains(&Class::Service),
            slots: super::setup::slots(scenario),
            strategy: scenario.recontext.strategy,
        };
        let recontextualizer = Recontextualizer::connect(&testbed, context).await?;
        let emulated = testbed.accelerator == crate::testbed::machine::Accelerator::Tcg;
        let conditions = Conditions {
            accelerator: testbed.accelerator.name(),
            hypervisor: scenario.testbed.hypervisor.name(),
            dilation: match scenario.experiment {
                Experiment::Migration | Experiment::Layers => 1.0,
                Experiment::Gluster => scenario.testbed.dilation_on(emulated),
            },
        };
        let lab =
            Lab { testbed, guest, beats, pings, recontextualizer, scenario: scenario.clone(), conditions };
        lab.boot_guest().await?;
        Ok(lab)
    }

    async fn boot_guest(&self) -> Result<(), DriveError> {
        let from = Instant::now();
        self.guest.start(Site::Remote).await?;
        if self.beats.first(from, GUEST_BOOT, |_| true).await.is_some() {
            return Ok(());
        }
        let console = crate::exec::Exec::demand(
            &self.testbed.host(Site::Remote).ssh,
            "read the guest's console",
            &format!("tail -n 20 {}", self.testbed.hypervisor.guest_console_log(&self.testbed.guest)),
            Duration::from_secs(30),
        )
        .await
        .unwrap_or_else(|e| e.to_string());
        Err(DriveError::Late {
            what: "the guest sent no heartbeat".into(),
            seconds: GUEST_BOOT.as_secs(),
            evidence: format!("; its console ended with\n{console}"),
        })
    }

    /// A connection to the guest.
    ///
    /// # Errors
    /// When SSH in the guest does not answer.
    pub async fn guest_ssh(&self) -> Result<Ssh, DriveError> {
        let guest = &self.testbed.guest;
        let address = guest.member.address(Network::Management);
        Ok(Ssh::connect(&guest.name, address, &self.testbed.keys, Duration::from_secs(120)).await?)
    }

    /// Brings the guest to the remote site with the arm's devices and daemons, whatever the trial
    /// before left.
    ///
    /// # Errors
    /// Whatever could not be put in its place.
    pub async fn prepare(&self, arm: Arm, recorder: &Recorder<'_>) -> Result<(), DriveError> {
        if self.scenario.experiment == Experiment::Migration {
            // Nobody reacts to the way back.
            for site in Site::ALL {
                self.recontextualizer.stop(site).await?;
            }
        }
        let whereabouts = self.guest.whereabouts().await;
        match whereabouts.found() {
            Found::At(Site::Remote) => {}
            Found::At(Site::Local) => {
                self.guest.migrate(Site::Local, Site::Remote, &|_, _| ()).await?;
            }
            Found::Nowhere => self.boot_guest().await?,
            // A migration that did not end well may have left it so.
            Found::Unclear => {
                tracing::warn!(%whereabouts, "the guest is started anew");
                self.guest.clear().await?;
                self.boot_guest().await?;
            }
        }
        match arm {
            Arm::Recontext => {
                let from = Instant::now();
                self.recontextualizer.provide(&self.guest, Site::Remote).await?;
                self.recontextualizer.start(Site::Remote).await?;
                self.recontextualizer.trigger(Site::Remote, &self.testbed.guest.name).await?;
                self.visible(Site::Remote, from, VISIBLE).await?;
            }
            // Plain: no other arm has a guest.
            _ => self.recontextualizer.remove(&self.guest, Site::Remote).await?,
        }
        if !self.steady().await {
            recorder.note(What::Unsteady);
        }
        Ok(())
    }

    /// Reads the clocks of both hosts. What their clocks have measured is judged by two readings around it.
    ///
    /// # Errors
    /// When a host does not answer.
    pub async fn read_clocks(&self, recorder: &Recorder<'_>) -> Result<(), DriveError> {
        for site in Site::ALL {
            let reading = clock::read(&self.testbed.host(site).ssh).await?;
            recorder.note(What::Clock { machine: site.host_name().to_owned(), reading });
        }
        Ok(())
    }

    /// Waits until the guest shows that it lives at the destination, by a program and by its kernel.
    pub async fn wait_for_life(&self, from: Instant) {
        /// A guest that is silent for longer is taken for dead.
        const LIFE: Duration = Duration::from_secs(30);
        tokio::join!(self.beats.first(from, LIFE, |_| true), self.pings.answers.first(from, LIFE, |_| true));
    }

    /// Waits for the record of a recontextualizer's run, and writes it down; or that it did not come.
    ///
    /// # Errors
    /// It did not come, or says that the run failed.
    pub async fn wait_for_record(
        &self,
        site: Site,
        from: Instant,
        recorder: &Recorder<'_>,
    ) -> Result<(), RecontextError> {
        match self.recontextualizer.record(site, from, VISIBLE).await {
            Ok(record) => {
                let done = Recontextualizer::demand(site, &record.value);
                let host = site.host_name().to_owned();
                recorder.note_at(record.at, What::Recontextualized { host, record: Box::new(record.value) });
                done
            }
            Err(error) => {
                recorder.note(What::Missed { wanted: Wanted::Record, reason: error.to_string() });
                Err(error)
            }
        }
    }

    /// Waits until a program in the guest reads a site's data, and writes down when it does not.
    pub async fn wait_for_content(&self, site: Site, from: Instant, recorder: &Recorder<'_>) {
        if let Err(error) = self.visible(site, from, VISIBLE).await {
            recorder.note(What::Missed { wanted: Wanted::Content, reason: error.to_string() });
        }
    }

    /// Brings the testbed back to where a trial can begin, after one that was cut off wherever it was: no daemon runs, and the
    /// guest is another one.
    ///
    /// # Errors
    /// Whatever could not be put in its place.
    pub async fn restore(&self) -> Result<(), DriveError> {
        for site in Site::ALL {
            self.recontextualizer.kill(site).await?;
        }
        self.guest.clear().await?;
        self.boot_guest().await
    }

    /// Waits until a program in the guest reads the infrastructure data of a site; the time of the
    /// first such beat after `from`.
    ///
    /// # Errors
    /// When it does not within the deadline, with what it read last.
    pub async fn visible(
        &self,
        site: Site,
        from: Instant,
        deadline: Duration,
    ) -> Result<Instant, DriveError> {
        let hit = self.beats.first(from, deadline, |beat| read(beat) == Some(site.name())).await;
        hit.map(|arrival| arrival.at).ok_or_else(|| {
            let last = self.beats.since(from).pop().map(|arrival| arrival.value);
            let evidence = match last {
                None => "; no heartbeat came".to_owned(),
                Some(beat) => match beat.seen {
                    Seen::Error(error) => format!("; reading there failed: {error}"),
                    Seen::Content { head, .. } => format!("; it read {head:?}"),
                },
            };
            DriveError::Late {
                what: format!("no program in the guest read the data of site {}", site.name()),
                seconds: deadline.as_secs(),
                evidence,
            }
        })
    }

    /// Waits until the guest beats without a gap for two seconds: what was done before has settled. On a runner that is busy
    /// with something else it may not; `false` after a minute.
    pub async fn steady(&self) -> bool {
        const QUIET: Duration = Duration::from_secs(2);
        const LIMIT: Duration = Duration::from_secs(60);
        const GAP: Duration = Duration::from_millis(500);
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            let from = Instant::now();
            if self.beats.first(from + QUIET, LIMIT, |_| true).await.is_none() {
                break;
            }
            let beats = self.beats.since(from);
            if beats.len() > 1 && beats.windows(2).all(|pair| pair[1].at - pair[0].at < beats::INTERVAL + GAP)
            {
                return true;
            }
        }
        tracing::warn!("the guest's heartbeat is not steady: the runner is busy");
        false
    }
}
