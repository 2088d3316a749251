//! The folder of a run: everything that was seen, written as it was seen, and never overwritten.
//!
//! ```text
//! results/<scenario>/<run>/
//!   manifest.json      what was asked and on what: scenario verbatim, seed, planned order, versions
//!   events.jsonl       what happened, one JSON object a line, append-only
//!   samples.csv        every value, one row each: a function of events.jsonl
//!   streams/           what came all the time while a trial ran: heartbeats, answers to pings
//!   raw/               output of tools as it came
//!   packages/          packages of the images, as dpkg inside says them: host.tsv, guest.tsv
//!   figures/           fig*.svg, fig*.png: functions of samples.csv and manifest.json
//!   report.html        the same
//!   checksums.sha256   of every file above, in the format of sha256sum
//! ```
//!
//! A run's name is its start in UTC and eight digits of a hash of what was asked, e.g.
//! `20261122T131500Z-1a2b3c4d`. The folder is made under a hidden name that ends in `.partial`,
//! with its manifest and an empty log, and renamed: a folder with a run's name is always one that
//! can be opened. An existing one is never taken; the second run of a second gets `-2`.
//!
//! **Events.** A line is `{"seq":…,"t_utc":…,"t_mono_ns":…,"kind":…,"payload":…,"crc32":"…"}`. `seq`
//! counts from 0 without gaps. `t_mono_ns` is `CLOCK_MONOTONIC` and comparable within one boot of the
//! machine. `crc32` (IEEE, eight hex digits) covers the line's bytes before `,"crc32"`. Lines
//! are written whole and with one call, so a killed program leaves at most one torn line at the
//! end, without a newline, which a reader leaves out and a resumed run cuts off; both say so. A bad line
//! with a newline means that the file was changed: the reader names it and stops. The log is synced to disk
//! when a trial ends.
//!
//! **Observations.** What a trial saw stands in events of kind `observed`, and in streams: one file
//! `streams/trial-ORDER/NAME.csv.gz` each, written when the trial ends, with an event that has its SHA-256. All have the
//! bench's `CLOCK_MONOTONIC` in `at_ns`. Samples of a migration are derived from them, and can be again
//! ([`crate::observe`], [`crate::derive`]).
//!
//! **Trials.** Samples stand between `trial_started` and `trial_ended`. A trial that started and
//! did not end was cut off: it is done again, and what it had measured stays, marked invalid with
//! the reason. Events outside trials (the links before anything counts) stand for themselves.
//!
//! **Resuming.** A run is of one environment: another one is refused ([`differences`]), and what the
//! manifest says is never replaced. Each boot adds an event `environment`. The warm-up is done again after
//! it; links are verified again, and their samples stay those of the first time.
//!
//! JSON lines and CSV, and no database: they are still read in twenty years, by `grep` if need be.

mod checksums;
mod environment;
mod error;
mod event;
mod file;
mod manifest;
mod samples;

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Component, Path, PathBuf},
    sync::Mutex,
};

pub use checksums::{Mismatch, verify};
pub(crate) use checksums::{digest, refresh};
use ctx_io::{bounded, durable};
pub use environment::{Difference, Environment, OtherEnvironment, differences};
use error::Doing;
pub use error::StoreError;
pub(crate) use event::ended_trials;
pub use event::{Event, Log, Torn, kind, read_log};
pub(crate) use file::write_whole;
pub use manifest::{About, Manifest, StoredScenario};
pub(crate) use samples::write as write_samples;
pub use samples::{read_samples, samples_of};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    model::Sample,
    model::hex,
    plan::{Plan, Trial},
    scenario::Scenario,
};

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const EVENTS: &str = "events.jsonl";
pub(crate) const SAMPLES: &str = "samples.csv";
pub(crate) const CHECKSUMS: &str = "checksums.sha256";
pub(crate) const FIGURES: &str = "figures";
pub(crate) const REPORT: &str = "report.html";
const RAW: &str = "raw";
const STREAMS: &str = "streams";
const PACKAGES: &str = "packages";

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was measured.
    Completed,
    /// Something failed; its samples say what. It is not done again.
    Failed {
        /// One sentence.
        reason: String,
    },
}

/// A run's folder, open for writing; no other program has it open at the same time.
///
/// All methods take `&self`, so that it can be shared between tasks.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    /// What was cut off the log when it was opened.
    torn: Option<Torn>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Opened for appending, and locked.
    log: File,
    /// Length of the log in whole lines.
    bytes: u64,
    events: Vec<Event>,
    manifest: Manifest,
}

impl RunFolder {
    /// Makes the folder of a new run under `results` (which is made when missing).
    ///
    /// # Errors
    /// The folder cannot be made or written to; the error says what to do.
    pub fn create(
        results: &Path,
        scenario: &Scenario,
        plan: &Plan,
        about: About,
    ) -> Result<Self, StoreError> {
        let now = event::Now::read();
        let parent = results.join(scenario.name());
        fs::create_dir_all(&parent).doing("make the folder", &parent)?;
        let asked =
            format!("{}\n{:?}\n{}", scenario.source.sha256, scenario.source.profile, scenario.design.seed);
        let hash = &hex(&Sha256::digest(asked.as_bytes()))[..8];
        let base = format!("{}-{hash}", now.compact_utc());
        for attempt in 1..1000 {
            let id = if attempt == 1 { base.clone() } else { format!("{base}-{attempt}") };
            let path = parent.join(&id);
            let partial = parent.join(format!(".{id}.partial"));
            if path.exists() {
                continue;
            }
            match fs::create_dir(&partial) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                other => other.doing("make the folder", &partial)?,
            }
            let manifest = Manifest::new(id, scenario, plan, about, now.utc());
            manifest.write(&partial)?;
            for folder in [RAW, FIGURES] {
                fs::create_dir(partial.join(folder)).doing("make the folder", &partial.join(folder))?;
            }
            let events = partial.join(EVENTS);
            let log =
                OpenOptions::new().append(true).create_new(true).open(&events).doing("make", &events)?;
            file::sync_dir(&partial)?;
            fs::rename(&partial, &path).doing("rename to its own name", &path)?;
            file::sync_dir(&parent)?;
            let folder = Self::locked(path, log, manifest)?;
            folder.event(kind::RUN_STARTED, &serde_json::json!({"run": folder.id()}))?;
            return Ok(folder);
        }
        Err(StoreError::Exists { path: parent.join(base) })
    }

    /// Opens the folder of a run that did not finish, to go on with it.
    ///
    /// # Errors
    /// There is no run, it is finished, another program works on it, or a file in it was changed.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let manifest = Manifest::read(path)?;
        // The list of checksums is the last file of a run.
        if manifest.ended_utc.is_some() && path.join(CHECKSUMS).exists() {
            return Err(StoreError::Finished { path: path.to_owned() });
        }
        let events = path.join(EVENTS);
        let log = OpenOptions::new().read(true).append(true).open(&events).doing("open", &events)?;
        let mut folder = Self::locked(path.to_owned(), log, manifest)?;
        {
            // Read under the lock: nobody appends any more.
            let read = read_log(&events)?;
            let mut inner = folder.inner();
            if read.torn.is_some() {
                inner.log.set_len(read.whole_bytes).doing("cut off the torn last line of", &events)?;
            }
            inner.bytes = read.whole_bytes;
            inner.events = read.events;
            drop(inner);
            folder.torn = read.torn;
        }
        let resumed = serde_json::json!({
            "trials_done": folder.completed_trials().len(),
            "torn_bytes": folder.torn.as_ref().map_or(0, |torn| torn.bytes),
        });
        folder.event(kind::RUN_RESUMED, &resumed)?;
        folder.write_samples()?;
        Ok(folder)
    }

    fn locked(path: PathBuf, log: File, manifest: Manifest) -> Result<Self, StoreError> {
        match log.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(StoreError::Busy { path }),
            Err(fs::TryLockError::Error(source)) => {
                return Err(source).doing("lock", &path.join(EVENTS));
            }
        }
        Ok(Self {
            path,
            torn: None,
            inner: Mutex::new(Inner { log, bytes: 0, events: Vec::new(), manifest }),
        })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        // What it guards is whole after every statement, so a panic elsewhere does not spoil it.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The torn last line that was cut off the log when the folder was opened.
    pub fn torn(&self) -> Option<&Torn> {
        self.torn.as_ref()
    }

    /// The run's name.
    pub fn id(&self) -> String {
        self.inner().manifest.run.clone()
    }

    /// The manifest as it stands.
    pub fn manifest(&self) -> Manifest {
        self.inner().manifest.clone()
    }

    /// Changes the manifest and writes it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn update_manifest(&self, change: impl FnOnce(&mut Manifest)) -> Result<(), StoreError> {
        let mut inner = self.inner();
        change(&mut inner.manifest);
        inner.manifest.write(&self.path)
    }

    /// Writes down on what the trials from here on are done: as an event each time, and in the manifest what it does
    /// not say yet. A resumed run replaces nothing that was said when it began.
    ///
    /// # Errors
    /// The log or the manifest cannot be written.
    pub fn environment(&self, environment: Environment) -> Result<(), StoreError> {
        self.event(kind::ENVIRONMENT, &environment)?;
        self.update_manifest(|manifest| manifest.keep(environment))
    }

    /// Appends an event.
    ///
    /// # Errors
    /// The payload is not JSON, or the log cannot be written.
    pub fn event(&self, kind: &str, payload: &impl Serialize) -> Result<(), StoreError> {
        let payload = serde_json::to_value(payload)
            .map_err(|source| StoreError::Payload { kind: kind.to_owned(), source })?;
        let mut inner = self.inner();
        let now = event::Now::read();
        let event = Event {
            seq: inner.events.len() as u64,
            t_utc: now.utc(),
            t_mono_ns: now.mono_ns(),
            kind: kind.to_owned(),
            payload,
        };
        let line = event.to_line();
        let path = self.path.join(EVENTS);
        if let Err(error) = inner.log.write_all(line.as_bytes()) {
            // Half a line in the middle would spoil all that follow (disk full, then freed again).
            let _ = inner.log.set_len(inner.bytes);
            return Err(error).doing("write", &path);
        }
        inner.bytes += line.len() as u64;
        inner.events.push(event);
        Ok(())
    }

    /// Appends samples, all of them or none. One whose value is not a finite number is kept without a value, as invalid.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn samples(&self, samples: &[Sample]) -> Result<(), StoreError> {
        let samples: Vec<_> = samples.iter().cloned().map(samples::finite).collect();
        self.event(kind::SAMPLES, &samples)
    }

    /// Says that a trial begins.
    ///
    /// # Errors
    /// The log cannot be written.
    pub fn trial_started(&self, trial: &Trial) -> Result<(), StoreError> {
        self.event(kind::TRIAL_STARTED, trial)
    }

    /// Says how a trial ended, syncs the log to disk and rewrites `samples.csv`.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn trial_ended(&self, trial: &Trial, outcome: &Outcome) -> Result<(), StoreError> {
        let (outcome, reason) = match outcome {
            Outcome::Completed => ("completed", ""),
            Outcome::Failed { reason } => ("failed", reason.as_str()),
        };
        let payload = serde_json::json!({"order": trial.order, "outcome": outcome, "reason": reason});
        self.event(kind::TRIAL_ENDED, &payload)?;
        durable::sync_data(&self.inner().log).doing("sync", &self.path.join(EVENTS))?;
        self.write_samples()
    }

    /// Positions in the plan of the trials that ended, which a resumed run leaves out.
    pub fn completed_trials(&self) -> BTreeSet<u32> {
        event::ended_trials(&self.inner().events)
    }

    /// Whether there is a sample of a metric that may be used, of this or an earlier process.
    ///
    /// # Errors
    /// An event of kind `samples` holds something else.
    pub fn has_valid(&self, metric: &str) -> Result<bool, StoreError> {
        let samples = samples_of(&self.inner().events)?;
        Ok(samples.iter().any(|sample| sample.valid && sample.metric == metric))
    }

    /// A path under `raw/` for a tool's output, e.g. `block-3/bonnie-before.csv`. One that is taken
    /// (by an attempt that was cut off) gets a number, so nothing is overwritten.
    ///
    /// # Errors
    /// The name leaves the folder, or a folder cannot be made.
    pub fn raw_file(&self, name: &str) -> Result<PathBuf, StoreError> {
        let relative = Path::new(name);
        let plain = relative.components().all(|c| matches!(c, Component::Normal(_)));
        if name.is_empty() || !plain {
            return Err(StoreError::Name { name: name.to_owned() });
        }
        let mut path = self.path.join(RAW).join(relative);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).doing("make the folder", folder)?;
        }
        let mut attempt = 2;
        while path.exists() {
            path = self.path.join(RAW).join(format!("{name}.{attempt}"));
            attempt += 1;
        }
        Ok(path)
    }

    /// Writes down a stream of a trial, and says so in the log. An attempt that was cut off keeps its own.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn stream(&self, order: u32, name: &str, rows: usize, bytes: &[u8]) -> Result<(), StoreError> {
        let folder = self.path.join(STREAMS).join(format!("trial-{order}"));
        fs::create_dir_all(&folder).doing("make the folder", &folder)?;
        let mut path = folder.join(format!("{name}.csv.gz"));
        let mut attempt = 2;
        while path.exists() {
            path = folder.join(format!("{name}.{attempt}.csv.gz"));
            attempt += 1;
        }
        write_whole(&path, bytes)?;
        let file = path.strip_prefix(&self.path).unwrap_or(&path);
        let payload = StreamWritten {
            order,
            name: name.to_owned(),
            file: file.to_owned(),
            rows,
            sha256: hex(&Sha256::digest(bytes)),
        };
        self.event(kind::STREAM, &payload)
    }

    /// Keeps the list of an image's packages as `packages/IMAGE.tsv`. The list of another image of that name, with which the
    /// run began before it was resumed, stays: the new one gets a number.
    ///
    /// # Errors
    /// The list cannot be read, or the copy not written.
    pub fn packages(&self, image: &str, list: &Path) -> Result<(), StoreError> {
        let bytes = bounded::read(list, bounded::STATE).doing("read", list)?;
        let folder = self.path.join(PACKAGES);
        fs::create_dir_all(&folder).doing("make the folder", &folder)?;
        let mut path = folder.join(format!("{image}.tsv"));
        let mut attempt = 2;
        while path.exists() && bounded::read(&path, bounded::STATE).doing("read", &path)? != bytes {
            path = folder.join(format!("{image}.{attempt}.tsv"));
            attempt += 1;
        }
        write_whole(&path, &bytes)
    }

    fn write_samples(&self) -> Result<(), StoreError> {
        let samples = samples_of(&self.inner().events)?;
        samples::write(&self.path, &samples)
    }

    /// Ends the run: samples, the end in the manifest, checksums of every file.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(self) -> Result<PathBuf, StoreError> {
        self.event(kind::RUN_ENDED, &serde_json::json!({"trials_done": self.completed_trials().len()}))?;
        durable::sync(&self.inner().log).doing("sync", &self.path.join(EVENTS))?;
        self.write_samples()?;
        self.update_manifest(|manifest| manifest.ended_utc = Some(event::Now::read().utc()))?;
        checksums::write(&self.path)?;
        Ok(self.path)
    }
}

/// What the log says of a stream that was written.
#[derive(Debug, Serialize, Deserialize)]
pub struct StreamWritten {
    /// The trial's.
    pub order: u32,
    /// The stream's.
    pub name: String,
    /// Where it is in the run's folder.
    pub file: PathBuf,
    /// How many rows it has.
    pub rows: usize,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// A stream as it is stored, compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredStream {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes, which are those that were written.
    pub bytes: Vec<u8>,
}

/// A stored run, read and checked.
#[derive(Debug, Clone)]
pub struct StoredRun {
    /// Where it is.
    pub path: PathBuf,
    /// What was asked and on what.
    pub manifest: Manifest,
    /// The scenario, read again from the manifest.
    pub scenario: Scenario,
    /// What happened.
    pub events: Vec<Event>,
    /// Every value; those of trials that were cut off are invalid.
    pub samples: Vec<Sample>,
    /// The log's last line, when the run was cut off in the middle of it: it is left out.
    pub torn: Option<Torn>,
}

impl StoredRun {
    /// Reads a run's folder, finished or not.
    ///
    /// # Errors
    /// It is not a run's folder, or a file in it was changed.
    pub fn read(path: &Path) -> Result<Self, StoreError> {
        let manifest = Manifest::read(path)?;
        let scenario = manifest.scenario()?;
        let Log { events, torn, .. } = read_log(&path.join(EVENTS))?;
        let samples = samples_of(&events)?;
        Ok(Self { path: path.to_owned(), manifest, scenario, events, samples, torn })
    }

    /// The stream of which an event tells.
    ///
    /// # Errors
    /// It cannot be read, or is not what was written.
    pub fn stream(&self, event: &Event) -> Result<StoredStream, StoreError> {
        let StreamWritten { file, sha256, .. } = event.read(&self.path)?;
        let plain = file.starts_with(STREAMS)
            && file.components().all(|component| matches!(component, Component::Normal(_)));
        if !plain {
            return Err(StoreError::Name { name: file.display().to_string() });
        }
        let path = self.path.join(file);
        let bytes = ctx_io::bounded::read(&path, ctx_io::bounded::LOG).doing("read", &path)?;
        if hex(&Sha256::digest(&bytes)) != sha256 {
            let what = "its SHA-256 is not the one in events.jsonl".to_owned();
            return Err(StoreError::Damaged { path, line: 1, what });
        }
        Ok(StoredStream { path, bytes })
    }

    /// Whether no trial of the plan is left.
    pub fn is_measured(&self) -> bool {
        let ended = event::ended_trials(&self.events);
        self.manifest.plan.trials.iter().all(|trial| ended.contains(&trial.order))
    }

    /// Whether its manifest says that it has ended, and its files are listed.
    pub fn is_finished(&self) -> bool {
        self.manifest.ended_utc.is_some() && self.path.join(CHECKSUMS).exists()
    }
}

#[cfg(test)]
mod tests;
