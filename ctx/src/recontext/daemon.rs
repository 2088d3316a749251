//! The daemon: libvirt's events in, runs out, until told to stop.
//!
//! One task owns the queue; runs are tasks of their own that report back to it. A lost connection is
//! made again, and everything that may have been missed meanwhile is found by looking at every
//! running domain, as at the start.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ctx_io::accept::Backoff;
use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::control::{Answer, Ask, QUESTION, Status, read_line};
use super::queue::{Job, Queue};
use super::record::{Outcome, Record};
use super::run::{Recontextualizer, Request};
use super::state::{StateDir, StateError};
use super::trigger::{Trigger, trigger};
use crate::config::{Config, hostname};
use crate::libvirt::{Connection, DomainEvent, Error as LibvirtError, Event, EventKind, Lifecycle, Stopped};

/// Why the daemon ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The first connection failed.
    #[error(transparent)]
    Libvirt(#[from] LibvirtError),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The control socket.
    #[error("the control socket {}: {error}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        error: io::Error,
    },
}

/// Waits before a run that failed is tried again.
const RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(30)];

type Waiter = oneshot::Sender<Vec<Record>>;

/// What runs and clients tell the task that owns the queue.
enum Message {
    Finished { request: Request, records: Vec<Record>, waiters: Vec<Waiter> },
    Again(Request),
    Ask { question: Ask, answer: oneshot::Sender<Answer> },
    Asked { request: Request, answer: oneshot::Sender<Answer> },
}

struct Daemon {
    shared: Arc<Recontextualizer>,
    queue: Queue<Waiter>,
    runs: JoinSet<()>,
    sender: mpsc::UnboundedSender<Message>,
    connected: bool,
    /// Outcomes since the start: done, skipped, failed.
    counts: [u64; 3],
    last: BTreeMap<(String, Option<String>), Record>,
}

/// Runs the daemon until `stop` completes; then ends the runs under way and returns. `ready` is
/// called once, when events are subscribed to and the control socket listens.
///
/// # Errors
/// [`DaemonError`] when it cannot start. Later failures are logged and recovered from.
pub async fn daemon(
    config: Config,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    tokio::pin!(stop);
    let state = StateDir::open(&config.state)?;
    let listener = listen(&config)?;
    let connection = connect(&config.uri).await?;
    let mut events = connection.subscribe()?;
    let socket = config.socket.clone();
    let (sender, mut messages) = mpsc::unbounded_channel();
    let mut daemon = Daemon {
        shared: Arc::new(Recontextualizer { config, state, connection }),
        queue: Queue::default(),
        runs: JoinSet::new(),
        sender: sender.clone(),
        connected: true,
        counts: [0; 3],
        last: BTreeMap::new(),
    };
    ready();
    daemon.reconcile().await;
    // Until when no connection is accepted, since there was no descriptor for one.
    let (mut backoff, mut paused) = (Backoff::new("the control socket"), tokio::time::Instant::now());

    loop {
        tokio::select! {
            // Events first: nothing else is as urgent.
            biased;
            () = &mut stop => break,
            event = events.recv() => match event {
                Some(Event::Domain(event)) => daemon.domain_event(event),
                Some(Event::Closed { uri, reason, .. }) => {
                    tracing::warn!(uri, ?reason, "the connection to libvirt is lost");
                    daemon.connected = false;
                    tokio::select! {
                        () = &mut stop => break,
                        new = reconnect(&daemon.shared.config.uri) => {
                            let (connection, new_events) = new;
                            events = new_events;
                            daemon.use_connection(connection);
                            daemon.reconcile().await;
                        }
                    }
                }
                // The connection's hub lives as long as the connection, and we hold that.
                None => break,
            },
            Some(message) = messages.recv() => daemon.message(message),
            accepted = async {
                tokio::time::sleep_until(paused).await;
                listener.accept().await
            } => match accepted {
                Ok((stream, _)) => {
                    backoff.accepted();
                    tokio::spawn(serve(stream, sender.clone()));
                }
                Err(error) => paused = tokio::time::Instant::now() + backoff.failed(&error),
            },
            // Only to free the tasks' memory: what they did comes as a message.
            Some(_) = daemon.runs.join_next() => {}
        }
    }

    tracing::info!(runs = daemon.runs.len(), "stopping after the runs under way");
    while daemon.runs.join_next().await.is_some() {}
    // What they reported before they ended; nothing new is started any more.
    while let Ok(message) = messages.try_recv() {
        if let Message::Finished { records, waiters, .. } = message {
            daemon.keep(&records);
            tell(waiters, &records);
        }
    }
    let _ = std::fs::remove_file(socket);
    Ok(())
}

impl Daemon {
    fn domain_event(&mut self, event: DomainEvent) {
        let DomainEvent { domain, received, kind } = event;
        let EventKind::Lifecycle(lifecycle) = kind else { return };
        tracing::debug!(domain = domain.name, ?lifecycle, "event");
        if let Some(trigger) = trigger(lifecycle) {
            self.start(Job {
                request: Request { domain, trigger, received, coalesced: 0, attempt: 1 },
                waiters: Vec::new(),
            });
        } else if let Lifecycle::Stopped(reason) = lifecycle {
            // A saved domain will want its device back; otherwise nobody reads the image any more.
            if reason != Stopped::Saved && !self.queue.is_running(&domain.uuid) {
                self.shared.state.forget_images(&domain.uuid);
            }
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Finished { request, records, waiters } => {
                self.keep(&records);
                tell(waiters, &records);
                if let Some(next) = self.queue.finished(&request.domain.uuid) {
                    // Not pushed: its slot is kept by `finished`.
                    self.spawn(next);
                } else if records.iter().any(Record::is_worth_another_try) {
                    self.retry(request);
                }
            }
            Message::Again(request) => self.start(Job { request, waiters: Vec::new() }),
            Message::Ask { question: Ask::Status, answer } => {
                let _ = answer.send(Answer { ok: true, status: Some(self.status()), ..Answer::default() });
            }
            Message::Ask { question: Ask::Trigger { domain, reason }, answer } => {
                self.manual(domain, reason, answer);
            }
            Message::Asked { request, answer } => {
                let (waiter, records) = oneshot::channel();
                self.start(Job { request, waiters: vec![waiter] });
                tokio::spawn(async move {
                    let _ = answer.send(match records.await {
                        Ok(records) => Answer { ok: true, records: Some(records), ..Answer::default() },
                        Err(_) => Answer::error("the daemon is stopping"),
                    });
                });
            }
        }
    }

    /// Finds the domain, then starts a run; both may block, so a task does them.
    fn manual(&self, name: String, reason: Option<String>, answer: oneshot::Sender<Answer>) {
        // A lookup in libvirt may wait for the daemon there, and must not keep events waiting.
        let (shared, sender) = (Arc::clone(&self.shared), self.sender.clone());
        let trigger = Trigger::Manual { reason };
        tokio::spawn(async move {
            let found = tokio::task::spawn_blocking(move || {
                shared
                    .connection
                    .domain(&name)
                    .or_else(|error| shared.connection.domain_by_uuid(&name).map_err(|_| error))
            })
            .await;
            match found {
                Ok(Ok(domain)) => {
                    let request = Request::new(domain.id().clone(), trigger);
                    let _ = sender.send(Message::Asked { request, answer });
                }
                Ok(Err(error)) => {
                    let _ = answer.send(Answer::error(error.to_string()));
                }
                Err(error) => {
                    let _ = answer.send(Answer::error(error.to_string()));
                }
            }
        });
    }

    fn start(&mut self, job: Job<Waiter>) {
        if let Some(job) = self.queue.push(job) {
            self.spawn(job);
        }
    }

    fn spawn(&mut self, job: Job<Waiter>) {
        let (shared, sender) = (Arc::clone(&self.shared), self.sender.clone());
        self.runs.spawn(async move {
            let records = shared.run(&job.request).await;
            // The receiver lives until all runs have ended.
            let _ = sender.send(Message::Finished { request: job.request, records, waiters: job.waiters });
        });
    }

    fn retry(&self, request: Request) {
        let Some(wait) = RETRIES.get(request.attempt as usize - 1).copied() else {
            tracing::error!(domain = request.domain.name, "given up; `ctx trigger` tries again");
            return;
        };
        let again = Request { attempt: request.attempt + 1, ..request };
        let sender = self.sender.clone();
        tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            // When the daemon has stopped meanwhile, the next start reconciles.
            let _ = sender.send(Message::Again(again));
        });
    }

    fn keep(&mut self, records: &[Record]) {
        for record in records {
            let ms = record.total_ns / 1_000_000;
            match record.outcome {
                Outcome::Done => {
                    self.counts[0] += 1;
                    tracing::info!(
                        domain = record.domain,
                        target = record.target,
                        generation = record.generation,
                        ms,
                        "recontextualized"
                    );
                }
                Outcome::Degraded => {
                    self.counts[0] += 1;
                    tracing::warn!(
                        domain = record.domain,
                        target = record.target,
                        generation = record.generation,
                        ms,
                        why = record.error,
                        "recontextualized in part"
                    );
                }
                Outcome::Skipped => {
                    self.counts[1] += 1;
                    tracing::info!(domain = record.domain, why = record.error, "skipped");
                }
                Outcome::Failed => {
                    self.counts[2] += 1;
                    tracing::error!(
                        domain = record.domain,
                        target = record.target,
                        attempt = record.attempt,
                        error = record.error,
                        "failed"
                    );
                }
            }
            if let Err(error) = record.append(&self.shared.config.events) {
                tracing::error!(path = %self.shared.config.events.display(), %error, "the event log");
            }
            self.last.insert((record.uuid.clone(), record.target.clone()), record.clone());
        }
    }

    fn status(&self) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            host: hostname(),
            uri: self.shared.config.uri.clone(),
            connected: self.connected,
            running: self.queue.running().map(str::to_owned).collect(),
            done: self.counts[0],
            skipped: self.counts[1],
            failed: self.counts[2],
            last: self.last.values().cloned().collect(),
        }
    }

    fn use_connection(&mut self, connection: Connection) {
        // Runs under way keep the old connection; their calls fail and are tried again.
        let old = &self.shared;
        self.shared =
            Arc::new(Recontextualizer { config: old.config.clone(), state: old.state.clone(), connection });
        self.connected = true;
    }

    /// Starts a run for every running domain of which one was cut off or missed, and removes the
    /// images of domains that are gone.
    async fn reconcile(&mut self) {
        let shared = Arc::clone(&self.shared);
        let found = tokio::task::spawn_blocking(move || {
            let domains = shared.connection.running_domains()?;
            let uuids: Vec<String> = domains.iter().map(|domain| domain.uuid().to_owned()).collect();
            shared.state.sweep(&uuids);
            let unfinished = domains.into_iter().filter(|domain| {
                shared.unfinished(domain).unwrap_or_else(|error| {
                    tracing::warn!(domain = domain.name(), %error, "cannot tell whether a run was missed");
                    false
                })
            });
            Ok::<_, LibvirtError>(unfinished.map(|domain| domain.id().clone()).collect::<Vec<_>>())
        })
        .await;
        match found {
            Ok(Ok(domains)) => {
                for domain in domains {
                    self.start(Job {
                        request: Request::new(domain, Trigger::Reconcile),
                        waiters: Vec::new(),
                    });
                }
            }
            Ok(Err(error)) => tracing::error!(%error, "the running domains cannot be listed"),
            Err(error) => tracing::error!(%error, "the running domains cannot be listed"),
        }
    }
}

fn tell(waiters: Vec<Waiter>, records: &[Record]) {
    for waiter in waiters {
        // Who asked may have gone.
        let _ = waiter.send(records.to_vec());
    }
}

async fn connect(uri: &str) -> Result<Connection, LibvirtError> {
    let uri = uri.to_owned();
    match tokio::task::spawn_blocking(move || Connection::open(&uri)).await {
        Ok(connection) => connection,
        // The closure is never cancelled, so this is its panic: pass it on.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Tries until it works: libvirtd is restarted by every update.
async fn reconnect(uri: &str) -> (Connection, mpsc::UnboundedReceiver<Event>) {
    let mut wait = Duration::from_millis(250);
    loop {
        tokio::time::sleep(wait).await;
        match connect(uri).await.and_then(|new| new.subscribe().map(|events| (new, events))) {
            Ok(new) => {
                tracing::info!(uri, "connected to libvirt again");
                return new;
            }
            Err(error) => tracing::warn!(%error, "trying again"),
        }
        wait = (wait * 2).min(Duration::from_secs(10));
    }
}

/// Listens on the control socket. One that is left from a crash is replaced; one that answers is
/// another daemon's.
fn listen(config: &Config) -> Result<UnixListener, DaemonError> {
    let path = &config.socket;
    let fail = |error| DaemonError::Socket { path: path.clone(), error };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(fail)?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(fail(io::Error::other("another daemon listens there: stop it first")));
        }
        std::fs::remove_file(path).map_err(fail)?;
    }
    let listener = UnixListener::bind(path).map_err(fail)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Answers one client until it goes.
async fn serve(stream: UnixStream, sender: mpsc::UnboundedSender<Message>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let line = match read_line(&mut read, QUESTION).await {
            Ok(Some(line)) => line,
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let refused = Answer::error(format!("the question cannot be taken: {error}"));
                let _ = write.write_all(&refused.to_line()).await;
                return;
            }
            Ok(None) | Err(_) => return,
        };
        let answer = match serde_json::from_slice(&line) {
            Ok(question) => {
                let (answer, received) = oneshot::channel();
                let _ = sender.send(Message::Ask { question, answer });
                received.await.unwrap_or_else(|_| Answer::error("the daemon is stopping"))
            }
            Err(error) => Answer::error(format!("not a question: {error}")),
        };
        if write.write_all(&answer.to_line()).await.is_err() {
            return;
        }
    }
}
