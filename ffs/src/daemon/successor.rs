//! A daemon that goes on with what another program left.
//!
//! Nothing here may look at the mount before somebody answers for it: not even stat(2) of its point.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;

use super::devices::Device;
use super::layers::Before;
use super::{Daemon, DaemonError, Due, NO_UEVENTS, Parts, block_signals, take_commands, threads};
use crate::ack;
use crate::config::Source;
use crate::control::{Response, Server, respond};
use crate::edit::Desired;
use crate::events::{Log, Step};
use crate::follow::Hold;
use crate::fs::Ffs;
use crate::generation::Generation;
use crate::handover::program::{go_back, say_able};
use crate::handover::state::{self, State, StateError};
use crate::handover::{self, Resumable, descriptor};
use crate::hooks::Hooks;
use crate::mount::{Mount, Session};
use crate::sys;
use crate::trust::Trust;
use crate::uevent::Uevents;

/// How a program is called that is to take over.
#[derive(Debug, Clone, Default)]
pub struct Order {
    /// The number of the descriptor that the state is in.
    pub state: RawFd,
    /// The mount point.
    pub mount: Option<PathBuf>,
    /// Only find out whether it can.
    pub rehearse: bool,
    /// The number of the descriptor of the program that ran before.
    pub predecessor: Option<RawFd>,
    /// This is the program that ran before: why the other one failed.
    pub returned: Option<String>,
}

/// A state that was understood, and everything in it that can be built without touching the mount.
struct Prepared {
    state: State,
    mount: Resumable,
    trust: Trust,
    log: Option<File>,
    /// A virtio-serial port to the host.
    port: Option<File>,
    uevents: Option<Uevents>,
    listener: UnixListener,
    asker: Option<UnixStream>,
}

/// A mount that somebody answers for again.
struct Begun {
    state: State,
    mount: Mount,
    session: Session,
    before: Option<(Arc<Generation>, Desired)>,
    trust: Trust,
    log: Option<File>,
    port: Option<File>,
    uevents: Option<Uevents>,
    listener: UnixListener,
    asker: Option<UnixStream>,
    signals: SigSet,
}

/// Takes over a mount from another program, or from this one before an exec; returns when the mount has
/// ended.
///
/// # Errors
/// [`DaemonError`]. Where nothing was done yet and there is a program that ran before, this process
/// becomes that one again.
pub fn take_over(order: &Order) -> Result<(), DaemonError> {
    // A mistake must not take the mount along.
    let prepared = std::panic::catch_unwind(|| prepare(order)).unwrap_or_else(|_| {
        Err(DaemonError::TakeOver("a panic: this is a mistake in the program".to_owned()))
    });
    if order.rehearse {
        let Prepared { state, mount: Resumable { shared, connection, .. }, .. } = prepared?;
        let ffs = Ffs(Arc::new(shared));
        handover::session(ffs, &connection.fuse, &state.connection.agreed, crate::mount::config())
            .map_err(|error| DaemonError::TakeOver(format!("the session cannot be begun: {error}")))?;
        return say_able().map_err(|source| DaemonError::System { what: "cannot answer", source });
    }
    let begun = prepared.and_then(|prepared| {
        let Prepared { state, mount, trust, log, port, uevents, listener, asker } = prepared;
        let Resumable { shared, inodes, connection, before } = mount;
        let point = PathBuf::from(&state.point);
        let signals = block_signals()?;
        // From here on somebody answers; nothing before it has read anything.
        let (mount, session) = Mount::resume(point, shared, inodes, connection)?;
        Ok(Begun { state, mount, session, before, trust, log, port, uevents, listener, asker, signals })
    });
    match (begun, order.predecessor) {
        (Ok(begun), _) => resume(begun, order),
        (Err(error), Some(predecessor)) => {
            let source = go_back(predecessor, order.state, &error.to_string());
            tracing::error!(%error, %source, "the mount is lost: the program before cannot be had again");
            Err(error)
        }
        (Err(error), None) => Err(error),
    }
}

fn prepare(order: &Order) -> Result<Prepared, DaemonError> {
    let wrong = |error: StateError| DaemonError::TakeOver(error.to_string());
    let bytes = (|| {
        use std::os::unix::fs::FileExt;
        let file = File::from(sys::inherited(order.state)?);
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or_default()];
        // Not from where the one stopped that wrote or read it: the position is shared.
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    })();
    let bytes = bytes.map_err(|source| wrong(StateError::Io { what: "the state cannot be read", source }))?;
    let state = State::read(&bytes).map_err(wrong)?;
    let point = PathBuf::from(&state.point);
    if order.mount.as_ref().is_some_and(|mount| *mount != point) {
        return Err(wrong(StateError::Wrong("it is of another mount than the one that was named")));
    }
    let trust =
        Trust::resume(&state.daemon.config, &point, &state.daemon.trust).map_err(DaemonError::TakeOver)?;
    let mount = handover::unpack(&state.connection, &state.tree, &state.kernel).map_err(wrong)?;
    let State { daemon, .. } = &state;
    let port = daemon.ack.as_ref().and_then(|ack| ack.port.as_ref());
    let optional = |number: Option<RawFd>| number.map(descriptor).transpose().map_err(wrong);
    Ok(Prepared {
        log: optional(daemon.log)?.map(File::from),
        port: optional(port.map(|port| port.fd))?.map(File::from),
        uevents: optional(daemon.uevents)?.map(Uevents::resume),
        listener: descriptor(daemon.control.listener).map_err(wrong)?.into(),
        asker: optional(daemon.control.asker)?.map(UnixStream::from),
        state,
        mount,
        trust,
    })
}

fn resume(begun: Begun, order: &Order) -> Result<(), DaemonError> {
    let Begun { state, mount, session, before, trust, log, port, uevents, listener, asker, signals } = begun;
    let inherited = state.descriptors();
    let State { version: from, point, connection, daemon, tree, kernel } = state;
    let point = PathBuf::from(&point);
    let (now_ns, _) = sys::clocks().unwrap_or_default();
    let pause_us = now_ns.saturating_sub(daemon.stopped_ns) / 1000;
    // Large, and nobody was to wait for that.
    drop((tree, kernel));

    let trust = Arc::new(trust);
    let log = Arc::new(Log::resume(log));
    let uevents = uevents.map(Arc::new);
    let before = before.map(|(generation, desired)| Before { generation, desired });
    let Parts { tx, rx, works, doors } = Parts::new();
    // Nobody can go back any more: better no mount than one that nobody can do anything about.
    let unmount_on = |source| {
        mount.abandon();
        DaemonError::System { what: "cannot go on after another program", source }
    };
    let mut abilities = Vec::new();
    let mut reduced = Vec::new();
    match &uevents {
        Some(_) => abilities.push("device_events".to_owned()),
        None => reduced.push(NO_UEVENTS.to_owned()),
    }
    let followed = super::follow(&tx, &mut abilities, &mut reduced);
    let teller = ack::resume(&daemon.config.ack, &log, daemon.ack.as_ref().map(|acks| (acks, port)))
        .map_err(unmount_on)?;
    let path = PathBuf::from(&daemon.control.path);
    let server = Server::resume(&path, listener, doors.clone(), super::to_loop(&tx)).map_err(unmount_on)?;
    let waiting = daemon
        .hooks
        .waiting
        .map(|(generation, paths)| (generation, paths.into_iter().map(|path| path.0.into_vec()).collect()));
    let unread = daemon.unread;
    let (hooks, outcomes) = (daemon.config.hooks.clone(), daemon.hooks.outcomes);
    let hooks =
        Hooks::start(hooks, &point, log.clone(), works.clone(), outcomes, waiting).map_err(unmount_on)?;
    mount
        .watch_table(connection.device, super::hear_of_mounts(&tx, &log))
        .and_then(|gone| threads::start(&tx, &doors, &signals, session, uevents.clone(), gone))
        .map_err(unmount_on)?;
    super::hear_of_stale(&mount, &tx);
    take_commands(&mount, &tx, &doors);
    let now = Instant::now();
    let due = daemon.due.into_iter().map(|(left, due)| {
        let due = match due {
            state::Due::Retry(device) => Due::Retry(device),
            state::Due::DropLayer { layer, device } => Due::DropLayer { layer, device },
            state::Due::Poll => Due::Poll,
        };
        (now.checked_add(Duration::from_millis(left)).unwrap_or(now), due)
    });
    let hold = |(layer, (generation, digest))| (layer, Hold { generation, digest });
    let mut daemon = Daemon {
        mount,
        number: connection.device,
        trust,
        limit: super::limit(&daemon.config),
        desired: (&daemon.desired).into(),
        config: daemon.config,
        before,
        held: daemon.held.into_iter().map(hold).collect(),
        refused: daemon.refused,
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
        taken_over: daemon.taken_over,
        devices: daemon.devices.into_iter().map(|(name, device)| (name, Device::resume(device))).collect(),
        due: due.collect(),
        starting: None,
        followed,
        facts: HashMap::new(),
        abilities,
        reduced,
        stopping: false,
    };
    // The numbers are the process's own from here on: nobody goes back.
    let more = [Some(order.state), order.predecessor];
    let numbers: BTreeSet<RawFd> = inherited.into_iter().chain(more.into_iter().flatten()).collect();
    numbers.into_iter().for_each(sys::drop_inherited);
    daemon.taken_up(from, pause_us, order.returned.as_deref(), asker);
    for device in unread {
        daemon.read(&device);
    }
    let stale = daemon.mount.take_stale();
    daemon.follow_again(stale);
    daemon.serve(rx)
}

impl Daemon {
    /// Tells what has happened.
    fn taken_up(&mut self, from: String, pause_us: u64, returned: Option<&str>, asker: Option<UnixStream>) {
        let response = match returned {
            None => {
                self.taken_over += 1;
                let version = env!("CARGO_PKG_VERSION").to_owned();
                self.log.write(Step::TakenOver { version, from, pause_us });
                Response::Status(Box::new(self.status()))
            }
            Some(reason) => {
                self.log.write(Step::NotTakenOver { reason: reason.to_owned() });
                Response::Error(format!("nothing has changed: the other program failed: {reason}"))
            }
        };
        if let Some(mut asker) = asker
            && let Err(error) = respond(&mut asker, &response)
        {
            tracing::debug!(%error, "whoever asked for the upgrade has gone");
        }
    }

    /// Reads directories, and follows them anew: what changed in between is found. `all` reads those too that
    /// are not followed.
    fn follow_again(&mut self, all: bool) {
        self.read_again(|spec| matches!(spec.source, Source::Dir(_)) && (spec.watch || all));
    }
}
