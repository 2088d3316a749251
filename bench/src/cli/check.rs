//! `bench check`: what a scenario would do, without starting anything. Of one with steps, what a trial of each arm would do, from top
//! to bottom.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use ctx_io::{outln, output};

use super::run::{NOT_YET, is_local, is_of_steps, load, told};
use super::{Ended, local};
use crate::compile;
use crate::doctor::Accelerator;
use crate::drive::{self, setup};
use crate::image::{Cache, Recipe};
use crate::model::{self, Arm, Step};
use crate::plan::Plan;
use crate::progress::human;
use crate::scenario::{AcceleratorChoice, GuestType, Scenario};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The scenario file
    scenario: PathBuf,
    /// Lay this profile of the scenario over it
    #[arg(long)]
    profile: Option<String>,
}

pub(super) fn check(arguments: &Arguments) -> anyhow::Result<Ended> {
    if is_of_steps(&arguments.scenario) {
        let compiled =
            compile::load(&arguments.scenario, arguments.profile.as_deref()).map_err(|error| told(&error))?;
        output::text(&text(&compiled.plan));
        outln!("{NOT_YET}");
        return Ok(Ended::Done);
    }
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
    if is_local(&scenario) {
        outln!("About {} on this machine.", about(&scenario, &plan, Accelerator::Tcg));
    } else {
        let emulated = format!("{} on emulated hosts", about(&scenario, &plan, Accelerator::Tcg));
        let hardware = format!("{} with hardware virtualization", about(&scenario, &plan, Accelerator::Kvm));
        match scenario.testbed.accelerator {
            AcceleratorChoice::Auto => outln!("About {emulated}, {hardware}."),
            AcceleratorChoice::Tcg => outln!("About {emulated}."),
            AcceleratorChoice::Kvm => outln!("About {hardware}."),
        }
    }
    let (trial, run) = drive::limits::of_plan(&scenario, &plan.trials);
    outln!("A trial is given up after {}; after {} no other begins.", human(trial), human(run));
    if is_local(&scenario) {
        return local::check(&scenario);
    }
    Ok(Ended::Done)
}

/// About how long a run takes, for a person.
fn about(scenario: &Scenario, plan: &Plan, accelerator: Accelerator) -> String {
    let steps = drive::estimate::steps(scenario, &plan.trials, accelerator);
    human(steps.iter().map(|step| step.expected).sum())
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

/// More trials are not read by anybody.
const SHOWN: usize = 200;

/// The machines, each arm's trial step by step, and the trials in their order.
fn text(plan: &model::Plan) -> String {
    let mut text = format!("{}: {}\n", plan.name, plan.title);
    let mut put = |line: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    };
    for host in &plan.hosts {
        put(&format!("  host {}: {}, site {}", host.name, host.hypervisor, host.site));
    }
    for server in &plan.servers {
        put(&format!("  server {}: {}, site {}", server.name, server.memory, server.site));
    }
    for (index, arm) in plan.arms.iter().enumerate() {
        put("");
        put(&format!("arm {}", arm.name));
        for guest in &arm.guests {
            put(&format!("  guest {}: {}, at {}", guest.name, guest.memory, guest.at));
        }
        // Arms of a matrix that differ in values alone are read once.
        let before = plan.arms[..index].iter().find(|before| is_like(before, arm));
        match before {
            Some(before) => put(&format!("  the steps of arm {}", before.name)),
            None => program(&arm.program, 1, &mut put),
        }
    }
    put("");
    put(&format!("{} trials, in this order:", plan.trials.len()));
    for trial in plan.trials.iter().take(SHOWN) {
        put(&format!("  {:>3}  block {}  {}", trial.order, trial.block, trial.arm));
    }
    if plan.trials.len() > SHOWN {
        put(&format!("  … and {} more", plan.trials.len() - SHOWN));
    }
    text
}

fn is_like(one: &Arm, other: &Arm) -> bool {
    one.program == other.program
}

fn program(steps: &[Step], depth: usize, put: &mut dyn FnMut(&str)) {
    for step in steps {
        let mut notes = Vec::new();
        notes.extend(step.phase.as_ref().map(|phase| format!("phase {phase}")));
        notes.extend(step.blocks.map(|blocks| format!("blocks {} to {}", blocks.from, blocks.to)));
        notes.extend((step.repeat > 1).then(|| format!("{} times", step.repeat)));
        notes.extend(step.deadline.map(|time| format!("within {time}")));
        notes.extend(step.may_fail.then(|| "may fail".to_owned()));
        let notes = if notes.is_empty() { String::new() } else { format!("  [{}]", notes.join(", ")) };
        let what = said(step);
        put(&format!("{:indent$}{:<18} {what}{notes}", "", step.name, indent = 2 * depth));
        for (number, chain) in step.chains.iter().enumerate() {
            put(&format!("{:indent$}at the same time, {}:", "", number + 1, indent = 2 * depth + 2));
            program(chain, depth + 2, put);
        }
    }
}

/// The arguments of a step as a line, its verb's own first.
fn said(step: &Step) -> String {
    let Some(arguments) = step.arguments.as_object() else { return step.verb.clone() };
    let own = arguments.get(&step.verb).map(word).unwrap_or_default();
    let rest = arguments.iter().filter(|(key, _)| **key != step.verb);
    let rest = rest.map(|(key, value)| format!(" {key} {}", word(value)));
    format!("{} {own}{}", step.verb, rest.collect::<String>())
}

/// A value on one line, and not a long one.
fn word(value: &serde_json::Value) -> String {
    const LONG: usize = 60;
    let text = match value {
        serde_json::Value::String(text) => text.split_whitespace().collect::<Vec<_>>().join(" "),
        serde_json::Value::Array(items) => items.iter().map(word).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    };
    match text.char_indices().nth(LONG) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_is_read_from_top_to_bottom() {
        let text = "title = 't'\n[[host]]\nname = 'a'\n[[host]]\nname = 'b'\n[[guest]]\nname = 'vm'\nat = 'a'\n\
            [matrix]\n'guest.vm.memory' = ['128 MiB', '256 MiB']\n[[step]]\nplace = 'vm'\n\
            [[step]]\nname = 'move'\nmigrate = 'vm'\nto = 'b'\ndeadline = '5 min'\n\
            [[step]]\ntogether = [[{ mark = 'x' }], [{ command = 'true', on = 'vm' }]]\n\
            [design]\nblocks = 1\nwarmup = 0\nseed = 1\n";
        let none = |_: &std::path::Path| Err(std::io::ErrorKind::NotFound.into());
        let plan = crate::compile::parse("t.toml", text, None, &none).unwrap().plan;
        insta::assert_snapshot!(self::text(&plan));
    }
}
