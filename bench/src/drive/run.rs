//! A run: the trials of the plan, one after the other, each written down before the next begins.

use std::time::Duration;

use serde_json::{Value, json};

use super::estimate;
use super::gluster::GlusterLab;
use super::lab::{DriveError, Lab};
use super::limits::{self, RunLimit};
use super::migration;
use crate::derive::{self, measure::Measures};
use crate::exec::Exec;
use crate::metric;
use crate::observe::trace::Recorder;
use crate::plan::Plan;
use crate::progress::Progress;
use crate::scenario::{Experiment, Scenario};
use crate::store::{Environment, Outcome, RunFolder};
use crate::testbed::node::Node;
use crate::testbed::plain::Private;
use crate::testbed::up::{Images, Spec};
use crate::workload::layers::peer::Notes;

/// A run stops when this many trials in a row fail: something is broken that more trials do not mend.
pub(super) const FAILURES_IN_A_ROW: usize = 3;

/// How long it may take to end a guest, boot another one, and start the file servers anew.
const RESTORE: Duration = Duration::from_secs(1200);

/// Does the trials of the plan that have not ended yet, after a warm-up. When none is left, nothing is booted.
///
/// # Errors
/// When the testbed does not come up, a link is not as asked, the folder cannot be written, several trials in a row fail, the
/// run's deadline has passed, or the testbed cannot be restored after a trial that passed its own. What was measured until then
/// is in the folder.
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
    let run_limit = RunLimit::begin(scenario, &left, plan.trials.len());
    let progress = Progress::new(estimate::steps(scenario, &left, spec.accelerator));
    // Before the hosts load this machine.
    let tools = super::tools::here();
    progress.begin();
    // A resumed run boots again, and keeps the consoles of both boots.
    let boot = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
    let first = folder.raw_file(&format!("boot-{boot}/console"))?;
    let logs = first.parent().unwrap_or(folder.path()).to_owned();
    let lab = Lab::up(scenario, spec, images, state, &logs).await?;
    describe(folder, &lab, images, tools).await?;
    let gluster = match scenario.experiment {
        Experiment::Migration | Experiment::Layers => None,
        Experiment::Gluster => {
            progress.begin();
            Some(GlusterLab::up(&lab, folder).await?)
        }
    };
    let mut failures = 0;
    let mut ended = Ok(());
    for (position, trial) in left.iter().enumerate() {
        ended = run_limit.allows(left.len() - position);
        if ended.is_err() {
            break;
        }
        progress.begin();
        folder.trial_started(trial)?;
        let recorder = Recorder::new(folder, trial);
        let mut values = Measures::default();
        let limit = limits::of(scenario, trial);
        let done = match &gluster {
            None => limits::trial(limit, migration::trial(&lab, trial, &recorder)).await,
            Some(gluster) => {
                limits::trial(limit, gluster.trial(&lab, trial, folder, &recorder, &mut values)).await
            }
        };
        let cut_off = limits::was_cut_off(&done);
        let trace = recorder.end(&lab.beats, &lab.pings)?;
        values.extend(derive::values(&trace, scenario, trial));
        let outcome = outcome(done, &mut values);
        folder.samples(&values.samples(trial, &lab.conditions))?;
        folder.trial_ended(trial, &outcome)?;
        let Outcome::Failed { reason } = outcome else {
            failures = 0;
            continue;
        };
        progress.note(&format!("block {}, {}: {reason}", trial.block, trial.arm));
        failures += 1;
        if failures == FAILURES_IN_A_ROW {
            return Err(DriveError::Workload(format!(
                "{FAILURES_IN_A_ROW} trials in a row failed, the last because: {reason}"
            )));
        }
        if cut_off && position + 1 < left.len() {
            progress.note("the guest is started anew");
            limits::restored(RESTORE, restore(&lab, gluster.as_ref())).await?;
        }
    }
    progress.begin();
    lab.testbed.down().await;
    progress.finish();
    ended
}

/// Brings the testbed back to where a trial can begin.
async fn restore(lab: &Lab, gluster: Option<&GlusterLab>) -> Result<(), DriveError> {
    lab.restore().await?;
    match gluster {
        None => Ok(()),
        Some(gluster) => gluster.restore(lab).await,
    }
}

/// How a trial ended. What was measured until it failed stays, and a sample says that something is missing.
pub(super) fn outcome(done: Result<(), DriveError>, values: &mut Measures) -> Outcome {
    let Err(error) = done else { return Outcome::Completed };
    let reason = error.to_string().replace('\n', " | ");
    values.invalid(metric::TRIAL_FAILED, "", "1", &reason);
    Outcome::Failed { reason }
}

/// Writes down what the machines are.
async fn describe(folder: &RunFolder, lab: &Lab, images: &Images, tools: Value) -> Result<(), DriveError> {
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
        tools,
        peers: Notes::new(),
    })?;
    for (name, image) in [("host", &images.host), ("guest", &images.guest)] {
        folder.packages(name, &image.packages())?;
    }
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
