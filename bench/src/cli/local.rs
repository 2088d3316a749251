//! Experiment `layers` from the command line: what it needs here, its run inside the namespaces, and the hidden
//! subcommand that is its probe.

use std::path::Path;

use anyhow::Context as _;
use clap::Args;
use ctx_io::{errln, outln};

use super::stop::Stoppable;
use super::{Ended, programs};
use crate::doctor::{self, Requirement, Subject};
use crate::drive;
use crate::plan::Plan;
use crate::scenario::{Arm, Scenario};
use crate::store::{Environment, RunFolder};
use crate::testbed::namespace;
use crate::workload::layers::peer::Note;
use crate::workload::layers::task::Task;

#[derive(Debug, Args)]
pub(super) struct ProbeArguments {
    /// The task, as JSON
    task: String,
}

/// Does one task and prints what it found.
pub(super) fn probe(arguments: &ProbeArguments) -> anyhow::Result<Ended> {
    let task: Task = serde_json::from_str(&arguments.task).context("the task cannot be read")?;
    outln!("{}", serde_json::to_string(&task.run()?)?);
    Ok(Ended::Done)
}

/// What a scenario needs on this machine. The programs of peers are not among it: an arm whose program is missing is absent
/// from the run, which says so.
fn needs(scenario: &Scenario) -> Vec<Requirement> {
    let mut needed = vec![Requirement::Works(Subject::Namespaces)];
    let arms = &scenario.design.arms;
    if arms.iter().any(|arm| !matches!(arm, Arm::Native | Arm::Overlayfs)) {
        needed.push(Requirement::Works(Subject::Fuse));
    }
    needed.push(Requirement::Memory(drive::layers::memory(&scenario.layers.clone().unwrap_or_default())));
    needed
}

/// What is lacking here; and, for a person, which arms would be left out and why.
pub(super) fn check(scenario: &Scenario) -> anyhow::Result<Ended> {
    let programs = programs()?;
    let (ffs, linux) = (programs.join("ffs"), drive::layers::linux());
    for arm in &scenario.design.arms {
        if let (_, Some(why)) = drive::layers::look(*arm, &ffs, &linux) {
            outln!("{arm} will be absent: {why}.");
        }
    }
    match doctor::require(&doctor::probe(), &needs(scenario)) {
        Ok(()) => Ok(Ended::Done),
        Err(unmet) => {
            errln!("{unmet}");
            Ok(Ended::Degraded)
        }
    }
}

/// Outside, before anything is started: can it be done here at all?
pub(super) fn ready(scenario: &Scenario, results: &Path) -> anyhow::Result<()> {
    if scenario.design.arms.iter().any(|arm| arm.is_ours()) {
        let ffs = programs()?.join("ffs");
        anyhow::ensure!(
            ffs.is_file(),
            "{} is missing: `ci/build` builds all programs into one folder, run `bench` from there",
            ffs.display()
        );
    }
    let mut needed = needs(scenario);
    needed.push(Requirement::Writable(results.to_owned()));
    Ok(doctor::require(&doctor::probe(), &needed)?)
}

/// What is compared before a run goes on: this machine's kernel and processor, and the file systems' versions.
pub(super) fn environment(scenario: &Scenario) -> anyhow::Result<Environment> {
    let (ffs, linux) = (programs()?.join("ffs"), drive::layers::linux());
    let note = |arm: &Arm| {
        let (version, absent) = drive::layers::look(*arm, &ffs, &linux);
        (arm.name().to_owned(), Note { version, absent, ..Note::default() })
    };
    let mut tools = drive::tools::here();
    // It boots nothing here.
    tools["qemu"] = serde_json::Value::Null;
    Ok(Environment {
        accelerator: Some(drive::layers::NONE.to_owned()),
        tools,
        peers: scenario.design.arms.iter().map(note).collect(),
        ..Environment::default()
    })
}

/// Inside: the trials.
pub(super) fn run(
    folder: &RunFolder,
    scenario: &Scenario,
    plan: &Plan,
    stoppable: &Stoppable,
) -> anyhow::Result<()> {
    let state = namespace::private_folder()?;
    let programs = programs()?;
    super::run::until_stopped(
        folder,
        stoppable,
        drive::layers::run(folder, scenario, plan, &programs, state.path().as_ref()),
    )
}
