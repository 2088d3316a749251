//! Another program takes over: `ffs upgrade`.
//!
//! The loop goes on until nobody has anything in its hands: first the round of hooks that runs and the
//! drives that are being read come to their end and no other begins, then nothing is taken in any more
//! (requests, signals, events of devices: they wait in their sockets). What was passed on by then is
//! handled. Then the loop has everything, and hands it over ([`handover`](crate::handover)).
//!
//! Directories are followed anew by the successor and then read again: a change that falls between is
//! found by that.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

use super::{Daemon, Due, Message};
use crate::control::Response;
use crate::events::Step;
use crate::handover::program::{Program, written};
use crate::handover::state::{self, Bytes, Fd, State};
use crate::handover::{self, drain};

/// Hooks and drives are waited for so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// A request of a program is waited for so long: it is answered from memory, or from a directory's disk.
const DRAIN: Duration = Duration::from_secs(5);

/// An upgrade that is under way.
pub(super) struct Upgrade {
    program: Option<PathBuf>,
    /// Who asked: told by this program when it fails, by the next when it does not.
    answer: Sender<Response>,
    asker: OwnedFd,
}

impl Daemon {
    /// Begins to come to rest.
    pub(super) fn upgrade(
        &mut self,
        program: Option<PathBuf>,
        answer: Sender<Response>,
        asker: Option<OwnedFd>,
    ) {
        let refused = match (asker, self.stopping, &self.upgrade) {
            (_, true, _) => "it is ending",
            (_, _, Some(_)) => "another upgrade is under way",
            (None, ..) => "it was not asked for over the control socket",
            (Some(asker), false, None) => {
                self.upgrade = Some(Upgrade { program, answer, asker });
                self.works.close();
                self.at(PATIENCE, Due::Upgrade);
                return;
            }
        };
        let _ = answer.send(Response::Error(format!("no upgrade: {refused}")));
    }

    /// Hands over once everything is at rest. Whether there is something to handle before.
    pub(super) fn try_upgrade(&mut self, rx: &Receiver<Message>) -> bool {
        if self.upgrade.is_none() || self.starting.is_some() || !self.works.close() || !self.doors.close() {
            return false;
        }
        match rx.try_recv() {
            // The end is the loop's to see.
            Ok(message @ Message::SessionEnded(_)) => {
                self.give_up("the mount has ended");
                let _ = self.tx.send(message);
                false
            }
            Ok(message) => {
                self.handle(message);
                true
            }
            Err(_) => {
                if let Some(upgrade) = &self.upgrade {
                    let failed = self.hand_over(upgrade);
                    self.give_up(&failed);
                }
                false
            }
        }
    }

    /// What is not at rest, for people.
    pub(super) fn restless(&self) -> String {
        let reading: Vec<&str> = self
            .devices
            .iter()
            .filter(|(_, device)| device.reading())
            .map(|(name, _)| name.as_str())
            .collect();
        if !reading.is_empty() {
            return format!("{} is being read", reading.join(", "));
        }
        let what = if self.works.close() { "a request is under way" } else { "a hook runs" };
        what.to_owned()
    }

    /// Goes on as if nothing had been asked.
    pub(super) fn give_up(&mut self, reason: &str) {
        let Some(upgrade) = self.upgrade.take() else { return };
        self.due.retain(|(_, due)| *due != Due::Upgrade);
        self.log.write(Step::NotTakenOver { reason: reason.to_owned() });
        self.doors.open();
        self.works.open();
        for device in std::mem::take(&mut self.unread) {
            self.read(&device);
        }
        let _ = upgrade.answer.send(Response::Error(format!("nothing has changed: {reason}")));
    }

    /// Becomes the successor; returns why not.
    fn hand_over(&self, upgrade: &Upgrade) -> String {
        let mut began = crate::sys::clocks().unwrap_or_default().0;
        let asker = upgrade.asker.as_raw_fd();
        let program = match Program::find(upgrade.program.clone(), self.number) {
            Ok(program) => program,
            Err(error) => return error.to_string(),
        };
        // No switch comes between: this is the thread that makes them.
        if !self.mount.all_told(PATIENCE) {
            return "watchers are still being told of a switch: try again".to_owned();
        }
        // Nor does the kernel wait for an answer to a refused write, which it would do uninterruptibly.
        let _refused = self.mount.parts().0.refused.rest();
        // The thread that tells the host rests until this is dropped.
        let rest = self.teller.as_ref().and_then(crate::ack::Teller::rest);
        let acks = rest.as_ref().map(|(acks, _)| acks);
        let point = self.mount.point();
        let root = match self.root() {
            Ok(root) => root,
            Err(error) => return format!("cannot open `{}`: {error}", point.display()),
        };
        let aside = self.mount.device().as_raw_fd();
        let fuse = match drain::connections(aside) {
            Ok(numbers) if !numbers.is_empty() => numbers[0],
            Ok(_) => return "the connection with the kernel is gone".to_owned(),
            Err(error) => return format!("cannot list descriptors: {error}"),
        };
        let (state, _files) = self.state(fuse, asker, acks, began);
        let able = written(&state).and_then(|file| program.rehearse(&file, state.descriptors(), point));
        let able = match able {
            Ok(able) => able,
            Err(error) => return error.to_string(),
        };
        tracing::info!(version = able.version, "another program takes over");
        began = crate::sys::clocks().unwrap_or_default().0;
        // From then on nobody but those who are stopped next has a request in his hands.
        let readers = &self.mount.parts().0.readers;
        let stopped = if readers.finish(DRAIN) {
            drain::stop(root, aside, DRAIN)
        } else {
            Err(drain::DrainError::Busy(DRAIN))
        };
        let failed = stopped.map_or_else(
            |error| error.to_string(),
            |stopped| {
                let fuse = stopped.device().map_or(fuse, |device| device.as_raw_fd());
                let (state, _files) = self.state(fuse, asker, acks, began);
                let failed = match written(&state) {
                    Ok(file) => program.become_it(&file, state.descriptors(), point),
                    Err(error) => error,
                };
                stopped.resume();
                failed.to_string()
            },
        );
        readers.go_on();
        failed
    }

    /// The root of the file system, whatever else is mounted on its place now.
    fn root(&self) -> io::Result<OwnedFd> {
        if let Some(root) = self.mount.with_private(|private| private.as_ref().ok()?.root().upgrade()) {
            return root.try_clone();
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(self.mount.point(), flags, Mode::empty())?;
        if fstat(&root)?.st_dev != self.number {
            return Err(io::Error::other("something else is mounted there"));
        }
        Ok(root)
    }

    /// The state, and descriptors that it names and nobody else keeps open.
    fn state(
        &self,
        fuse: Fd,
        asker: Fd,
        acks: Option<&state::Acks>,
        stopped_ns: u64,
    ) -> (State, Vec<OwnedFd>) {
        use std::os::unix::ffi::OsStrExt;
        let before = self.before.as_ref().map(|before| (&*before.generation, &before.desired));
        let (connection, tree, kernel, files) = handover::pack(&self.mount, before, fuse, self.number);
        let now = Instant::now();
        let due = self.due.iter().filter_map(|(at, due)| {
            let due = match due {
                Due::Retry(device) => state::Due::Retry(device.clone()),
                Due::DropLayer { layer, device } => {
                    state::Due::DropLayer { layer: layer.clone(), device: device.clone() }
                }
                Due::Poll => state::Due::Poll,
                Due::Ready | Due::Upgrade => return None,
            };
            let left = at.saturating_duration_since(now).as_millis();
            Some((u64::try_from(left).unwrap_or(u64::MAX), due))
        });
        let held =
            self.held.iter().map(|(layer, hold)| (layer.clone(), (hold.generation, hold.digest.clone())));
        let devices = self.devices.iter().map(|(name, device)| (name.clone(), device.to_state()));
        let waiting = self
            .hooks
            .waiting()
            .map(|(generation, paths)| (generation, paths.iter().map(Bytes::from).collect()));
        let state = State {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            point: self.mount.point().as_os_str().as_bytes().into(),
            connection,
            tree,
            kernel,
            daemon: state::Daemon {
                config: self.config.clone(),
                desired: (&self.desired).into(),
                held: held.collect(),
                refused: self.refused.clone(),
                devices: devices.collect(),
                unread: self.unread.iter().cloned().collect(),
                due: due.collect(),
                hooks: state::Hooks { outcomes: self.hooks.outcomes(), waiting },
                trust: self.trust.to_state(),
                log: self.log.descriptor(),
                uevents: self.uevents.as_ref().map(|uevents| uevents.as_fd().as_raw_fd()),
                control: state::Control {
                    path: self.server.path().as_os_str().as_bytes().into(),
                    listener: self.server.listener().as_raw_fd(),
                    asker: Some(asker),
                },
                ack: acks.cloned(),
                taken_over: self.taken_over,
                stopped_ns,
            },
        };
        (state, files)
    }
}
