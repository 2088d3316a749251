//! `bench check | run | resume | report | schema`: from a scenario to a report.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use ctx_io::{errln, outln, output};

use super::{Ended, local, programs};
use crate::doctor::{self, Accelerator, Requirement, Subject};
use crate::drive;
use crate::drive::lab::DriveError;
use crate::drive::setup::{self, Programs};
use crate::gate::{Margin, Verdict};
use crate::image::{Cache, Display, Recipe, build_all};
use crate::plan::Plan;
use crate::progress::human;
use crate::report::Report;
use crate::scenario::{GuestType, Scenario, TestbedKind};
use crate::store::{
    About, Environment, Manifest, OtherEnvironment, RunFolder, StoredRun, StoredScenario, differences,
};
use crate::testbed::hypervisor::Hypervisor;
use crate::testbed::namespace;
use crate::testbed::up::Images;

#[derive(Debug, Args)]
pub(super) struct CheckArguments {
    /// The scenario file
    scenario: PathBuf,
    /// Lay this profile of the scenario over it
    #[arg(long)]
    profile: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// The scenario file
    scenario: PathBuf,
    /// Lay this profile of the scenario over it
    #[arg(long)]
    profile: Option<String>,
    /// Where runs are kept
    #[arg(long, default_value = "results")]
    results: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ResumeArguments {
    /// The folder of the run
    run: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct ReportArguments {
    /// Folders of runs; several are shown side by side
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where the report of several runs is put
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct GateArguments {
    /// The folder of the stored run
    baseline: PathBuf,
    /// The folder of the new run
    run: PathBuf,
    /// The smallest worsening that matters, in percent
    #[arg(long, default_value = "25", allow_negative_numbers = true)]
    margin: Margin,
}

/// Reads a scenario; a wrong one has told where and why.
fn load(path: &Path, profile: Option<&str>) -> anyhow::Result<Scenario> {
    Scenario::load(path, profile).map_err(|error| {
        let reason = error.render();
        if error.is_misuse() { output::Misuse(reason).into() } else { anyhow::Error::msg(reason) }
    })
}

pub(super) fn check(arguments: &CheckArguments) -> anyhow::Result<Ended> {
    let scenario = load(&arguments.scenario, arguments.profile.as_deref())?;
    setup::supported(&scenario)?;
    let known = movable(&scenario)?;
    let plan = Plan::new(&scenario);
    outln!("{}: {}", scenario.name(), scenario.title);
    if !known {
        outln!(
            "Live migration of a PV guest needs shadow paging in the hosts' Xen; whether it has that is known when its \
             image is built: `bench image build {}`.",
            scenario.testbed.hypervisor.host().recipe
        );
    }
    for trial in &plan.trials {
        let files = if trial.file_operations { ", with file operations" } else { "" };
        outln!("  {:>3}  block {}  {}{files}", trial.order, trial.block, trial.arm);
    }
    let seconds: u64 =
        drive::run::steps(&scenario, &plan.trials).iter().map(|step| step.expected.as_secs()).sum();
    let about = human(std::time::Duration::from_secs(seconds));
    if is_local(&scenario) {
        outln!("About {about} on this machine.");
        return local::check(&scenario);
    }
    outln!("About {about} on emulated hosts.");
    Ok(Ended::Done)
}

/// Whether it is known that the guest can migrate, before anything is built: true, or false for unknown.
fn movable(scenario: &Scenario) -> anyhow::Result<bool> {
    let hypervisor = scenario.testbed.hypervisor;
    let kind = scenario.guest.kind_on(hypervisor);
    if kind != GuestType::Pv {
        return Ok(true);
    }
    let digest = Recipe::built_in(hypervisor.host().recipe)?.digest();
    match Cache::open()?.find(&digest)? {
        None => Ok(false),
        Some(image) => Ok(hypervisor.movable(kind, &image).map(|()| true)?),
    }
}

pub(super) fn schema() -> anyhow::Result<Ended> {
    outln!("{}", serde_json::to_string_pretty(&crate::scenario::schema())?);
    Ok(Ended::Done)
}

pub(super) fn gate(arguments: &GateArguments) -> anyhow::Result<Ended> {
    let (old, new) = (StoredRun::read(&arguments.baseline)?, StoredRun::read(&arguments.run)?);
    let lines = crate::gate::gate(&old.samples, &new.samples, arguments.margin);
    output::text(&crate::gate::table(&lines));
    if lines.is_empty() {
        errln!("the runs have no metric in common on the same accelerator, hypervisor and dilation");
    }
    let verdict = crate::gate::verdict(&lines);
    outln!("verdict: {verdict} (margin {} %)", arguments.margin);
    Ok(match verdict {
        Verdict::NoWorse => Ended::Done,
        Verdict::Unclear => Ended::Degraded,
        Verdict::Worse => Ended::Status(1),
    })
}

pub(super) fn report(arguments: &ReportArguments) -> anyhow::Result<Ended> {
    let runs: Vec<&Path> = arguments.runs.iter().map(PathBuf::as_path).collect();
    let report = crate::report::report(&runs, arguments.out.as_deref())?;
    Ok(tell(&report))
}

pub(super) fn run(arguments: &RunArguments) -> anyhow::Result<Ended> {
    let scenario = load(&arguments.scenario, arguments.profile.as_deref())?;
    if !namespace::inside() {
        ready(&scenario, &arguments.results)?;
        return Err(namespace::enter().into());
    }
    let plan = Plan::new(&scenario);
    let about = about(Some(&arguments.scenario));
    let folder = RunFolder::create(&arguments.results, &scenario, &plan, about)?;
    errln!("run {}", folder.path().display());
    let hosts = Hosts::find(&scenario)?;
    drive_and_report(folder, &scenario, &plan, hosts.as_ref())
}

/// What the store cannot know by itself. A run that goes on has no scenario file.
fn about(scenario: Option<&Path>) -> About {
    About { git_revision: scenario.and_then(git_revision) }
}

pub(super) fn resume(arguments: &ResumeArguments) -> anyhow::Result<Ended> {
    let stored = StoredRun::read(&arguments.run)?;
    if stored.is_measured() {
        // The manifest, the checksums or the report could not be written at its end.
        return finish_and_report(&arguments.run, &stored);
    }
    let scenario = as_asked(&stored)?;
    if !namespace::inside() {
        // What is known without an image or a probe, so that neither is made for a run that is then refused.
        same_environment(&stored, &scenario, known(&scenario)?)?;
        ready(&scenario, &arguments.run)?;
        return Err(namespace::enter().into());
    }
    let hosts = Hosts::find(&scenario)?;
    let environment = match &hosts {
        None => local::environment(&scenario)?,
        Some(hosts) => hosts.environment(),
    };
    same_environment(&stored, &scenario, environment)?;
    drive_and_report(open(&arguments.run)?, &scenario, &stored.manifest.plan, hosts.as_ref())
}

/// The scenario of a run that goes on. One that an earlier version took and this one refuses is not gone on with.
fn as_asked(stored: &StoredRun) -> anyhow::Result<Scenario> {
    let StoredScenario { name, text, profile, .. } = &stored.manifest.scenario;
    Scenario::parse(&format!("{name}.toml"), text, profile.as_deref()).map_err(|error| {
        anyhow::anyhow!(
            "{}\n{} cannot go on: correct the scenario and begin a new run with `bench run`",
            error.render(),
            stored.path.display()
        )
    })
}

/// Refuses to go on with a run that was begun in another environment.
fn same_environment(
    stored: &StoredRun,
    scenario: &Scenario,
    environment: Environment,
) -> Result<(), OtherEnvironment> {
    let differences = differences(&stored.manifest, &Manifest::here(scenario, about(None), environment));
    if differences.is_empty() {
        return Ok(());
    }
    Err(OtherEnvironment { run: stored.path.clone(), differences })
}

/// Opens a run to go on with it, and says when its log had a torn line.
fn open(path: &Path) -> anyhow::Result<RunFolder> {
    let folder = RunFolder::open(path)?;
    if let Some(torn) = folder.torn() {
        errln!("{torn}; it is cut off");
    }
    Ok(folder)
}

/// What is known of the environment before an image is built or a machine probed.
fn known(scenario: &Scenario) -> anyhow::Result<Environment> {
    if is_local(scenario) {
        return local::environment(scenario);
    }
    let cache = Cache::open()?;
    let images = recipes(scenario.testbed.hypervisor)?.map(|recipe| match cache.find(&recipe.digest()) {
        Ok(Some(image)) => Ok(serde_json::json!(image.manifest)),
        // One that is built again has other bytes.
        Ok(None) => Ok(serde_json::json!({ "digest": "not in the cache" })),
        Err(error) => Err(error),
    });
    let [host, guest] = images;
    let images = serde_json::json!({ "host": host?, "guest": guest? });
    Ok(Environment { tools: drive::tools::here(), images, ..Environment::default() })
}

/// What hosts are booted with.
struct Hosts {
    images: Images,
    accelerator: Accelerator,
}

impl Hosts {
    /// Those of a scenario; none for one that runs on this machine's own kernel. Images are built when they are not in the cache.
    fn find(scenario: &Scenario) -> anyhow::Result<Option<Self>> {
        if is_local(scenario) {
            return Ok(None);
        }
        let hypervisor = scenario.testbed.hypervisor;
        Ok(Some(Self { images: images(hypervisor)?, accelerator: accelerator(hypervisor) }))
    }

    /// What is known of the environment before anything is booted.
    fn environment(&self) -> Environment {
        Environment {
            accelerator: Some(self.accelerator.name().to_owned()),
            tools: drive::tools::here(),
            images: self.images.describe(),
            ..Environment::default()
        }
    }
}

/// Outside, before anything is started: can it be done here at all, and are the images there?
fn ready(scenario: &Scenario, results: &Path) -> anyhow::Result<()> {
    setup::supported(scenario)?;
    if is_local(scenario) {
        return local::ready(scenario, results);
    }
    Programs::beside(&programs()?)?;
    let spec = setup::memory(scenario);
    let machine = doctor::probe();
    let mut needed = disk(scenario.testbed.hypervisor)?;
    needed.extend([
        Requirement::Works(Subject::Qemu),
        Requirement::Works(Subject::Namespaces),
        Requirement::Works(Subject::Networks),
        Requirement::program("mke2fs", "e2fsprogs"),
        Requirement::program("ssh", "openssh-client"),
        Requirement::program("ssh-keygen", "openssh-client"),
        Requirement::program("ip", "iproute2"),
        Requirement::program("nsenter", "util-linux"),
        Requirement::program("ping", "iputils-ping"),
        Requirement::Memory(u64::from(spec) << 20),
        Requirement::Writable(results.to_owned()),
    ]);
    doctor::require(&machine, &needed)?;
    let images = images(scenario.testbed.hypervisor)?;
    let hypervisor = scenario.testbed.hypervisor;
    Ok(hypervisor.movable(scenario.guest.kind_on(hypervisor), &images.host)?)
}

/// The recipes of a testbed's images: hosts, then guests.
fn recipes(hypervisor: Hypervisor) -> anyhow::Result<[Recipe; 2]> {
    Ok([Recipe::built_in(hypervisor.host().recipe)?, Recipe::built_in("guest")?])
}

/// Room for images that are not in the cache yet.
fn disk(hypervisor: Hypervisor) -> anyhow::Result<Vec<Requirement>> {
    let cache = Cache::open()?;
    for recipe in recipes(hypervisor)? {
        if cache.find(&recipe.digest())?.is_none() {
            let path = Cache::location()?;
            return Ok(vec![
                Requirement::Works(Subject::ImageTools),
                Requirement::Disk { path, bytes: doctor::IMAGES_DISK },
            ]);
        }
    }
    Ok(Vec::new())
}

/// The images of a testbed, built when they are not in the cache.
pub(super) fn images(hypervisor: Hypervisor) -> anyhow::Result<Images> {
    let display = Display::default();
    let mut images =
        build_all(&recipes(hypervisor)?, &Cache::open()?, false, &|progress| display.show(progress))?
            .into_iter();
    let (host, guest) = images.next().zip(images.next()).context("two recipes give two images")?;
    Ok(Images { host, guest })
}

/// What hosts run with; the probe's answer is remembered for this boot.
pub(super) fn accelerator(hypervisor: Hypervisor) -> Accelerator {
    doctor::probe().accelerator_for(hypervisor)
}

/// Inside: the trials, then the report.
fn drive_and_report(
    folder: RunFolder,
    scenario: &Scenario,
    plan: &Plan,
    hosts: Option<&Hosts>,
) -> anyhow::Result<Ended> {
    match hosts {
        None => local::run(&folder, scenario, plan)?,
        Some(Hosts { images, accelerator }) => {
            let spec = setup::spec(scenario, *accelerator, &Programs::beside(&programs()?)?)?;
            let state = namespace::private_folder()?;
            until_stopped(&folder, drive::run::run(&folder, scenario, plan, &spec, images, &state))?;
        }
    }
    let path = folder.finish()?;
    Ok(tell(&crate::report::report(&[&path], None)?))
}

/// What comes after the last trial, as far as it is missing.
fn finish_and_report(path: &Path, stored: &StoredRun) -> anyhow::Result<Ended> {
    if !stored.is_finished() {
        open(path)?.finish()?;
    }
    Ok(tell(&crate::report::report(&[path], None)?))
}

/// Whether a scenario runs on this machine's own kernel, without hosts.
fn is_local(scenario: &Scenario) -> bool {
    scenario.testbed.kind == TestbedKind::Local
}

/// A run that ended before its last trial. What it has measured is in its folder.
#[derive(Debug, thiserror::Error)]
#[error(
    "{reason}{}what was measured is kept: `bench resume {}` goes on from there",
    // A console stands on lines of its own.
    if reason.contains('\n') { "\n" } else { "; " },
    run.display()
)]
struct Interrupted {
    /// Why.
    reason: String,
    /// The run's folder.
    run: PathBuf,
}

/// Does the trials until they are done or somebody stops them.
///
/// # Errors
/// [`Interrupted`].
pub(super) fn until_stopped(
    folder: &RunFolder,
    trials: impl Future<Output = Result<(), DriveError>>,
) -> anyhow::Result<()> {
    let interrupted =
        |reason: &str| Interrupted { reason: reason.trim_end().to_owned(), run: folder.path().to_owned() };
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            done = trials => Ok(done.map_err(|error| interrupted(&output::reason(&error)))?),
            _ = tokio::signal::ctrl_c() => Err(interrupted("stopped").into()),
            _ = terminate.recv() => Err(interrupted("stopped").into()),
        }
    })
}

/// Prints the result and where the report is.
fn tell(report: &Report) -> Ended {
    for sentence in &report.summary {
        outln!("{sentence}");
    }
    for torn in &report.torn {
        errln!("{torn}; it is left out");
    }
    for file in &report.changed {
        errln!("changed since the run: {file}");
    }
    outln!("report: {}", report.html.display());
    if report.invalid == 0 && report.changed.is_empty() {
        return Ended::Done;
    }
    errln!("{} samples are invalid; the report says why", report.invalid);
    Ended::Degraded
}

/// The revision of the checkout that a scenario file lies in, with `-dirty` when it has changes.
fn git_revision(scenario: &Path) -> Option<String> {
    let folder = scenario.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let output = std::process::Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(["describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_stops_says_how_to_go_on() {
        let root = tempfile::tempdir().unwrap();
        let text =
            "title = 't'\nexperiment = 'migration'\n[design]\narms = ['plain']\nblocks = 1\nseed = 1\n";
        let scenario = Scenario::parse("t.toml", text, None).unwrap();
        let folder =
            RunFolder::create(root.path(), &scenario, &Plan::new(&scenario), About::default()).unwrap();
        let error = DriveError::Workload("3 trials in a row failed, the last because: no route".into());
        let told = until_stopped(&folder, std::future::ready(Err(error))).unwrap_err().to_string();
        let run = folder.path().display();
        let expected = format!(
            "3 trials in a row failed, the last because: no route; what was measured is kept: `bench resume {run}` \
             goes on from there"
        );
        assert_eq!(told, expected);
        assert!(until_stopped(&folder, std::future::ready(Ok(()))).is_ok());
    }
}
