//! What the daemon does, as it does it: one JSON line a step, stamped on both clocks.
//!
//! The bench measures from these lines, so a step is stamped when it happens and not when the line
//! is written.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use ctx_format::ClassName;
use ctx_io::jsonl::Appender;
use serde::{Deserialize, Serialize};

use crate::sys;

/// One line of the event log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds: to measure between lines.
    pub mono_ns: u64,
    /// `CLOCK_REALTIME` in nanoseconds since 1970: to relate to other machines.
    pub real_ns: u64,
    /// What happened.
    #[serde(flatten)]
    pub step: Step,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Mounted.
    Mounted {
        /// The mount point.
        point: String,
    },
    /// Somebody had made the mount, or a copy of it, writable; it is read-only again.
    MadeReadOnly {
        /// Where.
        point: String,
    },
    /// Everything that was there at the start is shown.
    Ready,
    /// The kernel told of a device.
    Uevent {
        /// Its name, like `sr0`.
        device: String,
        /// `add`, `remove`, `media_change`, `change`, `eject_request`; `coldplug`, `lost_events` or
        /// `reload` when all devices are looked at.
        action: String,
    },
    /// Reading a device begins.
    Reading {
        /// Its name.
        device: String,
        /// 1 for the first try after an event.
        attempt: u32,
    },
    /// A device could not be read, for now.
    NotReady {
        /// Its name.
        device: String,
        /// The try.
        attempt: u32,
        /// Why.
        reason: String,
    },
    /// The volume is in memory and the device closed.
    Read {
        /// The device.
        device: String,
        /// Bytes of the volume.
        bytes: u64,
    },
    /// What the manifest on a device claims, before it is verified: for messages only.
    Claimed {
        /// The device.
        device: String,
        /// The class.
        class: ClassName,
        /// The generation.
        generation: u64,
    },
    /// The image is what its manifest says (or is a plain image).
    Verified {
        /// The device.
        device: String,
        /// The layer that it becomes.
        layer: String,
        /// The manifest's generation.
        generation: Option<u64>,
    },
    /// An image or layer was refused; what was shown before stays.
    Refused {
        /// The device or path.
        origin: String,
        /// Why.
        reason: String,
    },
    /// Programs that look from now on see a new generation.
    Visible {
        /// The mount's generation.
        generation: u64,
        /// The layer whose change caused it.
        layer: String,
        /// The generation that the layer's manifest states.
        layer_generation: Option<u64>,
        /// Number of changed paths.
        changes: usize,
    },
    /// A hook ended.
    Hook {
        /// Its name.
        hook: String,
        /// The mount's generation that it ran for.
        generation: u64,
        /// How long it ran, in milliseconds.
        millis: u64,
        /// `ok`, `exit N`, `signal N`, `timeout`, or why it did not start.
        result: String,
    },
    /// All hooks for a generation ended.
    HooksDone {
        /// The mount's generation.
        generation: u64,
    },
    /// A device is gone; its layer stays for now.
    DeviceGone {
        /// Its name.
        device: String,
    },
    /// Another program took over, with everything that was mounted and open.
    TakenOver {
        /// Its version.
        version: String,
        /// The version of the one before.
        from: String,
        /// How long requests of programs waited at most, in microseconds.
        pause_us: u64,
    },
    /// Another program was to take over and could not; nothing has changed.
    NotTakenOver {
        /// Why.
        reason: String,
    },
    /// Unmounted.
    Unmounted,
}

/// Sees every step as it happens.
type Observer = Box<dyn Fn(&Step) + Send + Sync>;

/// The file that events are appended to.
struct Sink {
    file: Appender,
    /// Why the last one could not be.
    unwritten: Option<String>,
}

/// Where events go.
#[derive(Default)]
pub struct Log {
    file: Option<Mutex<Sink>>,
    observer: OnceLock<Observer>,
}

impl Log {
    /// Appends to a file, also to one that ends within a line ([`ctx_io::jsonl`]).
    ///
    /// # Errors
    /// What opening it returns; [`io::ErrorKind::InvalidInput`] for a pipe and all else that is no regular file or
    /// character device.
    pub fn to_file(path: &Path) -> io::Result<Self> {
        Ok(Self::with(Some(Appender::open(path, 0o666)?)))
    }

    /// Goes on in a file that another program has opened, if there is one.
    pub(crate) fn resume(file: Option<File>) -> Self {
        Self::with(file.map(Appender::resume))
    }

    fn with(file: Option<Appender>) -> Self {
        let sink = file.map(|file| Mutex::new(Sink { file, unwritten: None }));
        Self { file: sink, observer: OnceLock::new() }
    }

    fn sink(&self) -> Option<MutexGuard<'_, Sink>> {
        self.file.as_ref().map(|sink| sink.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What does not hold, for the status: until an event can be written again.
    pub(crate) fn reduced(&self) -> Option<String> {
        let error = self.sink()?.unwritten.clone()?;
        Some(format!("the event log cannot be written ({error}): what happens meanwhile is not in it"))
    }

    /// The file's descriptor.
    pub(crate) fn descriptor(&self) -> Option<RawFd> {
        self.sink().map(|sink| sink.file.descriptor())
    }

    /// Lets somebody see every step from now on, on the thread on which it happens. There can be one.
    pub fn observe(&self, observer: impl Fn(&Step) + Send + Sync + 'static) {
        let set = self.observer.set(Box::new(observer));
        debug_assert!(set.is_ok(), "one observer");
    }

    /// Stamps a step and writes it, as one write(2) so that lines never mix, and in the order of the
    /// stamps.
    pub fn write(&self, step: Step) {
        let sink = self.sink();
        // These clocks always exist on Linux.
        let (mono_ns, real_ns) = sys::clocks().unwrap_or_default();
        let event = Event { mono_ns, real_ns, step };
        tracing::info!(target: "ffs::event", step = ?event.step);
        if let Some(mut sink) = sink {
            sink.unwritten = sink.file.append(&event).err().map(|error| {
                tracing::warn!(%error, "cannot write to the event log");
                error.to_string()
            });
        }
        if let Some(observer) = self.observer.get() {
            observer(&event.step);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_swallows_no_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        Log::to_file(&path).unwrap().write(Step::Ready);
        // A power cut in the middle of a write.
        let mut text = std::fs::read(&path).unwrap();
        text.extend_from_slice(b"{\"mono_ns\":12");
        std::fs::write(&path, text).unwrap();
        Log::to_file(&path).unwrap().write(Step::Unmounted);
        // And handed to another program after a write that failed half way.
        let file = File::options().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut &file, b"{\"mono").unwrap();
        Log::resume(Some(file)).write(Step::Ready);
        let log = ctx_io::jsonl::read::<Event>(&path).unwrap();
        let steps: Vec<Step> = log.records.into_iter().map(|event| event.step).collect();
        assert_eq!(steps, [Step::Ready, Step::Unmounted, Step::Ready]);
        assert_eq!(log.damaged.iter().map(|damaged| damaged.line).collect::<Vec<_>>(), [2, 4]);
    }

    #[test]
    fn lines_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.jsonl");
        let log = Log::to_file(&path).unwrap();
        let step = Step::Visible {
            generation: 3,
            layer: "infrastructure".into(),
            layer_generation: Some(7),
            changes: 2,
        };
        log.write(step.clone());
        log.write(Step::Ready);
        let text = std::fs::read_to_string(&path).unwrap();
        let events: Vec<Event> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(events[0].step, step);
        assert!(text.starts_with("{\"mono_ns\":") && text.contains("\"step\":\"visible\""), "{text}");
        assert!(events[0].mono_ns > 0 && events[0].mono_ns <= events[1].mono_ns);
    }
}
