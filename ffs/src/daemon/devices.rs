//! Drives: when they are read, and what becomes of what they hold.
//!
//! A device that goes does not take its layer with it: a recontextualization detaches one device and
//! attaches the next, under any name, and programs must not see a hole between the two. The layer
//! stays until an image of its name takes its place or [`Config::keep_removed`] has passed.
//!
//! [`Config::keep_removed`]: crate::config::Config::keep_removed

use std::collections::BTreeSet;
use std::path::Path;

use ctx_format::check::Claim;

use super::report::digest;
use super::{Daemon, Due, Message};
use crate::config::{Source, matches};
use crate::dirs::same;
use crate::events::{Log, Step};
use crate::follow::{Verdict, backoff, judge};
use crate::handover::state;
use crate::layer::Layer;
use crate::layer::load::{self, Asked, LoadError};
use crate::memory::Limit;
use crate::sealed::Sealed;
use crate::trust::Trust;
use crate::uevent::{Action, Uevent};

/// How often the kernel asks a drive for a change of medium, in milliseconds. It polls emulated
/// drives too; udev's default of 2000 would be most of the time to visibility.
const EVENTS_POLL_MS: &str = "100";

/// What is known of a drive.
#[derive(Default)]
pub(super) struct Device {
    /// A thread is reading it.
    reading: bool,
    /// Something happened meanwhile: read it again.
    again: bool,
    attempt: u32,
    /// What came of it last.
    pub(super) state: String,
}

impl Device {
    /// A thread is reading it.
    pub(super) fn reading(&self) -> bool {
        self.reading
    }

    /// What another program knew of it; nobody reads it.
    pub(super) fn resume(state: state::Device) -> Self {
        Self { attempt: state.attempt, state: state.state, ..Self::default() }
    }

    /// What [`Device::resume`] takes.
    pub(super) fn to_state(&self) -> state::Device {
        state::Device { attempt: self.attempt, state: self.state.clone() }
    }
}

/// Why a device gave no layer.
pub(super) struct Failure {
    reason: String,
    /// Another try may help.
    passes: bool,
    /// There would have been room but for what is held already.
    memory: bool,
}

impl Daemon {
    /// What a device is to become, if it is one that matters: the layer's name and rank where they
    /// are given.
    fn wanted(&self, device: &str) -> Option<(Option<&str>, Option<u16>)> {
        let explicit = self.desired.layers.iter().find(|spec| match &spec.source {
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

    pub(super) fn look_at_all(&mut self, why: &str) {
        let explicit = self.desired.layers.iter().filter_map(|spec| match &spec.source {
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

    pub(super) fn uevent(&mut self, event: &Uevent) {
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

    pub(super) fn arrived(&mut self, device: &str) {
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

    pub(super) fn read(&mut self, device: &str) {
        let Some((name, priority)) = self.wanted(device) else { return };
        let Some(inside) = self.works.try_enter() else {
            // Another program is to take over: it reads it.
            self.unread.insert(device.to_owned());
            return;
        };
        let (name, limit) = (name.map(str::to_owned), self.limit);
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
            let result = read_device(&device, name.as_deref(), priority, &limit, attempt, &trust, &log);
            let _ = tx.send(Message::Loaded { device, result });
            drop(inside);
        };
        if let Err(error) = std::thread::Builder::new().name("read-device".to_owned()).spawn(work) {
            tracing::error!(%error, "cannot start a thread to read a device");
        }
    }

    pub(super) fn loaded(&mut self, device: &str, result: Result<Layer, Failure>) {
        // Removed while it was read: what was read is still whole and verified, and taken.
        let (again, attempt) = match self.devices.get_mut(device) {
            Some(state) => {
                state.reading = false;
                (std::mem::take(&mut state.again), state.attempt)
            }
            None => (false, u32::MAX),
        };
        // Two that were read at the same time may have taken the room twice.
        let result = match result {
            Ok(_) if self.limit.is_exceeded() => {
                let reason =
                    format!("there is no room for it within the limit of {} bytes", self.limit.total);
                Err(Failure { reason, passes: false, memory: true })
            }
            other => other,
        };
        let again = again || {
            let short = result.as_ref().is_err_and(|failure| failure.memory);
            // Room before a way back.
            short && self.before.take().is_some()
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
        let layer = self.ranked(layer);
        if let Some(hold) = self.held.get(&layer.name)
            && hold.covers(layer.generation, || digest(&layer))
        {
            let reason = format!(
                "this image of `{}` was rolled back: `ffs reload` or a newer one ends that",
                layer.name
            );
            self.log.write(Step::Refused { origin: layer.origin, reason: reason.clone() });
            return reason;
        }
        let shown = self.mount.current();
        let stay: Vec<&Layer> =
            shown.layers.iter().filter(|have| have.name != layer.name).map(|have| &**have).collect();
        if let Err(rejected) = self.trust.may_show(&[&layer], &stay) {
            // Another of its class is shown, or was accepted while this one was read.
            let (origin, reason) = (layer.origin, rejected.to_string());
            self.log.write(Step::Refused { origin, reason: reason.clone() });
            return reason;
        }
        let have = shown.layers.iter().find(|have| have.name == layer.name);
        match judge(have.map(|have| &**have), &layer, self.config.accept_older) {
            Verdict::Take => {
                let state = match layer.generation {
                    Some(generation) => format!("layer `{}`, generation {generation}", layer.name),
                    None => format!("layer `{}`", layer.name),
                };
                self.held.remove(&layer.name);
                if have.is_some_and(|have| same(have, &layer)) {
                    // No new generation, and yet an answer to whoever follows this reading.
                    self.log.write(Step::Visible {
                        generation: shown.number,
                        layer: layer.name.clone(),
                        layer_generation: layer.generation,
                        changes: 0,
                    });
                }
                self.show(vec![layer]).into_values().next().unwrap_or(state)
            }
            Verdict::Refuse(reason) => {
                self.log.write(Step::Refused { origin: layer.origin, reason: reason.clone() });
                reason
            }
        }
    }
}

/// The kernel's name of a device file: `/dev/cdrom` may be a link to `/dev/sr0`.
pub(super) fn device_name(path: &Path) -> Option<String> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    path.file_name()?.to_str().map(str::to_owned)
}

fn read_device(
    device: &str,
    name: Option<&str>,
    priority: Option<u16>,
    limit: &Limit,
    attempt: u32,
    trust: &Trust,
    log: &Log,
) -> Result<Layer, Failure> {
    let path = Path::new("/dev").join(device);
    log.write(Step::Reading { device: device.to_owned(), attempt });
    let origin = format!("device:{}", path.display());
    let claimed = |claim: Option<&Claim>| {
        if let Some(Claim { class, generation }) = claim.cloned() {
            log.write(Step::Claimed { device: device.to_owned(), class, generation });
        }
    };
    let read = |image: &Sealed| {
        log.write(Step::Read { device: device.to_owned(), bytes: image.bytes().len() as u64 });
    };
    let asked = Asked { name, priority, origin: &origin, trust };
    let (layer, claim) = load::load(&path, &asked, limit, read).map_err(|error| {
        if let Some(reason) = error.no_room(limit) {
            return Failure { passes: false, reason, memory: true };
        }
        let passes = match &error {
            LoadError::Device(error) => error.passes(),
            LoadError::Image(error) => {
                claimed(error.claim());
                // A disc that was read while it was being changed gives a damaged image once.
                attempt < 3
            }
        };
        Failure { passes, reason: error.to_string(), memory: false }
    })?;
    claimed(claim.as_ref());
    log.write(Step::Verified {
        device: device.to_owned(),
        layer: layer.name.clone(),
        generation: layer.generation,
    });
    Ok(layer)
}
