//! `bench check | run | resume | report | schema`: from a scenario to a report.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use ctx_io::{errln, outln, output};

use super::stop::Stoppable;
use super::{Ended, local, programs};
use crate::compile;
use crate::derive::definition;
use crate::doctor::{self, Accelerator, Requirement, Subject};
use crate::drive;
use crate::drive::lab::DriveError;
use crate::drive::setup::{self, Programs};
use crate::gate::{Margin, Verdict};
use crate::image::{Cache, Display, Recipe, build_all};
use crate::language::ScenarioError;
use crate::plan::Plan;
use crate::provenance;
use crate::report::Report;
use crate::scenario::{AcceleratorChoice, Scenario, TestbedKind};
use crate::store::{
    About, Environment, Manifest, OtherEnvironment, RunFolder, StoredRun, StoredScenario, differences,
};
use crate::testbed::hypervisor::Hypervisor;
use crate::testbed::namespace;
use crate::testbed::up::Images;

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
    /// What runs the hosts, whatever the scenario says; auto takes hardware virtualization where hosts come up with it
    #[arg(long, value_enum)]
    accelerator: Option<AcceleratorChoice>,
}

#[derive(Debug, Args)]
pub(super) struct ResumeArguments {
    /// The folder of the run
    run: PathBuf,
    /// What runs the hosts of a run that was cut off before they were up; else it must be what they had
    #[arg(long, value_enum)]
    accelerator: Option<AcceleratorChoice>,
}

#[derive(Debug, Args)]
pub(super) struct ReportArguments {
    /// Folders of runs; several are shown side by side
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where the report of several runs, or with metrics of your own, is put
    #[arg(long)]
    out: Option<PathBuf>,
    /// A TOML file of metrics to compute from what the runs have seen (bench/docs/metrics.md)
    #[arg(long, value_name = "FILE", requires = "out")]
    metrics: Option<PathBuf>,
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
pub(super) fn load(path: &Path, profile: Option<&str>) -> anyhow::Result<Scenario> {
    if is_of_steps(path) {
        compile::load(path, profile).map_err(|error| told(&error))?;
        anyhow::bail!("{}: {NOT_YET}", path.display());
    }
    Scenario::load(path, profile).map_err(|error| told(&error))
}

/// What is said of a scenario whose trial is a list of steps.
pub(super) const NOT_YET: &str = "this bench reads and checks scenarios with steps, and cannot run them yet: run one with an `experiment`, such as scenarios/smoke.toml";

/// Whether a file is a scenario with steps; one that cannot be read is not known to be.
pub(super) fn is_of_steps(path: &Path) -> bool {
    ctx_io::bounded::read_to_string(path, ctx_io::bounded::CONFIG).is_ok_and(|text| compile::has_steps(&text))
}

/// An error of a scenario with its line and caret.
pub(super) fn told(error: &ScenarioError) -> anyhow::Error {
    let reason = error.render();
    if error.is_misuse() { output::Misuse(reason).into() } else { anyhow::Error::msg(reason) }
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
    let definitions = arguments.metrics.as_deref().map(definition::read).transpose();
    let definitions = definitions.map_err(|error| anyhow::Error::msg(error.render()))?.unwrap_or_default();
    let report = crate::report::report_with(&runs, arguments.out.as_deref(), &definitions)?;
    Ok(tell(&report))
}

pub(super) fn run(arguments: &RunArguments) -> anyhow::Result<Ended> {
    let scenario = load(&arguments.scenario, arguments.profile.as_deref())?;
    boots_hosts(&scenario, arguments.accelerator)?;
    let choice = arguments.accelerator.unwrap_or(scenario.testbed.accelerator);
    if !namespace::inside() {
        ready(&scenario, choice, &arguments.results)?;
        return Err(namespace::enter().into());
    }
    let stoppable = Stoppable::begin()?;
    let plan = Plan::new(&scenario);
    let about = About {
        scenario_revision: provenance::revision_of(&arguments.scenario),
        accelerator: arguments.accelerator,
        ..origin(&scenario)?
    };
    let folder = RunFolder::create(&arguments.results, &scenario, &plan, about)?;
    errln!("run {}", folder.path().display());
    let hosts = Hosts::find(&scenario, choice)?;
    drive_and_report(folder, &scenario, &plan, hosts.as_ref(), &stoppable)
}

/// Which programs measure a scenario: this one, and those beside it that are used.
fn origin(scenario: &Scenario) -> anyhow::Result<About> {
    let folder = programs()?;
    let digests = if is_local(scenario) {
        let ffs = folder.join("ffs");
        let used = scenario.design.arms.iter().any(|arm| arm.is_ours());
        provenance::digests(used.then_some(("ffs", ffs.as_path())))
    } else {
        provenance::digests(Programs::beside(&folder)?.named())
    };
    Ok(About {
        git_revision: provenance::revision(),
        cargo_lock: Some(provenance::lock()),
        programs: digests?,
        ..About::default()
    })
}

/// Refuses an accelerator for a scenario without hosts.
fn boots_hosts(scenario: &Scenario, asked: Option<AcceleratorChoice>) -> Result<(), output::Misuse> {
    match asked {
        Some(asked) if is_local(scenario) => Err(output::Misuse(format!(
            "--accelerator {asked}: {} boots no hosts, it runs on this machine's own kernel; leave it out",
            scenario.name()
        ))),
        _ => Ok(()),
    }
}

/// What the hosts of a run that goes on are to run with: what they had, or, when they were never up, what was asked for.
fn choice_of(run: &StoredRun, asked: Option<AcceleratorChoice>) -> Result<AcceleratorChoice, output::Misuse> {
    boots_hosts(&run.scenario, asked)?;
    let had = match run.manifest.accelerator.as_deref() {
        Some("kvm") => AcceleratorChoice::Kvm,
        Some("tcg") => AcceleratorChoice::Tcg,
        _ => {
            let before = run.manifest.accelerator_asked.unwrap_or(run.scenario.testbed.accelerator);
            return Ok(asked.unwrap_or(before));
        }
    };
    match asked {
        Some(asked) if asked != had && asked != AcceleratorChoice::Auto => Err(output::Misuse(format!(
            "--accelerator {asked}: the hosts of this run had the accelerator {had}; resume it with that, or start a new one with `bench run`"
        ))),
        _ => Ok(had),
    }
}

pub(super) fn resume(arguments: &ResumeArguments) -> anyhow::Result<Ended> {
    let stored = StoredRun::read(&arguments.run)?;
    if stored.is_measured() {
        // The manifest, the checksums or the report could not be written at its end.
        return finish_and_report(&arguments.run, &stored);
    }
    let scenario = as_asked(&stored)?;
    let choice = choice_of(&stored, arguments.accelerator)?;
    if !namespace::inside() {
        // What is known without an image or a probe, so that neither is made for a run that is then refused.
        same_environment(&stored, &scenario, known(&scenario)?)?;
        ready(&scenario, choice, &arguments.run)?;
        return Err(namespace::enter().into());
    }
    let stoppable = Stoppable::begin()?;
    let hosts = Hosts::find(&scenario, choice)?;
    let environment = match &hosts {
        None => local::environment(&scenario)?,
        Some(hosts) => hosts.environment(),
    };
    same_environment(&stored, &scenario, environment)?;
    drive_and_report(open(&arguments.run)?, &scenario, &stored.manifest.plan, hosts.as_ref(), &stoppable)
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
    // That a program is missing is told when it is needed.
    let about = origin(scenario).unwrap_or_else(|_| About {
        git_revision: provenance::revision(),
        cargo_lock: Some(provenance::lock()),
        ..About::default()
    });
    let differences = differences(&stored.manifest, &Manifest::here(scenario, about, environment));
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
    fn find(scenario: &Scenario, choice: AcceleratorChoice) -> anyhow::Result<Option<Self>> {
        if is_local(scenario) {
            return Ok(None);
        }
        let hypervisor = scenario.testbed.hypervisor;
        let images = images(hypervisor)?;
        Ok(Some(Self { images, accelerator: doctor::accelerator(hypervisor, choice)? }))
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
fn ready(scenario: &Scenario, choice: AcceleratorChoice, results: &Path) -> anyhow::Result<()> {
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
    let hypervisor = scenario.testbed.hypervisor;
    needed.extend(hardware(hypervisor, choice));
    doctor::require(&machine, &needed)?;
    let images = images(hypervisor)?;
    // What could not be tried without an image is tried now.
    doctor::accelerator(hypervisor, choice)?;
    Ok(hypervisor.movable(scenario.guest.kind_on(hypervisor), &images.host)?)
}

/// What a choice needs of a machine, before anything is built.
pub(super) fn hardware(hypervisor: Hypervisor, choice: AcceleratorChoice) -> Vec<Requirement> {
    match choice {
        AcceleratorChoice::Kvm => {
            vec![Requirement::Accelerator { accelerator: Accelerator::Kvm, hypervisor }]
        }
        AcceleratorChoice::Auto | AcceleratorChoice::Tcg => Vec::new(),
    }
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

/// Inside: the trials, then the report.
fn drive_and_report(
    folder: RunFolder,
    scenario: &Scenario,
    plan: &Plan,
    hosts: Option<&Hosts>,
    stoppable: &Stoppable,
) -> anyhow::Result<Ended> {
    stoppable.says(Interrupted::new("stopped", &folder).to_string());
    match hosts {
        None => local::run(&folder, scenario, plan, stoppable)?,
        Some(Hosts { images, accelerator }) => {
            let spec = setup::spec(scenario, *accelerator, &Programs::beside(&programs()?)?)?;
            let state = namespace::private_folder()?;
            let trials = drive::run::run(&folder, scenario, plan, &spec, images, &state);
            until_stopped(&folder, stoppable, trials)?;
        }
    }
    folder.update_manifest(|manifest| drive::tools::ended(&mut manifest.tools))?;
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
pub(super) fn is_local(scenario: &Scenario) -> bool {
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

impl Interrupted {
    fn new(reason: &str, folder: &RunFolder) -> Self {
        Self { reason: reason.trim_end().to_owned(), run: folder.path().to_owned() }
    }
}

/// Does the trials until they are done or somebody stops them.
///
/// # Errors
/// [`Interrupted`].
pub(super) fn until_stopped(
    folder: &RunFolder,
    stoppable: &Stoppable,
    trials: impl Future<Output = Result<(), DriveError>>,
) -> anyhow::Result<()> {
    match stoppable.until_stopped(trials) {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(Interrupted::new(&output::reason(&error), folder).into()),
        None => Err(anyhow::anyhow!(stoppable.said())),
    }
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
    for value in &report.otherwise {
        errln!("does not follow from what the run has seen: {value}");
    }
    outln!("report: {}", report.html.display());
    if report.invalid == 0 && report.changed.is_empty() && report.otherwise.is_empty() {
        return Ended::Done;
    }
    if report.invalid > 0 {
        errln!("{} samples are invalid; the report says why", report.invalid);
    }
    Ended::Degraded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of a scenario with these lines under `[testbed]`, whose hosts had an accelerator.
    fn run(testbed: &str, about: About, had: Option<&str>) -> StoredRun {
        let root = tempfile::tempdir().unwrap();
        let text = format!(
            "title = 't'\nexperiment = 'migration'\n[testbed]\n{testbed}\n[design]\narms = ['plain']\nblocks = 1\nseed = 1\n"
        );
        let scenario = Scenario::parse("t.toml", &text, None).unwrap();
        let run = RunFolder::create(root.path(), &scenario, &Plan::new(&scenario), about).unwrap();
        run.update_manifest(|manifest| manifest.accelerator = had.map(str::to_owned)).unwrap();
        StoredRun::read(run.path()).unwrap()
    }

    #[test]
    fn a_resumed_run_has_the_accelerator_that_it_had() {
        use AcceleratorChoice::{Auto, Kvm, Tcg};
        let had =
            |had, asked| choice_of(&run("", About::default(), had), asked).map_err(|error| error.to_string());
        assert_eq!(had(Some("tcg"), None), Ok(Tcg));
        assert_eq!(had(Some("kvm"), None), Ok(Kvm));
        assert_eq!(had(Some("tcg"), Some(Tcg)), Ok(Tcg));
        assert_eq!(had(Some("tcg"), Some(Auto)), Ok(Tcg), "whatever the machine can do by now");
        for (was, asked) in [("tcg", Kvm), ("kvm", Tcg)] {
            let told = had(Some(was), Some(asked)).unwrap_err();
            assert!(told.contains(&format!("had the accelerator {was}")), "{told}");
        }
        // The hosts were never up.
        assert_eq!(had(None, None), Ok(Auto));
        assert_eq!(had(None, Some(Kvm)), Ok(Kvm));
    }

    #[test]
    fn a_run_whose_hosts_were_never_up_goes_on_as_it_was_asked() {
        use AcceleratorChoice::{Auto, Kvm, Tcg};
        let asked = |accelerator| About { accelerator, ..About::default() };
        let of = |about, now| choice_of(&run("accelerator = 'kvm'", about, None), now).unwrap();
        assert_eq!(of(asked(None), None), Kvm);
        assert_eq!(of(asked(Some(Tcg)), None), Tcg);
        assert_eq!(of(asked(Some(Tcg)), Some(Auto)), Auto);
    }

    #[test]
    fn a_run_that_stops_says_how_to_go_on() {
        let root = tempfile::tempdir().unwrap();
        let text =
            "title = 't'\nexperiment = 'migration'\n[design]\narms = ['plain']\nblocks = 1\nseed = 1\n";
        let scenario = Scenario::parse("t.toml", text, None).unwrap();
        let folder =
            RunFolder::create(root.path(), &scenario, &Plan::new(&scenario), About::default()).unwrap();
        let error = DriveError::Workload("3 trials in a row failed, the last because: no route".into());
        let stoppable = Stoppable::begin().unwrap();
        let told =
            until_stopped(&folder, &stoppable, std::future::ready(Err(error))).unwrap_err().to_string();
        let run = folder.path().display();
        let expected = format!(
            "3 trials in a row failed, the last because: no route; what was measured is kept: `bench resume {run}` \
             goes on from there"
        );
        assert_eq!(told, expected);
        assert!(until_stopped(&folder, &stoppable, std::future::ready(Ok(()))).is_ok());
    }
}
