//! Experiment `layers`: one file system a trial, mounted on this machine and probed.
//!
//! A trial goes from top to bottom in `Bench::trial`: fresh mounts for cold lookups, warm probes on the last of them,
//! swaps of a layer where the file system can, and at last the large union.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::estimate;
use super::lab::DriveError;
use super::limits::{self, LimitError, RunLimit};
use crate::derive::measure::{Conditions, Measures};
use crate::doctor::{self, Accelerator};
use crate::metric;
use crate::plan::{Plan, Trial};
use crate::program;
use crate::progress::Progress;
use crate::scenario::{Arm, Layers, Scenario};
use crate::stats::{median, quantile};
use crate::store::{Environment, Outcome, RunFolder};
use crate::workload::layers::mounted::{self, MountError, Mounted};
use crate::workload::layers::peer::{self, Note, Notes, Place};
use crate::workload::layers::swap::{Control, Version};
use crate::workload::layers::task::{Found, SUBCOMMAND, Swaps, Task};
use crate::workload::layers::tree::{Many, Shape, Trees, storm_tag};

/// What stands for hypervisor and accelerator where there is none.
pub const NONE: &str = "none";

/// Rounds of swaps with entries cached.
const CACHED_ROUNDS: u32 = 3;
/// Name of the folder on which file systems are mounted.
const POINT: &str = "mnt";
/// How long a program may take to say its version.
const VERSION: Duration = Duration::from_secs(30);
/// A probe that takes longer hangs.
const PROBE_LIMIT: Duration = Duration::from_secs(300);

/// Why a file system could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// It did not come up.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A probe failed.
    #[error("{arm}: the probe of {what} failed: {reason}")]
    Probe {
        /// The file system.
        arm: Arm,
        /// What was probed.
        what: &'static str,
        /// What the probe said.
        reason: String,
    },
    /// The trees could not be written.
    #[error("cannot write the layers to {}: {source}", path.display())]
    Trees {
        /// Where.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// Bytes of memory that a scenario's trees, their copy and page caches take at most.
pub fn memory(layers: &Layers) -> u64 {
    let page = 4096_u64;
    // An inode in tmpfs takes about a kibibyte, an empty file no page.
    let many = u64::from(layers.many_files) * 1024;
    2 * layers.large.bytes()
        + 3 * page * u64::from(layers.files)
        + 4 * page * u64::from(layers.cached)
        + 2 * many
        + (512 << 20)
}

/// The versions that a storm goes through.
fn storm_versions(layers: &Layers) -> u32 {
    let changes = u64::from(layers.storm_rate) * layers.storm.micros() / 1_000_000;
    u32::try_from(changes).unwrap_or(u32::MAX).saturating_add(1)
}

/// What every trial uses.
struct Bench<'a> {
    layers: &'a Layers,
    trees: Trees,
    state: &'a Path,
    ffs: PathBuf,
    probe: PathBuf,
    folder: &'a RunFolder,
}

/// Does the trials of the plan that have not ended yet, after a warm-up, inside the bench's namespaces. `state` is an empty folder in memory.
///
/// # Errors
/// The layers or the run's folder cannot be written, three trials in a row fail, the run's deadline has passed, or what a trial
/// that passed its own has mounted cannot be unmounted.
pub async fn run(
    folder: &RunFolder,
    scenario: &Scenario,
    plan: &Plan,
    programs: &Path,
    state: &Path,
) -> Result<(), DriveError> {
    let layers = scenario.layers.clone().unwrap_or_default();
    let left = plan.left(&folder.completed_trials());
    if left.is_empty() {
        return Ok(());
    }
    let run_limit = RunLimit::begin(scenario, &left, plan.trials.len());
    let progress = Progress::new(estimate::steps(scenario, &left, Accelerator::Tcg));
    progress.begin();
    let shape = Shape {
        files: layers.files,
        large: layers.large.bytes(),
        cached: layers.cached,
        storm: storm_versions(&layers),
        many: Many { files: layers.many_files, layers: layers.many_layers },
    };
    let path = state.join("trees");
    let trees = Trees::write(&path, &shape).map_err(|source| LayersError::Trees { path, source })?;
    let probe =
        std::env::current_exe().map_err(|source| LayersError::Trees { path: "bench".into(), source })?;
    let lab = Bench { layers: &layers, trees, state, ffs: programs.join("ffs"), probe, folder };
    lab.describe(&scenario.design.arms)?;
    let conditions = Conditions { accelerator: NONE, hypervisor: NONE, dilation: 1.0 };
    let mut failures = 0;
    for (position, trial) in left.iter().enumerate() {
        run_limit.allows(left.len() - position)?;
        progress.begin();
        folder.trial_started(trial)?;
        let mut values = Measures::default();
        let limit = limits::of(scenario, trial);
        let measured = limits::trial(limit, lab.trial(trial, &mut values)).await;
        let cut_off = limits::was_cut_off(&measured);
        let outcome = super::run::outcome(measured, &mut values);
        folder.samples(&values.samples(trial, &conditions))?;
        folder.trial_ended(trial, &outcome)?;
        let Outcome::Failed { reason } = outcome else {
            failures = 0;
            continue;
        };
        progress.note(&format!("block {}, {}: {reason}", trial.block, trial.arm));
        failures += 1;
        if failures == super::run::FAILURES_IN_A_ROW {
            return Err(DriveError::Workload(format!(
                "{failures} trials in a row failed, the last because: {reason}"
            )));
        }
        if cut_off {
            let left = mounted::clear(&lab.state.join(POINT)).map_err(LayersError::from);
            left.map_err(|error| LimitError::NotRestored { source: Box::new(error.into()) })?;
        }
    }
    progress.finish();
    Ok(())
}

/// What an arm's program says of its version, and why the arm is left out of a run here, if it is.
pub fn look(arm: Arm, ffs: &Path, linux: &str) -> (String, Option<String>) {
    if let Some(why) = peer::not_installed(arm, |program| doctor::which(program).is_some()) {
        return (String::new(), Some(why));
    }
    let version = version(arm, ffs);
    let absent = peer::too_old(arm, &version, linux);
    (version, absent)
}

/// What an arm's program says of its version.
fn version(arm: Arm, ffs: &Path) -> String {
    let (path, arguments): (&Path, &[&str]) = match arm {
        Arm::Ffs | Arm::FfsPassthrough => (ffs, &["--version"]),
        _ => match peer::package(arm) {
            Some((program, _)) => (Path::new(program), &["--version"]),
            None => (Path::new("uname"), &["-sr"]),
        },
    };
    let mut command = std::process::Command::new(path);
    let output = program::output(command.args(arguments).stdin(Stdio::null()), VERSION);
    let text = output.map(|out| [out.stdout, out.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    // Libraries put lines of their own before or after.
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let own = text.lines().find(|line| line.starts_with(&name)).or_else(|| text.lines().next());
    own.unwrap_or_default().trim().to_owned()
}

/// What the kernel says of itself.
pub fn linux() -> String {
    version(Arm::Native, Path::new(""))
}

impl Bench<'_> {
    /// Writes down what the machine and the file systems are.
    fn describe(&self, arms: &[Arm]) -> Result<(), DriveError> {
        let mut notes = Notes::new();
        let named = Place {
            point: Path::new("mnt"),
            ffs: Path::new("ffs"),
            socket: Path::new("ffs.sock"),
            config: Path::new("ffs.toml"),
        };
        let linux = linux();
        for arm in arms {
            let (version, absent) = look(*arm, &self.ffs, &linux);
            let start = peer::start(*arm, &self.trees.small_layers(), &self.trees.native(), &named);
            // Where a run keeps its state is no option of the file system.
            let command = start.describe().replace(&format!("{}/", self.state.display()), "");
            let mut cannot = peer::cannot(*arm);
            if absent.is_some() {
                cannot.clear();
            }
            notes.insert(arm.name().to_owned(), Note { version, command, absent, cannot });
        }
        // A resumed run keeps its notes, with what the trials before have found.
        self.folder.environment(Environment {
            accelerator: Some(NONE.to_owned()),
            dilation: Some(1.0),
            tools: super::tools::here(),
            peers: notes,
            ..Environment::default()
        })?;
        Ok(())
    }

    /// One file system, from its first mount to its last.
    async fn trial(&self, trial: &Trial, values: &mut Measures) -> Result<(), DriveError> {
        let arm = trial.arm;
        let notes = self.folder.manifest().peers;
        if notes.get(arm.name()).is_some_and(|note| note.absent.is_some()) {
            return Ok(());
        }
        let Layers { files, mounts, passes, .. } = *self.layers;
        let small = self.trees.small_layers();
        let mut cold = (Vec::new(), Vec::new());
        let mut up = None;
        for _ in 0..mounts {
            if let Some(before) = up.take() {
                Mounted::down(before).map_err(LayersError::from)?;
            }
            let mounted = self.mount(trial, &small, "large")?;
            let task = Task::Cold { root: mounted.root().into(), files };
            if let Found::Cold(found) = self.probe(arm, "cold lookups", &task).await? {
                cold.0.push(found.stat);
                cold.1.push(found.negative);
            }
            up = Some(mounted);
        }
        values.add(metric::STAT_COLD, "", median(&cold.0), "µs");
        values.add(metric::NEGATIVE_COLD, "", median(&cold.1), "µs");
        let Some(mounted) = up else { return Ok(()) };
        let task = Task::Warm { root: mounted.root().into(), files, passes };
        if let Found::Warm(warm) = self.probe(arm, "warm lookups and reads", &task).await? {
            values.add(metric::STAT_WARM, "", warm.stat, "µs");
            values.add(metric::NEGATIVE_WARM, "", warm.negative, "µs");
            values.add(metric::OPEN_READ, "", warm.open_read, "µs");
            values.add(metric::READDIR, "", warm.readdir, "µs");
            values.add(metric::SEQ_FIRST, "", warm.seq_first, "GB/s");
            values.add(metric::SEQ_READ, "", warm.seq, "GB/s");
        }
        let socket = self.state.join("ffs.sock");
        let stage = self.state.join("stage");
        if let Some(control) = peer::control(arm, mounted.root(), &small[1..], &stage, &socket) {
            self.changes(trial, mounted.root(), &control, values).await?;
        }
        mounted.down().map_err(LayersError::from)?;
        if arm != Arm::Native {
            self.many(trial, values).await?;
        }
        Ok(())
    }

    /// Everything about a layer that changes while it is shown.
    async fn changes(
        &self,
        trial: &Trial,
        root: &Path,
        control: &Control,
        values: &mut Measures,
    ) -> Result<(), DriveError> {
        let arm = trial.arm;
        let swaps = |versions: Vec<Version>, count| Swaps {
            root: root.into(),
            control: control.clone(),
            versions,
            count,
        };
        let versions: Vec<Version> = vec![(self.trees.version(0), 1), (self.trees.version(1), 2)];
        let task = Task::Visible(swaps(versions.clone(), self.layers.swaps));
        if let Found::Visible(times) = self.probe(arm, "swaps until new content is seen", &task).await? {
            values.add(metric::SWAP_VISIBLE, "", median(&times), "ms");
            values.add(metric::SWAP_VISIBLE_P99, "", quantile(&times, 0.99), "ms");
        }
        let task = Task::Events(swaps(versions, self.layers.swaps));
        if let Found::Events(events) = self.probe(arm, "swaps until watchers are told", &task).await? {
            if events.silent {
                let why = "no inotify event came";
                self.cannot(arm, &[metric::SWAP_EVENT, metric::SWAP_EVENT_P99, metric::EVENT_FAULTS], why)?;
            } else {
                values.add(metric::SWAP_EVENT, "", median(&events.times), "ms");
                values.add(metric::SWAP_EVENT_P99, "", quantile(&events.times, 0.99), "ms");
                values.add(metric::EVENT_FAULTS, "", f64::from(events.faults), "1");
            }
        }
        if arm != Arm::Native {
            let versions = vec![(self.trees.wide(0), 3), (self.trees.wide(1), 4)];
            let task = Task::Cached { swaps: swaps(versions, CACHED_ROUNDS), entries: self.layers.cached };
            if let Found::Cached(found) = self.probe(arm, "swaps with entries cached", &task).await? {
                let (with, without) = (median(&found.cached), median(&found.fresh));
                values.add(metric::SWAP_CACHED, "", with, "ms");
                values.add(metric::INVALIDATE, "", with - without, "ms");
                values.add(metric::STALE, "", f64::from(found.stale) / f64::from(CACHED_ROUNDS), "1");
            }
        }
        let versions = (0..self.trees.shape().storm).map(|n| (self.trees.storm(n), storm_tag(n))).collect();
        let task = Task::Storm(swaps(versions, self.layers.storm_rate));
        if let Found::Storm(storm) = self.probe(arm, "reads while layers change", &task).await? {
            // Counts are far below 2⁵³.
            values.add(metric::MIXED_READS, "", storm.mixed as f64, "1");
            values.add(metric::TORN_READS, "", storm.torn as f64, "1");
            values.add(metric::STORM_ERRORS, "", storm.errors as f64, "1");
            values.add(metric::STORM_READS, "", storm.reads as f64, "1");
        }
        Ok(())
    }

    /// The large union: how long it takes to mount, and what its program keeps.
    async fn many(&self, trial: &Trial, values: &mut Measures) -> Result<(), DriveError> {
        let many = self.trees.shape().many;
        let last = many.path(many.files - 1);
        let mounted = self.mount(trial, &self.trees.many_layers(), &last.to_string_lossy())?;
        values.add(metric::MANY_MOUNT, "", mounted.took().as_secs_f64() * 1e3, "ms");
        let task = Task::Walk { root: mounted.root().into(), many, count: self.layers.many_looked_up };
        self.probe(trial.arm, "lookups in the large union", &task).await?;
        if let Some(bytes) = mounted.memory() {
            values.add(metric::MANY_MEMORY, "", bytes as f64 / f64::from(1 << 20), "MiB");
        }
        mounted.down().map_err(LayersError::from)?;
        Ok(())
    }

    /// Mounts layers, each time on a folder of its own.
    fn mount(&self, trial: &Trial, layers: &[PathBuf], known: &str) -> Result<Mounted, DriveError> {
        let log = self.folder.raw_file(&format!("{}/block{}-{}.log", trial.arm, trial.block, trial.order))?;
        let point = self.state.join(POINT);
        let (socket, config) = (self.state.join("ffs.sock"), self.state.join("ffs.toml"));
        std::fs::write(&config, "").map_err(|source| LayersError::Trees { path: config.clone(), source })?;
        let place = Place { point: &point, ffs: &self.ffs, socket: &socket, config: &config };
        let start = peer::start(trial.arm, layers, &self.trees.native(), &place);
        let mounted = tokio::task::block_in_place(|| Mounted::up(&start, &point, Path::new(known), &log));
        // A program that had nothing to say leaves no file.
        if std::fs::metadata(&log).is_ok_and(|file| file.len() == 0) {
            let _ = std::fs::remove_file(&log);
        }
        Ok(mounted.map_err(LayersError::from)?)
    }

    /// Notes what a file system was found not to do.
    fn cannot(&self, arm: Arm, metrics: &[&str], why: &str) -> Result<(), DriveError> {
        self.folder.update_manifest(|manifest| {
            let note = manifest.peers.entry(arm.name().to_owned()).or_default();
            note.cannot.extend(metrics.iter().map(|metric| ((*metric).to_owned(), why.to_owned())));
        })?;
        Ok(())
    }

    /// Does a task in a process of its own.
    async fn probe(&self, arm: Arm, what: &'static str, task: &Task) -> Result<Found, DriveError> {
        let failed = |reason: String| LayersError::Probe { arm, what, reason };
        let task = serde_json::to_string(task).map_err(|error| failed(error.to_string()))?;
        let child = tokio::process::Command::new(&self.probe)
            .args([SUBCOMMAND, &task])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PROBE_LIMIT, child)
            .await
            .map_err(|_| failed(format!("it did not end within {} s", PROBE_LIMIT.as_secs())))?
            .map_err(|error| failed(error.to_string()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(failed(crate::exec::last_lines(&said, 3)).into());
        }
        Ok(serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))?)
    }
}
