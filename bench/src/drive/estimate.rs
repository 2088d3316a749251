//! How long the steps of a run take, for `bench check` and for the progress of a run.
//!
//! Times on emulated hosts are medians of the runs in `results/reference`, whose `events.jsonl` says when each trial began and
//! ended; a test compares them. All are of one machine of two cores. No run with hardware virtualization is stored: there a quarter is
//! assumed of what the processor does, and the links are those that are asked for.
//!
//! The progress scales what is left by what has ended, so a faster or slower machine is noticed after a few steps.

use crate::doctor::Accelerator;
use crate::plan::Trial;
use crate::progress::Step;
use crate::scenario::{Arm, Experiment, Hypervisor, Layers, Scenario, Size};

/// What the steps take on emulated hosts with one hypervisor, in seconds.
struct Emulated {
    /// From the start until hosts and guest are up.
    boot: u64,
    /// A plain migration, with the way back of the one before it.
    plain: u64,
    /// The same with recontextualization.
    recontext: u64,
    /// A trial of experiment `gluster` without Bonnie++.
    client: u64,
    /// What Bonnie++'s file operations add, a thousand files in each of two phases.
    files: u64,
}

/// Runs `migration-kvm` (22 trials) and `gluster-kvm` (5).
const KVM: Emulated = Emulated { boot: 46, plain: 16, recontext: 18, client: 30, files: 420 };
/// Runs `migration-xen` (12 trials) and `gluster-xen` (5). A PVH guest's memory is copied more slowly, there and back.
const XEN: Emulated = Emulated { boot: 72, plain: 71, recontext: 88, client: 73, files: 447 };

/// What two file servers that boot beside the hosts add, in seconds; emulated.
const SERVERS_BOOT: u64 = 20;
/// Starting GlusterFS, shaping the links and measuring every path, in seconds; emulated.
const LINKS: u64 = 80;
/// What a MiB of Bonnie++'s file takes in all three phases, in seconds, for each of the links' dilation.
const BLOCK: f64 = 4.0;
/// Stopping the machines, in seconds, whatever runs them: what is waited for has time-outs.
const STOP: u64 = 19;
/// How much longer what the processor does takes on emulated hosts. Assumed.
const SLOWER: u64 = 4;
/// What of each step is no work, in seconds: a trial begins when a guest has beaten for two seconds without a gap.
const WAITS: u64 = 3;

impl Emulated {
    const fn of(hypervisor: Hypervisor) -> &'static Self {
        match hypervisor {
            Hypervisor::Kvm => &KVM,
            Hypervisor::Xen => &XEN,
        }
    }
}

/// What takes so many seconds on emulated hosts, on hosts with an accelerator.
const fn work(seconds: u64, accelerator: Accelerator) -> u64 {
    match accelerator {
        Accelerator::Tcg => seconds,
        Accelerator::Kvm => WAITS + seconds.saturating_sub(WAITS).div_ceil(SLOWER),
    }
}

/// The steps of a run on hosts with an accelerator, with about how long each takes; for experiment `layers`, on this machine's own kernel.
pub fn steps(scenario: &Scenario, trials: &[Trial], accelerator: Accelerator) -> Vec<Step> {
    let nested = scenario.layers.is_none();
    let mut steps = Vec::new();
    if nested {
        let gluster = scenario.experiment == Experiment::Gluster;
        let boot = Emulated::of(scenario.testbed.hypervisor).boot + if gluster { SERVERS_BOOT } else { 0 };
        steps.push(Step::new("boot hosts and guest", work(boot, accelerator)));
        if gluster {
            steps.push(Step::new("start servers, shape and measure links", work(LINKS, accelerator)));
        }
    } else {
        steps.push(Step::new("write the layers", 1));
    }
    steps.extend(trials.iter().map(|one| Step::new(name(scenario, one), trial(scenario, one, accelerator))));
    if nested {
        steps.push(Step::new("stop the machines", STOP));
    }
    steps
}

/// About how long a trial takes, in seconds.
pub fn trial(scenario: &Scenario, trial: &Trial, accelerator: Accelerator) -> u64 {
    let times = Emulated::of(scenario.testbed.hypervisor);
    match (scenario.experiment, trial.arm) {
        (Experiment::Layers, arm) => mounted(&scenario.layers.clone().unwrap_or_default(), arm),
        (Experiment::Gluster, _) => client(scenario, trial, times, accelerator),
        (Experiment::Migration, Arm::Recontext) => work(times.recontext, accelerator),
        (Experiment::Migration, _) => work(times.plain, accelerator),
    }
}

/// What a trial is called.
fn name(scenario: &Scenario, trial: &Trial) -> String {
    if trial.is_warmup() {
        format!("warm-up, {}", trial.arm)
    } else {
        format!("block {} of {}, {}", trial.block, scenario.design.blocks, trial.arm)
    }
}

/// A trial of experiment `gluster`.
fn client(scenario: &Scenario, trial: &Trial, times: &Emulated, accelerator: Accelerator) -> u64 {
    let bonnie = scenario.bonnie.clone().unwrap_or_default();
    let emulated = accelerator == Accelerator::Tcg;
    let mib = bonnie.size.bytes() as f64 / Size::from_mib(1).bytes() as f64;
    // Links take their time, whatever runs the hosts. A scenario has at most 2⁴⁰ bytes and a dilation of 100.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let block = (mib * BLOCK * scenario.testbed.dilation_on(emulated)).round() as u64;
    // Half of what file operations take is round trips on links in real time.
    let files = if trial.file_operations { u64::from(bonnie.files) * times.files } else { 0 };
    work(times.client, accelerator) + block + if emulated { files } else { files / 2 }
}

/// A trial of experiment `layers`: run `ffs-peers` (88 trials).
fn mounted(layers: &Layers, arm: Arm) -> u64 {
    let storm = layers.storm.micros() / 1_000_000;
    let looked_up = u64::from(layers.many_looked_up);
    match arm {
        Arm::Overlayfs => 1,
        Arm::Native => 1 + storm,
        // These two cannot change a layer, so no storm is had with them.
        Arm::UnionfsFuse => 2 + looked_up / 25_000,
        Arm::FuseOverlayfs => 3 + looked_up / 25_000,
        Arm::Mergerfs | Arm::MergerfsPassthrough => 9 + storm + looked_up / 25_000,
        _ => 3 + storm + looked_up / 50_000,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::plan::Plan;
    use crate::store::{StoredRun, kind};

    fn reference() -> Vec<StoredRun> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../results/reference");
        let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        all.filter(|path| path.join("events.jsonl").is_file())
            .map(|path| StoredRun::read(&path).unwrap())
            .collect()
    }

    fn seconds(from: u64, to: u64) -> f64 {
        (to - from) as f64 / 1e9
    }

    fn of(name: &str) -> Scenario {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios/paper").join(name);
        Scenario::load(&path, Some("quick")).unwrap()
    }

    fn total(scenario: &Scenario, accelerator: Accelerator) -> u64 {
        let steps = steps(scenario, &Plan::new(scenario).trials, accelerator);
        steps.iter().map(|step| step.expected.as_secs()).sum()
    }

    /// What is estimated for a trial of a run is near the median of its trials of that kind.
    #[test]
    fn a_trial_takes_about_what_it_took_in_the_reference_runs() {
        let runs = reference();
        assert!(runs.len() >= 6);
        for run in runs {
            let trials = &run.manifest.plan.trials;
            let steps = steps(&run.scenario, trials, Accelerator::Tcg);
            let before = steps
                .iter()
                .take_while(|step| !step.what.contains("block ") && !step.what.contains("warm-up"));
            let before = before.count();
            let (mut began, mut took) = (0, BTreeMap::<_, Vec<f64>>::new());
            for event in &run.events {
                match event.kind.as_str() {
                    kind::TRIAL_STARTED => began = event.t_mono_ns,
                    kind::TRIAL_ENDED => {
                        let trial =
                            &trials[usize::try_from(event.payload["order"].as_u64().unwrap()).unwrap()];
                        let expected = steps[before + trial.order as usize].expected.as_secs();
                        // The first migration of all has no way back.
                        if trial.order > 0 || trials.len() == 1 || trial.file_operations {
                            let key = (trial.arm, trial.file_operations, expected);
                            took.entry(key).or_default().push(seconds(began, event.t_mono_ns));
                        }
                    }
                    _ => {}
                }
            }
            for ((arm, files, expected), took) in took {
                let median = crate::stats::median(&took);
                // Of a program that lacks what the arm needs, nothing is measured.
                let absent = run.manifest.peers.get(arm.name()).is_some_and(|note| note.absent.is_some());
                let near = (expected as f64 - median).abs() <= 1.0_f64.max(median * 0.25);
                assert!(absent || near, "{} {arm} {files}: {expected} s for {median:.1} s", run.manifest.run);
            }
        }
    }

    #[test]
    fn a_run_takes_about_what_it_took() {
        for run in reference() {
            let at = |wanted: &str| run.events.iter().find(|e| e.kind == wanted).unwrap().t_mono_ns;
            let took = seconds(at(kind::RUN_STARTED), at(kind::RUN_ENDED));
            let present = |trial: &&Trial| {
                run.manifest.peers.get(trial.arm.name()).is_none_or(|note| note.absent.is_none())
            };
            let trials: Vec<Trial> = run.manifest.plan.trials.iter().filter(present).cloned().collect();
            let steps = steps(&run.scenario, &trials, Accelerator::Tcg);
            let expected: u64 = steps.iter().map(|step| step.expected.as_secs()).sum();
            let ratio = expected as f64 / took;
            assert!((0.8..1.25).contains(&ratio), "{}: {expected} s for {took:.0} s", run.manifest.run);
        }
    }

    #[test]
    fn hypervisors_and_accelerators_take_their_own_time() {
        for name in ["migration", "gluster"] {
            let [kvm, xen] = ["kvm", "xen"].map(|hypervisor| of(&format!("{name}-{hypervisor}.toml")));
            assert!(total(&xen, Accelerator::Tcg) > total(&kvm, Accelerator::Tcg), "{name}");
            for scenario in [&kvm, &xen] {
                let (tcg, hardware) = (total(scenario, Accelerator::Tcg), total(scenario, Accelerator::Kvm));
                assert!(2 * hardware < tcg, "{name}: {hardware} s and {tcg} s");
            }
        }
        // It once said about 6 minutes of a run that took 17.
        let xen = total(&of("migration-xen.toml"), Accelerator::Tcg);
        assert!((14 * 60..20 * 60).contains(&xen), "{xen} s");
    }

    #[test]
    fn larger_files_and_slower_links_take_longer() {
        let scenario = of("gluster-kvm.toml");
        let with = |change: fn(&mut Scenario)| {
            let mut scenario = scenario.clone();
            change(&mut scenario);
            total(&scenario, Accelerator::Tcg)
        };
        let before = total(&scenario, Accelerator::Tcg);
        assert!(with(|s| s.bonnie.as_mut().unwrap().size = Size::from_mib(64)) > before);
        assert!(with(|s| s.testbed.emulated_dilation = 20.0) > before);
        assert!(with(|s| s.bonnie.as_mut().unwrap().file_blocks = 5) > before);
    }
}
