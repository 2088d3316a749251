//! One run against libvirt: the effects of the plan, each phase timed.
//!
//! Read from top to bottom, this is what happens when a guest has migrated here.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ctx_format::manifest::Sha256;
use ctx_format::{ContextData, ImageOptions, InstanceId, Label, write_signed_iso};

use super::ack::acknowledge;
use super::change::Change;
use super::device::{DeviceError, Method, method};
use super::domain::{NAMESPACE, PREFIX, Strategy, View, ViewError, Wanted, metadata_xml};
use super::hook::placeholder_path;
use super::plan::{Plan, Seen, Step, unfinished};
use super::record::{Image, Outcome, Phase, PhaseTime, Record};
use super::state::{StateDir, StateError};
use super::trigger::{Trigger, not_now};
use crate::clock::{Stamp, monotonic_ns};
use crate::config::{Config, hostname};
use crate::libvirt::{Connection, Domain, DomainId, Error as LibvirtError, ErrorKind, Running, Scope, State};
use crate::source::{Facts, SourceError, gather};

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// For which domain.
    pub domain: DomainId,
    /// Why.
    pub trigger: Trigger,
    /// When it was asked for.
    pub received: Stamp,
    /// How many other requests it stands for.
    pub coalesced: u32,
    /// Which attempt it is, from 1.
    pub attempt: u32,
}

impl Request {
    /// A first request, received now.
    pub fn new(domain: DomainId, trigger: Trigger) -> Self {
        Self { domain, trigger, received: Stamp::now(), coalesced: 0, attempt: 1 }
    }
}

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// libvirt.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    /// The domain's XML.
    #[error("{0}: correct it with `virsh metadata` or `virsh edit`")]
    View(#[from] ViewError),
    /// The class's sources.
    #[error("the files of class `{class}` cannot be had: {error}")]
    Source {
        /// The class.
        class: String,
        /// What is wrong.
        error: SourceError,
    },
    /// The image.
    #[error("the image cannot be made: {0}")]
    Image(#[from] ctx_format::write::WriteError),
    /// The state directory.
    #[error("the state cannot be kept: {0}")]
    State(#[from] StateError),
    /// A class that this host does not have.
    #[error("this host has no class `{0}`: add a [[class]] of that name to the configuration")]
    NoClass(String),
    /// What is wanted cannot be had of this domain.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The guest or QEMU refused.
    #[error(
        "the guest refused to let go of device `{0}`: look into its kernel log, then `ctx trigger` again"
    )]
    Refused(String),
    /// The guest did not answer.
    #[error(
        "the guest did not let go of device `{target}` within {seconds} s: it is asked again at the next run"
    )]
    Deadline {
        /// The device.
        target: String,
        /// How long it had.
        seconds: u64,
    },
    /// The medium of a drive could not be changed.
    #[error(
        "the medium of drive `{target}` could not be changed within {seconds} s: the guest must not hold the \
         disc (mount it, lock the tray); what was answered: {refusals}"
    )]
    Locked {
        /// The device.
        target: String,
        /// How long it had.
        seconds: u64,
        /// Every answer, in order.
        refusals: String,
    },
    /// libvirt said yes, but the device is not there.
    #[error("device `{0}` was attached but is not in the domain's XML: see libvirt's log")]
    NotThere(String),
    /// libxl holds a disk that libvirt does not know of, and keeps it.
    #[error(
        "libxl holds a disk at `{target}` that libvirt does not know of, and it cannot be removed: {why}; \
         `xl block-detach {domain} {target}` tells more"
    )]
    Orphan {
        /// The domain's number.
        domain: u32,
        /// The device.
        target: String,
        /// What failed.
        why: String,
    },
    /// The domain is not as it must be, and that is nobody's fault.
    #[error("{0}")]
    Skip(String),
}

/// Everything that runs share.
#[derive(Debug)]
pub struct Recontextualizer {
    /// The host's configuration.
    pub config: Config,
    /// The host's state directory.
    pub state: StateDir,
    /// The host's libvirt.
    pub connection: Connection,
}

/// The times of a run so far.
struct Clock {
    phases: Vec<PhaseTime>,
    /// The phase under way and its start.
    open: Option<(Phase, u64)>,
}

impl Clock {
    fn enter(&mut self, name: Phase) {
        let now = monotonic_ns();
        self.close(now);
        self.open = Some((name, now));
    }

    fn close(&mut self, now: u64) {
        if let Some((name, start_ns)) = self.open.take() {
            self.phases.push(PhaseTime { name, start_ns, end_ns: now });
        }
    }
}

impl Recontextualizer {
    /// Does what is asked, on every device of the domain that asks for it, and gives a record of each.
    /// A domain that asks for nothing gives none. Never fails: failures are records.
    pub async fn run(self: &Arc<Self>, request: &Request) -> Vec<Record> {
        let mut clock = Clock { phases: Vec::new(), open: None };
        clock.enter(Phase::Resolve);
        let resolved = self.resolve(request).await;
        clock.close(monotonic_ns());
        let (domain, view) = match resolved {
            Ok(resolved) => resolved,
            Err(error) => return vec![Self::record(request, None, clock, Err(error))],
        };
        let asked: Vec<&Wanted> =
            view.wanted.iter().filter(|wanted| wanted.asks_for(&request.trigger)).collect();
        if asked.is_empty() {
            if matches!(request.trigger, Trigger::Manual { .. }) {
                let message =
                    format!("the domain has no <{PREFIX}:device> in its metadata (namespace {NAMESPACE})");
                return vec![Self::record(request, None, clock, Err(RunError::Skip(message)))];
            }
            return Vec::new();
        }
        let mut records = Vec::new();
        for wanted in asked {
            let mut clock = Clock { phases: clock.phases.clone(), open: None };
            let result = self.replace(&domain, &view, wanted, &mut clock).await;
            clock.close(monotonic_ns());
            let mut record = Self::record(request, Some(wanted), clock, result);
            if record.outcome == Outcome::Done
                && let Some(patience) = self.config.ack_timeout
            {
                let handle = domain.clone();
                let xml = blocking(move || Ok(handle.xml()?)).await.ok();
                acknowledge(xml, patience, &mut record).await;
            }
            records.push(record);
        }
        records
    }

    /// Phase *resolve*: what the domain is, wants and has.
    async fn resolve(self: &Arc<Self>, request: &Request) -> Result<(Domain, View), RunError> {
        let (this, uuid, trigger) = (Arc::clone(self), request.domain.uuid.clone(), request.trigger.clone());
        blocking(move || {
            let domain = this.connection.domain_by_uuid(&uuid)?;
            let view = View::parse(&domain.xml()?)?;
            if trigger == Trigger::Restored && view.machine.is_xen() && view.asks_for(&trigger) {
                settled(&domain)?;
            }
            match not_now(&trigger, view.machine, domain.state()?) {
                Some(why) => Err(RunError::Skip(why.into())),
                None => Ok((domain, view)),
            }
        })
        .await
    }

    /// Phases *detach*, *build* and *attach*: follows the plan.
    async fn replace(
        self: &Arc<Self>,
        domain: &Domain,
        view: &View,
        wanted: &Wanted,
        clock: &mut Clock,
    ) -> Result<Done, RunError> {
        let class =
            self.config.class(&wanted.class).ok_or_else(|| RunError::NoClass(wanted.class.to_string()))?;
        let method = method(view, wanted)?;
        let (uuid, target) = (domain.uuid().to_owned(), wanted.target.clone());
        let journal = self.state.load(&uuid)?.devices.get(&target).cloned().unwrap_or_default();
        let disk = view.disks.get(&target);
        let present = match method {
            Method::Replace(_) => disk.is_some(),
            Method::Swap => disk.is_some_and(|disk| disk.source.is_some()),
        };

        // Before the request to detach, so that its answer cannot be missed.
        let mut events = self.connection.subscribe()?;
        let patience = self.config.detach_timeout;
        let xen_number = view.number.filter(|_| view.machine.is_xen());
        let change = Change { domain, machine: view.machine, xen_number, wanted, patience };
        let floor = wanted.generation.saturating_add(1).max(Stamp::now().realtime_ns / 1_000_000_000);
        let mut plan = Plan::new(&journal, present, floor);
        let image_path = self.state.image(&uuid, &target, plan.generation());
        let mut image = Arc::new(Vec::new());
        clock.enter(Phase::Detach);
        loop {
            match plan.step() {
                Step::Detach => match (method, disk) {
                    (Method::Replace(_), Some(disk)) => change.detach(disk, &mut events).await?,
                    (Method::Replace(_), None) => {}
                    (Method::Swap, _) => change.medium(None, &mut events).await?,
                },
                Step::Reserve(generation) => {
                    clock.enter(Phase::Build);
                    let facts = Facts {
                        host: self.config.facts.clone(),
                        domain: domain.id().clone(),
                        class: wanted.class.to_string(),
                    };
                    let files = gather(class, &facts)
                        .await
                        .map_err(|error| RunError::Source { class: wanted.class.to_string(), error })?;
                    let data = ContextData {
                        class: wanted.class.clone(),
                        priority: class.priority,
                        generation,
                        // A UUID in its usual form is an instance id.
                        instance_id: InstanceId::new(&*uuid).map_err(|e| RunError::Skip(e.to_string()))?,
                        files,
                    };
                    let (this, uuid, target) = (Arc::clone(self), uuid.clone(), target.clone());
                    let journal = journal.reserved(generation);
                    image = blocking(move || {
                        this.state.store(&uuid, &target, &journal)?;
                        let options = ImageOptions { label: Label::Rectx };
                        let key = this.config.signing_key.as_ref();
                        Ok(Arc::new(write_signed_iso(&data, &options, key)?))
                    })
                    .await?;
                }
                Step::Write(_) => {
                    let (this, path, image) = (Arc::clone(self), image_path.clone(), Arc::clone(&image));
                    blocking(move || Ok(this.state.write_image(&path, &image)?)).await?;
                }
                Step::Attach(_) => {
                    clock.enter(Phase::Attach);
                    match method {
                        Method::Replace(form) => change.attach(form, &image_path).await?,
                        Method::Swap => change.medium(Some(&image_path), &mut events).await?,
                    }
                    // Here the guest has the device; what follows is bookkeeping.
                    clock.close(monotonic_ns());
                }
                Step::Commit(generation) => {
                    let journal = journal.committed(generation);
                    let (this, domain, wanted) = (Arc::clone(self), domain.clone(), view.wanted.clone());
                    let (uuid, target, keep) = (uuid.clone(), target.clone(), image_path.clone());
                    blocking(move || {
                        this.state.store(&uuid, &target, &journal)?;
                        this.state.prune(&uuid, &target, Some(&keep));
                        // So that the next host goes on from here. Its clock would do as well.
                        let metadata = metadata_xml(&wanted, &target, generation);
                        if let Err(error) = domain.set_metadata(&metadata, PREFIX, NAMESPACE, Scope::Live) {
                            tracing::debug!(%error, "the generation is not kept in the domain");
                        }
                        Ok(())
                    })
                    .await?;
                }
                Step::Done => {
                    let iso = Image { sha256: Sha256::of(&image), bytes: image.len() as u64 };
                    return Ok(Done { generation: plan.generation(), iso });
                }
            }
            plan = plan.done();
        }
    }

    /// What is at a device's target; the image without data, with which it arrived, is nothing.
    fn seen(&self, uuid: &str, target: &str, view: &View) -> Seen {
        let Some(source) = view.disks.get(target).and_then(|disk| disk.source.as_deref()) else {
            return Seen::Nothing;
        };
        if Path::new(source) == placeholder_path(&self.config.state) {
            return Seen::Nothing;
        }
        self.state.generation_of(uuid, target, source).map_or(Seen::Foreign, Seen::Ours)
    }

    /// Whether a run for this domain was cut off or missed.
    ///
    /// # Errors
    /// libvirt's, or what is wrong with the domain's metadata.
    pub fn unfinished(&self, domain: &Domain) -> Result<bool, RunError> {
        let view = View::parse(&domain.xml()?)?;
        if view.wanted.is_empty() {
            return Ok(false);
        }
        let arrived = matches!(domain.state()?, State::Running(Running::Migrated));
        let state = self.state.load(domain.uuid())?;
        Ok(view.wanted.iter().any(|wanted| {
            let journal = state.devices.get(&wanted.target).cloned().unwrap_or_default();
            let arrived = arrived && wanted.on.migrated;
            unfinished(&journal, self.seen(domain.uuid(), &wanted.target, &view), arrived)
        }))
    }

    fn record(
        request: &Request,
        wanted: Option<&Wanted>,
        clock: Clock,
        result: Result<Done, RunError>,
    ) -> Record {
        let permanent = matches!(&result, Err(RunError::Device(_)));
        let end = clock.phases.last().map_or_else(monotonic_ns, |phase| phase.end_ns);
        let (outcome, done, error) = match result {
            Ok(done) => (Outcome::Done, Some(done), None),
            Err(RunError::Skip(why)) => (Outcome::Skipped, None, Some(why)),
            Err(RunError::Libvirt(error)) if error.kind() == ErrorKind::NoDomain => {
                (Outcome::Skipped, None, Some(error.to_string()))
            }
            Err(error) => (Outcome::Failed, None, Some(error.to_string())),
        };
        Record {
            run: run_id(),
            host: hostname(),
            domain: request.domain.name.clone(),
            uuid: request.domain.uuid.clone(),
            target: wanted.map(|wanted| wanted.target.clone()),
            class: wanted.map(|wanted| wanted.class.clone()),
            strategy: wanted.map_or(Strategy::default(), |wanted| wanted.strategy),
            trigger: request.trigger.clone(),
            received: request.received,
            coalesced: request.coalesced,
            attempt: request.attempt,
            phases: clock.phases,
            total_ns: end.saturating_sub(request.received.monotonic_ns),
            outcome,
            generation: done.as_ref().map(|done| done.generation),
            iso: done.map(|done| done.iso),
            error,
            permanent,
            acknowledgement: None,
        }
    }
}

/// What a run achieved.
struct Done {
    generation: u64,
    iso: Image,
}

/// Waits until libvirt has no job on the domain any more: libxl says `Started Restored` of a domain that
/// migrates here too, and holds its job until the migration is over. Blocks.
fn settled(domain: &Domain) -> Result<(), RunError> {
    let deadline = Instant::now() + SETTLE;
    loop {
        match domain.job_stats() {
            Err(error) if matches!(error.kind(), ErrorKind::NoJob | ErrorKind::Unsupported) => return Ok(()),
            Err(error) => return Err(error.into()),
            // A change of devices waits for the job as well, and says so when it does not end.
            Ok(_) if Instant::now() >= deadline => return Ok(()),
            Ok(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// The longest that the end of an incoming migration is waited for.
const SETTLE: Duration = Duration::from_secs(60);

/// Runs blocking work on a thread for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RunError> + Send + 'static,
) -> Result<T, RunError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // The closure is never cancelled, so this is its panic: pass it on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Unique over hosts and restarts: host, wall clock, counter.
fn run_id() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{:x}-{count}", hostname(), Stamp::now().realtime_ns)
}
