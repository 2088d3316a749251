//! The events of a trial, in the order in which the bench saw them, and how they get into the run's log.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use ctx::libvirt::{JobStats, Lifecycle};
use ctx::recontext::Record;
use serde::{Deserialize, Serialize};

use super::beats::Beats;
use super::clock::Reading;
use super::moment;
use super::pings::Pings;
use super::stream::{self, Beaten, Pinged};
use crate::plan::Trial;
use crate::store::{RunFolder, StoreError, StoredRun, StreamWritten, kind};

/// Something that happened in a trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// When it happened, or the news of it arrived: nanoseconds of the bench's `CLOCK_MONOTONIC`.
    pub at_ns: u64,
    /// What.
    #[serde(flatten)]
    pub what: What,
}

/// The names of [`What`] in the log.
pub const EVENTS: [&str; 10] = [
    "unsteady",
    "migrate_called",
    "migrate_returned",
    "lifecycle",
    "iteration",
    "job_completed",
    "requested",
    "recontextualized",
    "clock",
    "missed",
];

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum What {
    /// The guest's heartbeat was not steady when the trial began: the runner was busy with something else.
    Unsteady,
    /// Libvirt was asked to migrate the guest.
    MigrateCalled {
        /// The source's host.
        from: String,
        /// The destination's host.
        to: String,
        /// Whether libvirt's driver keeps statistics of the job.
        accounts: bool,
    },
    /// That call returned.
    MigrateReturned {
        /// What went wrong.
        error: Option<String>,
    },
    /// Libvirt of a host told of a change in the guest's life.
    Lifecycle {
        /// The host.
        host: String,
        /// What changed, in libvirt's words: `suspended`, `resumed`, `stopped`, ….
        change: String,
        /// Why, in libvirt's words: `migrated`, ….
        why: String,
    },
    /// The source sends the guest's memory for the n-th time.
    Iteration {
        /// The host.
        host: String,
        /// Which time, from 1.
        pass: i32,
    },
    /// Libvirt's statistics of the job when it was done.
    JobCompleted {
        /// The host.
        host: String,
        /// The statistics.
        stats: Box<JobStats>,
    },
    /// A host's recontextualizer was asked for a run.
    Requested {
        /// The host.
        host: String,
    },
    /// A recontextualizer wrote down one of its runs.
    Recontextualized {
        /// The host.
        host: String,
        /// Its own record, with time stamps of the host's clocks.
        record: Box<Record>,
    },
    /// A machine's clock was read.
    Clock {
        /// The machine.
        machine: String,
        /// The reading.
        reading: Reading,
    },
    /// Something that was waited for did not come; the moment is the end of the wait.
    Missed {
        /// What was waited for.
        wanted: Wanted,
        /// What was seen instead, in one sentence.
        reason: String,
    },
}

/// What a trial waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wanted {
    /// A recontextualizer's record.
    Record,
    /// New content, read by a program in the guest.
    Content,
}

impl What {
    /// The words for a change in a domain's life.
    pub fn lifecycle(host: &str, change: Lifecycle) -> What {
        let (change, why) = match change {
            Lifecycle::Started(why) => ("started", word(why)),
            Lifecycle::Suspended(why) => ("suspended", word(why)),
            Lifecycle::Resumed(why) => ("resumed", word(why)),
            Lifecycle::Stopped(why) => ("stopped", word(why)),
            Lifecycle::Crashed(_) => ("crashed", String::new()),
            other => ("other", word(other)),
        };
        What::Lifecycle { host: host.to_owned(), change: change.to_owned(), why }
    }
}

/// `SomeName` as `some name`.
fn word(name: impl std::fmt::Debug) -> String {
    let mut out = String::new();
    for letter in format!("{name:?}").chars() {
        if letter.is_uppercase() && !out.is_empty() && !out.ends_with(['(', ' ']) {
            out.push(' ');
        }
        out.extend(letter.to_lowercase());
    }
    out
}

/// Everything that was seen of a trial.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trace {
    /// Events, in order.
    pub observations: Vec<Observation>,
    /// The guest's heartbeats.
    pub beats: Vec<Beaten>,
    /// The guest's answers to pings.
    pub pings: Vec<Pinged>,
}

impl Trace {
    /// The first observation that `pick` takes, with its moment.
    pub fn first<'a, T>(&'a self, pick: impl Fn(&'a What) -> Option<T>) -> Option<(u64, T)> {
        self.observations.iter().find_map(|seen| Some((seen.at_ns, pick(&seen.what)?)))
    }

    /// Whether the guest's heartbeat was not steady when the trial began.
    pub fn is_unsteady(&self) -> bool {
        self.observations.iter().any(|seen| seen.what == What::Unsteady)
    }

    /// Reads what a stored run has of its trials, by their order: of each the last attempt that came to its end.
    ///
    /// # Errors
    /// An event or a stream is damaged.
    pub fn all(run: &StoredRun) -> Result<BTreeMap<u32, Trace>, StoreError> {
        let mut traces: BTreeMap<u32, Trace> = BTreeMap::new();
        let mut open: BTreeMap<u32, Trace> = BTreeMap::new();
        for event in &run.events {
            match event.kind.as_str() {
                // What began before and did not end was cut off.
                kind::TRIAL_STARTED | kind::RUN_RESUMED => open.clear(),
                kind::TRIAL_ENDED => {
                    let order = event.payload.get("order").and_then(serde_json::Value::as_u64);
                    let ended = order.and_then(|order| u32::try_from(order).ok());
                    // A trial without observations has no trace.
                    traces.extend(ended.and_then(|order| open.remove_entry(&order)));
                    open.clear();
                }
                kind::OBSERVED => {
                    let Observed { order, observation } = event.read(&run.path)?;
                    open.entry(order).or_default().observations.push(observation);
                }
                kind::STREAM => {
                    let StreamWritten { order, name, .. } = event.read(&run.path)?;
                    let trace = open.entry(order).or_default();
                    match name.as_str() {
                        stream::BEATS => trace.beats = stream::read(&run.stream(event)?)?,
                        stream::PINGS => trace.pings = stream::read(&run.stream(event)?)?,
                        // Of a later bench.
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        for trace in traces.values_mut() {
            trace.sort();
        }
        Ok(traces)
    }

    /// What is told of later, such as the moment of a call, stands where it belongs.
    fn sort(&mut self) {
        self.observations.sort_by_key(|seen| seen.at_ns);
    }
}

/// An observation as the log has it.
#[derive(Debug, Serialize, Deserialize)]
struct Observed {
    order: u32,
    #[serde(flatten)]
    observation: Observation,
}

/// Writes down what is seen of one trial, as it is seen.
pub struct Recorder<'a> {
    folder: &'a RunFolder,
    order: u32,
    from: Instant,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    observations: Vec<Observation>,
    /// The first failure to write; the trial ends with it.
    failure: Option<StoreError>,
}

impl<'a> Recorder<'a> {
    /// Of a trial that begins now.
    pub fn new(folder: &'a RunFolder, trial: &Trial) -> Recorder<'a> {
        Recorder { folder, order: trial.order, from: Instant::now(), seen: Mutex::default() }
    }

    /// Something happened just now.
    pub fn note(&self, what: What) {
        self.note_at(Instant::now(), what);
    }

    /// Something happened at a moment. A failure to write it is told by [`Recorder::end`].
    pub fn note_at(&self, at: Instant, what: What) {
        let observation = Observation { at_ns: moment::nanoseconds(at), what };
        let observed = Observed { order: self.order, observation };
        let written = self.folder.event(kind::OBSERVED, &observed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.observations.push(observed.observation);
        if let Err(error) = written {
            seen.failure.get_or_insert(error);
        }
    }

    /// Writes down the streams, and gives everything.
    ///
    /// # Errors
    /// Something could not be written.
    pub fn end(self, beats: &Beats, pings: &Pings) -> Result<Trace, StoreError> {
        let Seen { observations, failure } =
            std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(error) = failure {
            return Err(error);
        }
        let mut trace = Trace {
            observations,
            beats: beats.since(self.from).into_iter().map(Beaten::from).collect(),
            pings: pings.answers.since(self.from).into_iter().map(Pinged::from).collect(),
        };
        trace.sort();
        self.stream(stream::BEATS, &trace.beats)?;
        self.stream(stream::PINGS, &trace.pings)?;
        Ok(trace)
    }

    fn stream(&self, name: &str, rows: &[impl Serialize]) -> Result<(), StoreError> {
        self.folder.stream(self.order, name, rows.len(), &stream::write(rows, name)?)
    }
}

#[cfg(test)]
mod tests {
    use ctx::libvirt::{Resumed, Suspended};

    use super::*;

    #[test]
    fn changes_in_a_guest_s_life_have_libvirt_s_words() {
        let words = |change| match What::lifecycle("b", change) {
            What::Lifecycle { change, why, .. } => format!("{change}: {why}"),
            other => panic!("{other:?}"),
        };
        assert_eq!(words(Lifecycle::Resumed(Resumed::Migrated)), "resumed: migrated");
        assert_eq!(words(Lifecycle::Suspended(Suspended::IoError)), "suspended: io error");
        assert_eq!(words(Lifecycle::Shutdown(1)), "other: shutdown(1)");
    }

    #[test]
    fn an_observation_is_one_flat_object() {
        let seen = Observation { at_ns: 7, what: What::Iteration { host: "a".into(), pass: 2 } };
        let text = serde_json::to_string(&Observed { order: 3, observation: seen.clone() }).unwrap();
        assert_eq!(text, r#"{"order":3,"at_ns":7,"what":"iteration","host":"a","pass":2}"#);
        assert_eq!(serde_json::from_str::<Observed>(&text).unwrap().observation, seen);
    }
}
