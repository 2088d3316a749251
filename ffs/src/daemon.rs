//! The daemon: one loop that owns every change.
//!
//! Events come in on one channel (the kernel's about devices, images that were read, requests,
//! signals, deadlines) and are handled one after the other, so the order of switches is the order of
//! events. Reading a device happens on a thread of its own and never holds the loop.
//!
//! A device that goes does not take its layer with it: a recontextualization detaches one device and
//! attaches the next, under any name, and programs must not see a hole between the two. The layer
//! stays until an image of its name takes its place or [`Config::keep_removed`] has passed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ctx_format::check::Claim;
use nix::sys::signal::{SigSet, Signal};

use crate::ack;
use crate::config::{Config, LayerSpec, Source, matches};
use crate::control::{DeviceStatus, LayerStatus, Request, Response, Server, Status};
use crate::events::{Log, Step};
use crate::follow::{Verdict, backoff, judge};
use crate::hooks::Hooks;
use crate::layer::{Layer, device, dir, image};
use crate::mount::{Mount, MountError, Session};
use crate::notify::notify;
use crate::trust::{Trust, TrustError};
use crate::uevent::{Action, Uevent, Uevents};

/// How often drives are looked at where the kernel's events cannot be had.
const POLL: Duration = Duration::from_secs(2);
/// What is there at the start is waited for so long before the mount is said to be ready.
const START: Duration = Duration::from_secs(5);
/// How often the kernel asks a drive for a change of medium, in milliseconds. It polls emulated
/// drives too; udev's default of 2000 would be most of the time to visibility.
const EVENTS_POLL_MS: &str = "100";

/// Why the daemon cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A layer that was asked for cannot be had.
    #[error("layer `{name}`: {reason}")]
    Layer {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// Mounting or unmounting.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The control socket.
    #[error("cannot listen on `{}`: {source} (is another ffs mounted there?)", path.display())]
    Control {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The keys, or the state that goes with them.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Starting a thread, or the kernel session.
    #[error("{what}: {source}")]
    System {
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What reaches the loop.
enum Message {
    Uevent(Option<Uevent>),
    Loaded { device: String, result: Result<Layer, Failure> },
    Control(Request, Sender<Response>),
    Stale,
    Stop,
    Reload,
    SessionEnded(io::Result<()>),
}

/// Why a device gave no layer.
struct Failure {
    reason: String,
    /// Another try may help.
    passes: bool,
}

#[derive(Debug, PartialEq, Eq, Clone)]
enum Due {
    Retry(String),
    DropLayer { layer: String, device: String },
    Poll,
    Ready,
}

#[derive(Default)]
struct Device {
    /// A thread is reading it.
    reading: bool,
    /// Something happened meanwhile: read it again.
    again: bool,
    attempt: u32,
    state: String,
}

/// Runs a mount until it is unmounted or told to stop.
///
/// # Errors
/// [`DaemonError`]; before anything is mounted where that is possible.
pub fn run(point: &Path, config: Config, socket: &Path, log: Log) -> Result<(), DaemonError> {
    let system = |what| move |source| DaemonError::System { what, source };
    let log = Arc::new(log);
    let trust = Arc::new(Trust::new(&config, point)?);
    let (tx, rx) = channel();
    let mut reduced = Vec::new();
    // Blocked before any thread starts, so that all of them inherit it and one alone waits.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|errno| system("cannot block signals")(errno.into()))?;
    // Listen first: what happens from here on is not missed.
    let uevents = match Uevents::listen() {
        Ok(uevents) => Some(uevents),
        Err(error) => {
            reduced.push(format!("no device events from the kernel ({error}): drives are polled every 2 s"));
            None
        }
    };
    // Before the first step that it is to see, after the signals are blocked.
    ack::start(&config.ack, &log).map_err(system("cannot start a thread"))?;
    let mut layers = Vec::new();
    for spec in &config.layers {
        if let Some(layer) = load(spec, config.image_limit, &trust)? {
            layers.push(Arc::new(layer));
        }
    }
    let (mount, session) = Mount::new(point, layers)?;
    log.write(Step::Mounted { point: mount.point().display().to_string() });
    let unmount_on = |error| {
        let _ = mount.unmount();
        error
    };
    let server = {
        let tx = tx.clone();
        Server::start(socket, move |request, answer| {
            let _ = tx.send(Message::Control(request, answer));
        })
        .map_err(|source| unmount_on(DaemonError::Control { path: socket.to_owned(), source }))?
    };
    let gone = Mount::watch_gone(mount.point());
    let started = gone
        .and_then(|gone| start_threads(&tx, signals, session, uevents, gone))
        .and_then(|()| Hooks::start(config.hooks.clone(), mount.point(), log.clone()));
    let hooks = started.map_err(|source| unmount_on(system("cannot start a thread")(source)))?;
    let stale = tx.clone();
    mount.on_stale(move || {
        let _ = stale.send(Message::Stale);
    });
    let polled = !reduced.is_empty();
    reduced.extend(mount.reduced());
    let mut daemon = Daemon {
        mount,
        config,
        trust,
        log,
        hooks,
        tx,
        devices: BTreeMap::new(),
        due: Vec::new(),
        starting: Some(BTreeSet::new()),
        reduced,
        stopping: false,
    };
    if polled {
        daemon.at(POLL, Due::Poll);
    }
    daemon.at(START, Due::Ready);
    daemon.look_at_all("coldplug");
    if daemon.starting.as_ref().is_some_and(BTreeSet::is_empty) {
        daemon.ready();
    }
    let result = daemon.serve(&rx);
    // Unanswered requests end with the channel; then the socket can wait for the one under way.
    drop(rx);
    drop(server);
    result
}

/// Starts the threads that only wait and pass on what comes.
fn start_threads(
    tx: &Sender<Message>,
    signals: SigSet,
    session: Session,
    uevents: Option<Uevents>,
    gone: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
    };
    let to = tx.clone();
    spawn(
        "signals",
        Box::new(move || {
            while let Ok(signal) = signals.wait() {
                let _ = to.send(if signal == Signal::SIGHUP { Message::Reload } else { Message::Stop });
            }
        }),
    )?;
    let to = tx.clone();
    spawn(
        "session-end",
        Box::new(move || {
            let _ = to.send(Message::SessionEnded(session.wait()));
        }),
    )?;
    let to = tx.clone();
    spawn(
        "unmounted",
        Box::new(move || match gone() {
            Ok(()) => drop(to.send(Message::Stop)),
            Err(error) => tracing::error!(%error, "an unmount by somebody else will not be noticed"),
        }),
    )?;
    let Some(uevents) = uevents else { return Ok(()) };
    let to = tx.clone();
    spawn(
        "uevents",
        Box::new(move || {
            loop {
                match uevents.next() {
                    Ok(event) => drop(to.send(Message::Uevent(event))),
                    Err(error) => return tracing::error!(%error, "no more events about devices"),
                }
            }
        }),
    )
}

/// Reads a layer that is no device; `None` for devices, which are read when they are there.
fn load(spec: &LayerSpec, limit: u64, trust: &Trust) -> Result<Option<Layer>, DaemonError> {
    let error = |reason: String| DaemonError::Layer { name: spec.name.clone(), reason };
    match &spec.source {
        Source::Dir(path) => dir::layer(path, &spec.name, spec.priority.unwrap_or(0))
            .map(Some)
            .map_err(|source| error(source.to_string())),
        Source::Iso(path) => {
            let image = device::read(path, limit).map_err(|source| error(source.to_string()))?;
            image::layer(image, Some(&spec.name), spec.priority, &spec.source.to_string(), trust)
                .map(|(layer, _)| Some(layer))
                .map_err(|source| error(format!("`{}`: {source}", path.display())))
        }
        Source::Device(_) => Ok(None),
    }
}

struct Daemon {
    mount: Mount,
    config: Config,
    trust: Arc<Trust>,
    log: Arc<Log>,
    hooks: Hooks,
    tx: Sender<Message>,
    devices: BTreeMap<String, Device>,
    due: Vec<(Instant, Due)>,
    /// Devices whose first result is waited for; `None` once ready.
    starting: Option<BTreeSet<String>>,
    reduced: Vec<String>,
    stopping: bool,
}

impl Daemon {
    fn serve(&mut self, rx: &Receiver<Message>) -> Result<(), DaemonError> {
        loop {
            let next = self.due.iter().map(|(at, _)| *at).min();
            let wait =
                next.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
            match rx.recv_timeout(wait) {
                Ok(Message::SessionEnded(result)) => {
                    self.log.write(Step::Unmounted);
                    return result.map_err(|source| DaemonError::System { what: "the mount ended", source });
                }
                Ok(message) => self.handle(message)?,
                Err(RecvTimeoutError::Timeout) => {}
                // `self.tx` keeps the channel open.
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            let now = Instant::now();
            let (past, later) = std::mem::take(&mut self.due).into_iter().partition(|(at, _)| *at <= now);
            self.due = later;
            let past: Vec<(Instant, Due)> = past;
            if self.stopping && !past.is_empty() {
                // Detached but still in use by somebody: what they hold ends with us.
                self.log.write(Step::Unmounted);
                return Ok(());
            }
            for (_, due) in past {
                self.fire(due);
            }
        }
    }

    fn at(&mut self, wait: Duration, due: Due) {
        self.due.push((Instant::now() + wait, due));
    }

    fn handle(&mut self, message: Message) -> Result<(), DaemonError> {
        match message {
            Message::Uevent(Some(event)) => self.uevent(&event),
            // Events were lost: whatever there is may be new.
            Message::Uevent(None) => self.look_at_all("lost_events"),
            Message::Loaded { device, result } => self.loaded(&device, result),
            Message::Control(Request::Unmount, answer) => {
                let stopped = self.stop();
                let response = match &stopped {
                    Ok(()) => Response::Status(Box::new(self.status())),
                    Err(error) => Response::Error(error.to_string()),
                };
                let _ = answer.send(response);
            }
            Message::Control(request, answer) => {
                let response = match self.control(request) {
                    Ok(()) => Response::Status(Box::new(self.status())),
                    Err(reason) => Response::Error(reason),
                };
                let _ = answer.send(response);
            }
            Message::Stale => self.rescan(),
            Message::Reload => {
                // systemd tells by the time that this reload is the one it asked for (sd_notify(3)).
                let (mono_ns, _) = crate::sys::clocks().unwrap_or_default();
                let _ = notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", mono_ns / 1000));
                self.reload();
                let _ = notify("READY=1");
            }
            Message::Stop if self.stopping => {}
            Message::Stop => self.stop()?,
            Message::SessionEnded(_) => {}
        }
        Ok(())
    }

    fn fire(&mut self, due: Due) {
        match due {
            Due::Retry(device) => self.read(&device),
            Due::Poll => {
                self.look_at_all("poll");
                self.at(POLL, Due::Poll);
            }
            Due::Ready => self.ready(),
            Due::DropLayer { layer, device } => {
                let origin = format!("device:/dev/{device}");
                let shown = self.mount.current();
                if shown.layers.iter().any(|have| have.name == layer && have.origin == origin) {
                    self.remove(&layer);
                }
            }
        }
    }

    fn stop(&mut self) -> Result<(), DaemonError> {
        let _ = notify("STOPPING=1");
        self.mount.unmount()?;
        self.stopping = true;
        self.due.clear();
        self.at(Duration::from_secs(2), Due::Ready);
        Ok(())
    }

    fn ready(&mut self) {
        if self.starting.take().is_some() {
            self.log.write(Step::Ready);
            if let Err(error) = notify("READY=1") {
                tracing::warn!(%error, "cannot tell the service manager");
            }
        }
    }

    // Devices.

    /// What a device is to become, if it is one that matters: the layer's name and rank where they
    /// are given.
    fn wanted(&self, device: &str) -> Option<(Option<&str>, Option<u16>)> {
        let explicit = self.config.layers.iter().find(|spec| match &spec.source {
            Source::Device(path) => device_name(path).as_deref() == Some(device),
            _ => false,
        });
        if let Some(spec) = explicit {
            return Some((Some(&spec.name), spec.priority));
        }
        let mut patterns = self.config.auto_devices.iter();
        let auto = self.config.auto && patterns.any(|pattern| matches(pattern.as_bytes(), device.as_bytes()));
        auto.then_some((None, None))
    }

    fn look_at_all(&mut self, why: &str) {
        let explicit = self.config.layers.iter().filter_map(|spec| match &spec.source {
            Source::Device(path) => device_name(path),
            _ => None,
        });
        let mut devices: BTreeSet<String> = explicit.collect();
        if let Ok(entries) = std::fs::read_dir("/sys/block") {
            devices.extend(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()));
        }
        devices.retain(|device| self.wanted(device).is_some());
        for device in devices {
            if why != "poll" {
                self.log.write(Step::Uevent { device: device.clone(), action: why.to_owned() });
            }
            if let Some(starting) = &mut self.starting {
                starting.insert(device.clone());
            }
            self.arrived(&device);
        }
    }

    fn uevent(&mut self, event: &Uevent) {
        let device = &event.device;
        if self.wanted(device).is_none() {
            return;
        }
        self.log.write(Step::Uevent { device: device.clone(), action: event.action.as_str().to_owned() });
        match event.action {
            Action::Add | Action::MediaChange | Action::Change => self.arrived(device),
            // The tray is never locked by us: the drive opens it by itself.
            Action::EjectRequest => {}
            Action::Remove => self.gone(device),
        }
    }

    fn arrived(&mut self, device: &str) {
        // Denied in containers; then the kernel asks as often as it was told to.
        let poll = Path::new("/sys/block").join(device).join("events_poll_msecs");
        if let Err(error) = std::fs::write(&poll, EVENTS_POLL_MS) {
            tracing::debug!(%error, path = %poll.display(), "cannot set");
        }
        self.devices.entry(device.to_owned()).or_default().attempt = 0;
        self.due.retain(|(_, due)| *due != Due::Retry(device.to_owned()));
        self.read(device);
    }

    fn gone(&mut self, device: &str) {
        self.devices.remove(device);
        self.due.retain(|(_, due)| *due != Due::Retry(device.to_owned()));
        self.log.write(Step::DeviceGone { device: device.to_owned() });
        self.expire(device);
    }

    /// Sets a deadline for what a device showed, where one is configured.
    fn expire(&mut self, device: &str) {
        let Some(keep) = self.config.keep_removed() else { return };
        let origin = format!("device:/dev/{device}");
        let shown = self.mount.current();
        for layer in shown.layers.iter().filter(|layer| layer.origin == origin) {
            self.at(keep, Due::DropLayer { layer: layer.name.clone(), device: device.to_owned() });
        }
    }

    fn read(&mut self, device: &str) {
        let Some((name, priority)) = self.wanted(device) else { return };
        let (name, limit) = (name.map(str::to_owned), self.config.image_limit);
        let state = self.devices.entry(device.to_owned()).or_default();
        if state.reading {
            state.again = true;
            return;
        }
        state.reading = true;
        state.attempt += 1;
        let attempt = state.attempt;
        let (log, tx, device) = (self.log.clone(), self.tx.clone(), device.to_owned());
        let trust = self.trust.clone();
        let work = move || {
            let result = read_device(&device, name.as_deref(), priority, limit, attempt, &trust, &log);
            let _ = tx.send(Message::Loaded { device, result });
        };
        if let Err(error) = std::thread::Builder::new().name("read-device".to_owned()).spawn(work) {
            tracing::error!(%error, "cannot start a thread to read a device");
        }
    }

    fn loaded(&mut self, device: &str, result: Result<Layer, Failure>) {
        // Removed while it was read: what was read is still whole and verified, and taken.
        let (again, attempt) = match self.devices.get_mut(device) {
            Some(state) => {
                state.reading = false;
                (std::mem::take(&mut state.again), state.attempt)
            }
            None => (false, u32::MAX),
        };
        let state = match result {
            Ok(layer) => {
                self.due.retain(|(_, due)| !matches!(due, Due::DropLayer { device: of, .. } if of == device));
                self.offer(layer)
            }
            Err(failure) => {
                let step = if failure.passes {
                    let device = device.to_owned();
                    Step::NotReady { device, attempt, reason: failure.reason.clone() }
                } else {
                    Step::Refused { origin: format!("device:/dev/{device}"), reason: failure.reason.clone() }
                };
                self.log.write(step);
                if failure.passes
                    && !again
                    && let Some(wait) = backoff(attempt.saturating_add(1))
                {
                    self.at(wait, Due::Retry(device.to_owned()));
                }
                failure.reason
            }
        };
        if let Some(known) = self.devices.get_mut(device) {
            known.state = state;
            if again {
                known.attempt = 0;
                self.read(device);
            }
        }
        if let Some(starting) = &mut self.starting {
            starting.remove(device);
            if starting.is_empty() {
                self.ready();
            }
        }
    }

    /// Shows a layer that a device brought, unless it is older than what is shown.
    fn offer(&mut self, layer: Layer) -> String {
        let shown = self.mount.current();
        let have = shown.layers.iter().find(|have| have.name == layer.name);
        match judge(have.map(|have| &**have), &layer, self.config.accept_older) {
            Verdict::Take => {
                let state = match layer.generation {
                    Some(generation) => format!("layer `{}`, generation {generation}", layer.name),
                    None => format!("layer `{}`", layer.name),
                };
                self.show(layer);
                state
            }
            Verdict::Refuse(reason) => {
                self.log.write(Step::Refused { origin: layer.origin, reason: reason.clone() });
                reason
            }
        }
    }

    // Switches.

    fn show(&mut self, layer: Layer) {
        let (name, generation) = (layer.name.clone(), layer.generation);
        let layer = Arc::new(layer);
        self.switch(&name, generation, |layers| {
            layers.iter().filter(|have| have.name != layer.name).cloned().chain([layer.clone()]).collect()
        });
    }

    fn remove(&mut self, name: &str) {
        self.switch(name, None, |layers| layers.iter().filter(|have| have.name != name).cloned().collect());
    }

    fn switch(
        &mut self,
        layer: &str,
        layer_generation: Option<u64>,
        edit: impl FnOnce(&[Arc<Layer>]) -> Vec<Arc<Layer>>,
    ) {
        let switch = self.mount.switch(edit);
        let generation = switch.generation.number;
        self.log.write(Step::Visible {
            generation,
            layer: layer.to_owned(),
            layer_generation,
            changes: switch.changes.len(),
        });
        if !switch.changes.is_empty() {
            self.mount.tell_watchers(&switch);
            self.hooks.changed(generation, switch.changes.into_iter().map(|change| change.path).collect());
        }
    }

    /// Reads directory layers again: one of them was found to have changed.
    fn rescan(&mut self) {
        self.mount.take_stale();
        let dirs: Vec<LayerSpec> =
            self.config.layers.iter().filter(|spec| matches!(spec.source, Source::Dir(_))).cloned().collect();
        for spec in dirs {
            self.refresh(&spec);
        }
    }

    fn reload(&mut self) {
        if let Err(error) = self.trust.reload() {
            self.log.write(Step::Refused { origin: "trust".to_owned(), reason: error.to_string() });
        }
        self.rescan();
        let images: Vec<LayerSpec> =
            self.config.layers.iter().filter(|spec| matches!(spec.source, Source::Iso(_))).cloned().collect();
        for spec in images {
            self.refresh(&spec);
        }
        self.look_at_all("reload");
    }

    fn refresh(&mut self, spec: &LayerSpec) {
        match load(spec, self.config.image_limit, &self.trust) {
            Ok(Some(layer)) => self.show(layer),
            Ok(None) => {}
            // What was shown stays: better old than half.
            Err(error) => {
                self.log.write(Step::Refused { origin: spec.source.to_string(), reason: error.to_string() });
            }
        }
    }

    // Requests.

    fn control(&mut self, request: Request) -> Result<(), String> {
        match request {
            Request::Status | Request::Unmount => Ok(()),
            Request::Reload => {
                self.reload();
                Ok(())
            }
            Request::Remove(name) => {
                let shown = self.mount.current().layers.iter().any(|layer| layer.name == name);
                let asked = self.config.layers.iter().any(|spec| spec.name == name);
                if !shown && !asked {
                    return Err(format!("no layer is named `{name}`"));
                }
                self.config.layers.retain(|spec| spec.name != name);
                self.remove(&name);
                Ok(())
            }
            Request::Add(text) => {
                let spec: LayerSpec = text.parse()?;
                let shown = self.mount.current().layers.iter().any(|layer| layer.name == spec.name);
                if shown || self.config.layers.iter().any(|have| have.name == spec.name) {
                    return Err(format!("a layer is named `{}` already: use replace", spec.name));
                }
                self.take(spec)
            }
            Request::Replace(text) => {
                let spec: LayerSpec = text.parse()?;
                let shown = self.mount.current().layers.iter().any(|layer| layer.name == spec.name);
                if !shown && !self.config.layers.iter().any(|have| have.name == spec.name) {
                    return Err(format!("no layer is named `{}`: use add", spec.name));
                }
                self.take(spec)
            }
        }
    }

    fn take(&mut self, mut spec: LayerSpec) -> Result<(), String> {
        let mut config = self.config.clone();
        let had = self.mount.current().layers.iter().find(|layer| layer.name == spec.name).cloned();
        if spec.priority.is_none() {
            let asked = config.layers.iter().find(|have| have.name == spec.name);
            spec.priority = asked.and_then(|have| have.priority).or(had.map(|layer| layer.priority));
        }
        config.layers.retain(|have| have.name != spec.name);
        config.layers.push(spec.clone());
        config.check()?;
        let layer = load(&spec, self.config.image_limit, &self.trust).map_err(|error| error.to_string())?;
        self.config = config;
        match (layer, &spec.source) {
            (Some(layer), _) => self.show(layer),
            (None, Source::Device(path)) => {
                if let Some(device) = device_name(path) {
                    self.arrived(&device);
                }
            }
            (None, _) => {}
        }
        Ok(())
    }

    fn status(&self) -> Status {
        let generation = self.mount.current();
        let totals = generation.totals();
        let layers = generation.layers.iter().map(|layer| LayerStatus {
            name: layer.name.clone(),
            priority: layer.priority,
            origin: layer.origin.clone(),
            generation: layer.generation,
        });
        let devices = self
            .devices
            .iter()
            .map(|(device, state)| DeviceStatus { device: device.clone(), state: state.state.clone() });
        Status {
            mount: self.mount.point().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            generation: generation.number,
            layers: layers.collect(),
            names: totals.names,
            bytes: totals.bytes,
            known_inodes: self.mount.known_inodes() as u64,
            devices: devices.collect(),
            hooks: self.hooks.outcomes(),
            reduced: self.reduced.iter().cloned().chain(self.trust.reduced()).collect(),
        }
    }
}

/// The kernel's name of a device file: `/dev/cdrom` may be a link to `/dev/sr0`.
fn device_name(path: &Path) -> Option<String> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name()?.to_str().map(str::to_owned)
}

fn read_device(
    device: &str,
    name: Option<&str>,
    priority: Option<u16>,
    limit: u64,
    attempt: u32,
    trust: &Trust,
    log: &Log,
) -> Result<Layer, Failure> {
    let path = Path::new("/dev").join(device);
    log.write(Step::Reading { device: device.to_owned(), attempt });
    let image = device::read(&path, limit)
        .map_err(|error| Failure { passes: error.passes(), reason: error.to_string() })?;
    log.write(Step::Read { device: device.to_owned(), bytes: image.bytes().len() as u64 });
    let origin = format!("device:{}", path.display());
    // A disc that was read while it was being changed gives a damaged image once.
    let claimed = |claim: Option<&Claim>| {
        if let Some(Claim { class, generation }) = claim.cloned() {
            log.write(Step::Claimed { device: device.to_owned(), class, generation });
        }
    };
    let (layer, claim) = image::layer(image, name, priority, &origin, trust).map_err(|error| {
        claimed(error.claim());
        Failure { passes: attempt < 3, reason: error.to_string() }
    })?;
    claimed(claim.as_ref());
    log.write(Step::Verified {
        device: device.to_owned(),
        layer: layer.name.clone(),
        generation: layer.generation,
    });
    Ok(layer)
}
