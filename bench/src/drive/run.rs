//! A run: the trials of the plan, one after the other, each written down before the next begins.

use std::time::Duration;

use serde_json::{Value, json};

use super::gluster::GlusterLab;
use super::lab::{DriveError, Lab};
use super::measure::{Measures, failed};
use super::migration;
use crate::exec::Exec;
use crate::plan::{Plan, Trial};
use crate::progress::{Progress, Step};
use crate::scenario::{Experiment, Scenario};
use crate::store::{Environment, Outcome, RunFolder};
use crate::testbed::node::Node;
use crate::testbed::plain::Private;
use crate::testbed::up::{Images, Spec};
use crate::workload::layers::peer::Notes;

/// A run stops when this many trials in a row fail: something is broken that more trials do not mend.
pub(super) const FAILURES_IN_A_ROW: usize = 3;

/// The steps of a run, with how long each takes on an emulated machine of two cores.
pub fn steps(scenario: &Scenario, trials: &[Trial]) -> Vec<Step> {
    if let Some(layers) = &scenario.layers {
        return super::layers::steps(scenario, layers, trials);
    }
    let host = scenario.testbed.hypervisor.host();
    let mut steps = vec![Step::new("boot hosts and guest", host.boot_seconds)];
    if scenario.experiment == Experiment::Gluster {
        steps.push(Step::new("start servers, shape and measure links", 65));
    }
    for trial in trials {
        let which = if trial.is_warmup() {
            "warm-up".to_owned()
        } else {
            format!("block {} of {}", trial.block, scenario.design.blocks)
        };
        let seconds = match scenario.experiment {
            Experiment::Migration | Experiment::Layers => 20,
            Experiment::Gluster if trial.file_operations => 560,
            Experiment::Gluster => 140,
        };
        steps.push(Step::new(format!("{which}, {}", trial.arm), seconds));
    }
    steps
}

/// Does the trials of the plan that have not ended yet, after a warm-up. When none is left, nothing is booted.
///
/// # Errors
/// When the testbed does not come up, a link is not as asked, the folder cannot be written, or
/// several trials in a row fail. What was measured until then is in the folder.
pub async fn run(
    folder: &RunFolder,
    scenario: &Scenario,
    plan: &Plan,
    spec: &Spec,
    images: &Images,
    state: &Private,
) -> Result<(), DriveError> {
    let left = plan.left(&folder.completed_trials());
    if left.is_empty() {
        return Ok(());
    }
    let progress = Progress::new(steps(scenario, &left));
    progress.begin();
    // A resumed run boots again, and keeps the consoles of both boots.
    let boot = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let first = folder.raw_file(&format!("boot-{boot}/console"))?;
    let logs = first.parent().unwrap_or(folder.path()).to_owned();
    let lab = Lab::up(scenario, spec, images, state, &logs).await?;
    describe(folder, &lab, images).await?;
    let gluster = match scenario.experiment {
        Experiment::Migration | Experiment::Layers => None,
        Experiment::Gluster => {
            progress.begin();
            Some(GlusterLab::up(&lab, folder).await?)
        }
    };
    let mut failures = 0;
    for trial in &left {
        progress.begin();
        folder.trial_started(trial)?;
        let measured = match &gluster {
            None => migration::trial(&lab, trial).await,
            Some(gluster) => gluster.trial(&lab, trial, folder).await,
        };
        let (values, outcome) = outcome(measured);
        if let Outcome::Failed { reason } = &outcome {
            progress.note(&format!("block {}, {}: {reason}", trial.block, trial.arm));
            failures += 1;
        } else {
            failures = 0;
        }
        let samples = values.samples(trial, &lab.conditions);
        folder.samples(&samples)?;
        folder.trial_ended(trial, &outcome)?;
        if failures == FAILURES_IN_A_ROW {
            let Outcome::Failed { reason } = outcome else { break };
            return Err(DriveError::Workload(format!(
                "{FAILURES_IN_A_ROW} trials in a row failed, the last because: {reason}"
            )));
        }
    }
    progress.finish();
    lab.testbed.down().await;
    Ok(())
}

fn outcome(trial: Result<Measures, DriveError>) -> (Measures, Outcome) {
    match trial {
        Ok(measures) => (measures, Outcome::Completed),
        Err(error) => {
            let reason = error.to_string().replace('\n', " | ");
            (failed(&reason), Outcome::Failed { reason })
        }
    }
}

/// Writes down what the machines are.
async fn describe(folder: &RunFolder, lab: &Lab, images: &Images) -> Result<(), DriveError> {
    let mut machines = serde_json::Map::new();
    for node in lab.testbed.hosts.iter().chain(&lab.testbed.servers) {
        machines.insert(node.name().to_owned(), machine(node, lab.testbed.hypervisor.host().packages).await?);
    }
    folder.environment(Environment {
        accelerator: Some(lab.conditions.accelerator.to_owned()),
        dilation: Some(lab.conditions.dilation),
        hosts: Value::Object(machines),
        guests: json!({
            lab.testbed.guest.name.clone(): {
                "memory_mib": lab.testbed.guest.memory_mib,
                "vcpus": lab.testbed.guest.vcpus,
                "kernel_command_line": lab.testbed.guest_append,
            }
        }),
        images: images.describe(),
        tools: super::tools::here(),
        peers: Notes::new(),
    })?;
    Ok(())
}

async fn machine(node: &Node, packages: &[&str]) -> Result<Value, DriveError> {
    let script = format!(
        "uname -srv; cat /proc/cmdline; nproc; grep -m1 'model name' /proc/cpuinfo; \
         dpkg-query -W -f '${{Package}} ${{Version}}\\n' {} glusterfs-server iproute2 bonnie++ 2>/dev/null || true",
        packages.join(" ")
    );
    let text = node.ssh.demand("describe the machine", &script, Duration::from_secs(60)).await?;
    Ok(json!({
        "memory_mib": node.machine.memory_mib,
        "vcpus": node.machine.vcpus,
        "accelerator": node.accelerator.name(),
        "boot_seconds": (node.boot_time.as_secs_f64() * 10.0).round() / 10.0,
        "description": text.lines().collect::<Vec<_>>(),
    }))
}
