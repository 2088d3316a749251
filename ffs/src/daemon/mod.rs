//! The daemon: one loop that owns every change.
//!
//! Events come in on one channel (the kernel's about devices and directories, images that were read,
//! requests, signals, deadlines) and are handled one after the other, so the order of switches is the
//! order of events. Reading a device happens on a thread of its own and never holds the loop.
//!
//! | module | one idea |
//! |---|---|
//! | `threads` | what waits, and passes on what comes |
//! | `devices` | drives: when they are read, and what becomes of it |
//! | `layers` | every way to another generation |
//! | `report` | how it is |
//! | `upgrade`, `successor` | another program takes over, and goes on |

mod devices;
mod layers;
mod report;
mod successor;
mod threads;
mod upgrade;

pub use successor::{Order, take_over};

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ctx_format::Number;
use nix::sys::signal::{SigSet, Signal};

use crate::ack;
use crate::config::{Config, LayerSpec, Source};
use crate::control::{Handle, Request, Response, Server};
use crate::dirs::Follower;
use crate::door::Door;
use crate::edit::Desired;
use crate::events::{Log, Step};
use crate::follow::Hold;
use crate::hooks::Hooks;
use crate::kernel::guard::Seen;
use crate::layer::Layer;
use crate::memory::{self, Limit};
use crate::mount::{Mount, MountError, Options};
use crate::notify::notify;
use crate::trust::{Trust, TrustError};
use crate::uevent::{Uevent, Uevents};

use devices::{Device, Failure};
use layers::{Before, Followed, Refusal};
use report::Facts;
use upgrade::Upgrade;

/// How often drives are looked at where the kernel's events cannot be had.
const POLL: Duration = Duration::from_secs(2);
/// What is there at the start is waited for so long before the mount is said to be ready.
const START: Duration = Duration::from_secs(5);

/// The environment variable that says that this process was started in the background: once it is
/// ready it lets go of standard error, which somebody may be reading to its end.
pub const BACKGROUND: &str = "FFS_BACKGROUND";

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
    /// A layer would take more memory than is allowed.
    #[error("layer `{name}`: {reason}")]
    NoRoom {
        /// Its name.
        name: String,
        /// The figures.
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
    /// What another program left is not understood.
    #[error("cannot take over: {0}")]
    TakeOver(String),
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
    Loaded {
        device: String,
        result: Result<Layer, Failure>,
    },
    Directories(BTreeSet<String>),
    /// A request, the way to answer it, and the connection where another program may be the one to do so.
    Control(Request, Sender<Response>, Option<OwnedFd>),
    /// A door is closed, and the last one has left.
    AtRest,
    Stale,
    /// Mounts came or went, somewhere on this machine.
    Mounts,
    Stop,
    /// Somebody has unmounted it everywhere.
    Gone,
    Reload,
    SessionEnded(io::Result<()>),
}

#[derive(Debug, PartialEq, Eq, Clone)]
enum Due {
    Retry(String),
    DropLayer { layer: String, device: String },
    Poll,
    Ready,
    Upgrade,
}

struct Daemon {
    mount: Mount,
    /// The number of the mounted device.
    number: u64,
    config: Config,
    trust: Arc<Trust>,
    limit: Limit,
    /// The layers asked for; the configuration's at first.
    desired: Desired,
    /// What a rollback shows.
    before: Option<Before>,
    /// Images that were rolled back, by layer.
    held: BTreeMap<String, Hold>,
    /// Layers that show what they did, and why what was read of them again was refused.
    refused: BTreeMap<String, String>,
    log: Arc<Log>,
    hooks: Hooks,
    tx: Sender<Message>,
    /// Who runs hooks or reads a drive goes through this one.
    works: Door,
    /// Who takes in requests, signals and events goes through this one.
    doors: Door,
    server: Server,
    /// Who tells the host.
    teller: Option<ack::Teller>,
    uevents: Option<Arc<Uevents>>,
    /// Another program is to take over.
    upgrade: Option<Upgrade>,
    /// Drives that are to be read when that has come to an end.
    unread: BTreeSet<String>,
    /// How often one did.
    taken_over: u64,
    devices: BTreeMap<String, Device>,
    due: Vec<(Instant, Due)>,
    /// Devices whose first result is waited for; `None` once ready.
    starting: Option<BTreeSet<String>>,
    followed: Followed,
    /// What was found out about images for the status, by layer.
    facts: HashMap<String, Facts>,
    /// What works, by name.
    abilities: Vec<String>,
    /// What does not.
    reduced: Vec<String>,
    stopping: bool,
}

/// Runs a mount until it is unmounted or told to stop.
///
/// # Errors
/// [`DaemonError`]; before anything is mounted where that is possible.
pub fn run(point: &Path, config: Config, socket: &Path, log: Log) -> Result<(), DaemonError> {
    let system = |what| move |source| DaemonError::System { what, source };
    let log = Arc::new(log);
    let trust = Arc::new(Trust::new(&config, point)?);
    let Parts { tx, rx, works, doors } = Parts::new();
    let (mut abilities, mut reduced) = (Vec::new(), Vec::new());
    let signals = block_signals()?;
    // Listen first: what happens from here on is not missed.
    let uevents = match Uevents::listen() {
        Ok(uevents) => Some(Arc::new(uevents)),
        Err(error) => {
            tracing::info!(%error, "{NO_UEVENTS}");
            reduced.push(format!("{NO_UEVENTS} ({error})"));
            None
        }
    };
    abilities.extend(uevents.as_ref().map(|_| "device_events".to_owned()));
    let mut followed = follow(&tx, &mut abilities, &mut reduced);
    let limit = limit(&config);
    // Before the first step that it is to see, after the signals are blocked.
    let teller = ack::start(&config.ack, &log).map_err(system("cannot start a thread"))?;
    let mut layers = Vec::new();
    for spec in &config.layers {
        if let Some(layer) = layers::load(spec, &limit, &trust, &mut followed)? {
            layers.push(Arc::new(layer));
        }
    }
    trust
        .may_show(&layers.iter().map(|layer| &**layer).collect::<Vec<_>>(), &[])
        .map_err(TrustError::from)?;
    let options = Options {
        projection: config.projection,
        passthrough: config.passthrough,
        restrictions: config.restrictions(),
    };
    let (mount, session) = Mount::with(point, layers, &options)?;
    log.write(Step::Mounted { point: mount.point().display().to_string() });
    let unmount_on = |error| {
        mount.abandon();
        error
    };
    let server = Server::start(socket, doors.clone(), to_loop(&tx))
        .map_err(|source| unmount_on(DaemonError::Control { path: socket.to_owned(), source }))?;
    let number = mount.number();
    let started = mount.watch_table(number, hear_of_mounts(&tx, &log)).and_then(|gone| {
        threads::start(&tx, &doors, &signals, session, uevents.clone(), gone)?;
        let (hooks, log, door) = (config.hooks.clone(), log.clone(), works.clone());
        Hooks::start(hooks, mount.point(), log, door, Vec::new(), None)
    });
    let hooks = started.map_err(|source| unmount_on(system("cannot start a thread")(source)))?;
    // Only what is shown in the end counts, and a mount that fails is not.
    let shown = mount.current();
    let accepted = trust.accept(&shown.layers.iter().map(|layer| &**layer).collect::<Vec<_>>(), &[]);
    drop(shown);
    accepted.map_err(|rejected| unmount_on(TrustError::from(rejected).into()))?;
    hear_of_stale(&mount, &tx);
    take_commands(&mount, &tx, &doors);
    let polled = !abilities.iter().any(|ability| ability == "device_events");
    let mut daemon = Daemon {
        mount,
        number,
        trust,
        limit,
        desired: Desired { layers: config.layers.clone(), ..Desired::default() },
        config,
        before: None,
        held: BTreeMap::new(),
        refused: BTreeMap::new(),
        log,
        hooks,
        tx,
        works,
        doors,
        server,
        teller,
        uevents,
        upgrade: None,
        unread: BTreeSet::new(),
        taken_over: 0,
        devices: BTreeMap::new(),
        due: Vec::new(),
        starting: Some(BTreeSet::new()),
        followed,
        facts: HashMap::new(),
        abilities,
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
    daemon.serve(rx)
}

/// What a drive's events are replaced by where the kernel gives none.
const NO_UEVENTS: &str = "no device events from the kernel: drives are polled every 2 s";

/// The loop's channel, and the doors that tell over it.
struct Parts {
    tx: Sender<Message>,
    rx: Receiver<Message>,
    works: Door,
    doors: Door,
}

impl Parts {
    fn new() -> Self {
        let (tx, rx) = channel();
        let door = || {
            let tx = tx.clone();
            Door::new(move || drop(tx.send(Message::AtRest)))
        };
        let (works, doors) = (door(), door());
        Self { tx, rx, works, doors }
    }
}

/// Blocks the signals that one thread waits for: before any other starts, so that all inherit it.
fn block_signals() -> Result<SigSet, DaemonError> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    let error =
        |errno: nix::errno::Errno| DaemonError::System { what: "cannot block signals", source: errno.into() };
    signals.thread_block().map_err(error)?;
    Ok(signals)
}

fn limit(config: &Config) -> Limit {
    let total = config.max_memory.map_or_else(memory::default_limit, Number::get);
    Limit { image: config.image_limit.get(), total }
}

/// The directories that are followed: none yet.
fn follow(tx: &Sender<Message>, abilities: &mut Vec<String>, reduced: &mut Vec<String>) -> Followed {
    let tx = tx.clone();
    let follower = match Follower::start(move |layers| drop(tx.send(Message::Directories(layers)))) {
        Ok(follower) => {
            abilities.push("follow_directories".to_owned());
            Some(follower)
        }
        Err(error) => {
            reduced.push(format!("directory layers are not followed ({error}): `ffs reload` reads them"));
            None
        }
    };
    Followed { follower, failed: BTreeMap::new() }
}

/// Hands requests on to the loop.
fn to_loop(tx: &Sender<Message>) -> Box<Handle> {
    let tx = tx.clone();
    Box::new(move |request, answer, asker| drop(tx.send(Message::Control(request, answer, asker))))
}

/// Hears of directory layers that are not what was scanned.
fn hear_of_stale(mount: &Mount, tx: &Sender<Message>) {
    let tx = tx.clone();
    mount.on_stale(move || {
        let _ = tx.send(Message::Stale);
    });
}

/// Hears of mounts that came or went, or had been made writable.
fn hear_of_mounts(tx: &Sender<Message>, log: &Arc<Log>) -> impl Fn(Seen<'_>) + Send + 'static {
    let (tx, log) = (tx.clone(), log.clone());
    move |seen| match seen {
        Seen::Changed => drop(tx.send(Message::Mounts)),
        Seen::MadeReadOnly(point) => log.write(Step::MadeReadOnly { point: point.display().to_string() }),
    }
}

/// Lets commands in that come as extended attributes.
fn take_commands(mount: &Mount, tx: &Sender<Message>, door: &Door) {
    let (tx, door) = (tx.clone(), door.clone());
    mount.on_command(move |request, answer| {
        let Some(inside) = door.try_enter() else {
            return answer(Response::Conflict("another program is taking over".to_owned()));
        };
        let (sender, response) = channel();
        let _ = tx.send(Message::Control(request, sender, None));
        // A thread of its own waits: such commands are rare.
        std::thread::spawn(move || {
            answer(response.recv().unwrap_or_else(|_| Response::Error("ending".to_owned())));
            drop(inside);
        });
    });
}

impl Daemon {
    fn serve(mut self, rx: Receiver<Message>) -> Result<(), DaemonError> {
        // Readers wait for what this thread does, however busy they are.
        crate::sys::short_turns_or_say();
        let result = self.run(&rx);
        self.give_up("it is ending");
        // Unanswered requests end with the channel; then the socket can wait for the one under way.
        drop(rx);
        result
    }

    fn run(&mut self, rx: &Receiver<Message>) -> Result<(), DaemonError> {
        loop {
            while self.try_upgrade(rx) {}
            let next = self.due.iter().map(|(at, _)| *at).min();
            let wait =
                next.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
            match rx.recv_timeout(wait) {
                Ok(Message::SessionEnded(result)) => return self.session_ended(result),
                Ok(message) => self.handle(message),
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
                if !self.mount.is_mounted() {
                    self.log.write(Step::Unmounted);
                }
                return Ok(());
            }
            for (_, due) in past {
                self.fire(due);
            }
        }
    }

    fn session_ended(&self, result: io::Result<()>) -> Result<(), DaemonError> {
        // Not unmounted by anybody: then it is for us to do, since nobody answers for it any more.
        let cut = !self.stopping && self.mount.is_dead();
        if !cut || self.mount.abandon() {
            self.log.write(Step::Unmounted);
        }
        let result =
            if cut { result.and(Err(io::Error::other("the kernel's connection was cut"))) } else { result };
        result.map_err(|source| DaemonError::System { what: "the mount ended", source })
    }

    fn at(&mut self, wait: Duration, due: Due) {
        self.due.push((Instant::now() + wait, due));
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Uevent(Some(event)) => self.uevent(&event),
            // Events were lost: whatever there is may be new.
            Message::Uevent(None) => self.look_at_all("lost_events"),
            Message::Loaded { device, result } => self.loaded(&device, result),
            Message::Directories(layers) => {
                let changed = |spec: &LayerSpec| layers.contains(&spec.name);
                self.read_again(|spec| matches!(spec.source, Source::Dir(_)) && changed(spec));
            }
            Message::Control(Request::Upgrade { program }, answer, asker) => {
                self.upgrade(program, answer, asker);
            }
            Message::Control(request, answer, _) => {
                let response = match self.control(request) {
                    Ok(()) => Response::Status(Box::new(self.status())),
                    Err(Refusal::Conflict(reason)) => Response::Conflict(reason),
                    Err(Refusal::Failed(reason)) => Response::Error(reason),
                };
                let _ = answer.send(response);
            }
            Message::Stale => self.rescan(),
            Message::Mounts => self.mount.uncover(),
            Message::Reload => {
                // systemd tells by the time that this reload is the one it asked for (sd_notify(3)).
                let (mono_ns, _) = crate::sys::clocks().unwrap_or_default();
                let _ = notify(&format!("RELOADING=1\nMONOTONIC_USEC={}", mono_ns / 1000));
                self.reload();
                let _ = notify("READY=1");
            }
            Message::Stop | Message::Gone if self.stopping => {}
            Message::Stop => {
                self.mount.abandon();
                self.stop();
            }
            Message::Gone => {
                self.mount.let_go();
                self.stop();
            }
            // An upgrade that waits for it is looked at before each message.
            Message::AtRest | Message::SessionEnded(_) => {}
        }
    }

    fn control(&mut self, request: Request) -> Result<(), Refusal> {
        match request {
            Request::Status | Request::Upgrade { .. } => {}
            Request::Unmount if self.stopping => {}
            Request::Unmount => {
                self.mount.unmount().map_err(|error| error.to_string())?;
                self.stop();
            }
            Request::Reload => self.reload(),
            Request::Invalidate => self.mount.forget(),
            Request::Apply { ops, if_generation } => self.apply(&ops, if_generation)?,
            Request::Rollback { to, if_generation } => self.roll_back(to, if_generation)?,
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
            Due::Upgrade => {
                let reason = self.restless();
                self.give_up(&format!("{reason} for too long"));
            }
            Due::DropLayer { layer, device } => {
                let origin = format!("device:/dev/{device}");
                let shown = self.mount.current();
                if shown.layers.iter().any(|have| have.name == layer && have.origin == origin) {
                    self.drop_layer(&layer);
                }
            }
        }
    }

    /// Ends, since the mount is gone: once nobody has anything of it open, or soon.
    fn stop(&mut self) {
        self.give_up("it is ending");
        let _ = notify("STOPPING=1");
        self.stopping = true;
        self.due.clear();
        self.at(Duration::from_secs(2), Due::Ready);
    }

    fn ready(&mut self) {
        if self.starting.take().is_some() {
            self.log.write(Step::Ready);
            if std::env::var_os(BACKGROUND).is_some() {
                let null = std::fs::File::options().write(true).open("/dev/null");
                if let Err(error) = null.and_then(|null| Ok(nix::unistd::dup2_stderr(null)?)) {
                    tracing::warn!(%error, "cannot let go of standard error");
                }
            }
            if let Err(error) = notify("READY=1") {
                tracing::warn!(%error, "cannot tell the service manager");
            }
        }
    }
}
