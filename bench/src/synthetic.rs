//! Runs that nobody measured, for tests of what is computed from samples and for nothing else.

use std::path::{Path, PathBuf};

use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    metric,
    model::Sample,
    plan::{Plan, Trial},
    scenario::{Arm, Experiment, Scenario},
    store::{About, Outcome, RunFolder},
    workload::layers::peer::{self, Note},
};

/// A committed scenario.
pub(crate) fn scenario(name: &str, profile: Option<&str>) -> Scenario {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../scenarios").join(name);
    Scenario::load(&path, profile).unwrap()
}

/// What a run of experiment `layers` notes.
pub(crate) fn notes(scenario: &Scenario) -> peer::Notes {
    let note = |arm: &Arm| {
        let version = format!("{arm} 1.0");
        let absent = (*arm == Arm::MergerfsPassthrough).then(|| "mergerfs 1.0 has no passthrough".to_owned());
        let cannot = if absent.is_some() { std::collections::BTreeMap::new() } else { peer::cannot(*arm) };
        (arm.to_string(), Note { version, command: format!("mount {arm}"), absent, cannot })
    };
    scenario.design.arms.iter().map(note).collect()
}

/// Values that look like those of a machine.
pub(crate) struct Machine {
    random: ChaCha8Rng,
    pub(crate) accelerator: &'static str,
    pub(crate) hypervisor: &'static str,
    /// How much slower than hardware.
    pub(crate) slow: f64,
}

impl Machine {
    pub(crate) fn new(hypervisor: &'static str, accelerator: &'static str, slow: f64) -> Self {
        Self { random: ChaCha8Rng::seed_from_u64(7), accelerator, hypervisor, slow }
    }

    fn around(&mut self, value: f64, spread: f64) -> f64 {
        value * (1.0 + spread * self.random.random_range(-1.0..1.0))
    }

    fn sample(&self, trial: &Trial, metric: &str, phase: &str, value: Option<f64>) -> Sample {
        let dilation = if metric.starts_with("bonnie") && self.accelerator == "tcg" { 5.0 } else { 1.0 };
        Sample {
            block: trial.block,
            arm: trial.arm.to_string(),
            order: trial.order,
            metric: metric.into(),
            phase: phase.into(),
            value,
            unit: metric::unit(metric).into(),
            valid: true,
            reason: String::new(),
            accelerator: self.accelerator.into(),
            hypervisor: self.hypervisor.into(),
            dilation,
        }
    }

    pub(crate) fn trial(&mut self, experiment: Experiment, trial: &Trial) -> Vec<Sample> {
        if experiment == Experiment::Layers {
            return self.layers(trial);
        }
        let mut out = Vec::new();
        let total = self.around(8.0, 0.02) * self.slow;
        out.push(self.sample(trial, metric::MIGRATION_TOTAL, "", Some(total)));
        let downtime = self.around(60.0, 0.3) * self.slow;
        out.push(self.sample(trial, metric::DOWNTIME, "", Some(downtime)));
        let moved = self.around(2.0e8, 0.02);
        out.push(self.sample(trial, metric::MEMORY_TRANSFERRED, "", Some(moved)));
        if trial.arm == Arm::Recontext {
            let mut sum = 0.0;
            for (phase, seconds) in metric::RECONTEXT_PHASES.into_iter().zip([0.04, 0.45, 0.01, 0.55]) {
                let value = self.around(seconds, 0.15) * self.slow;
                sum += value;
                out.push(self.sample(trial, metric::RECONTEXT_PHASE, phase, Some(value)));
            }
            out.push(self.sample(trial, metric::RECONTEXT_TIME, "", Some(sum)));
            out.push(self.sample(trial, metric::WITH_RECONTEXT_TOTAL, "", Some(total + sum * 1.1)));
            out.push(self.sample(trial, metric::CONTENT_VISIBLE, "", Some(sum * 1.3)));
        }
        if experiment == Experiment::Gluster {
            for (phase, speed) in [("home", 1.05), ("before", 1.0), ("after", 6.2)] {
                for (name, rate) in metric::BONNIE_THROUGHPUT.into_iter().zip([0.0, 574.0, 255.0, 0.0, 440.0])
                {
                    if rate > 0.0 {
                        let value = self.around(rate * speed, 0.08);
                        out.push(self.sample(trial, name, phase, Some(value)));
                    }
                }
                if trial.file_operations {
                    for (name, rate) in
                        metric::BONNIE_FILES.into_iter().zip([14.0, 210.0, 25.0, 14.5, 0.0, 21.0])
                    {
                        let value = (rate > 0.0).then(|| self.around(rate * speed / 1.3, 0.08));
                        out.push(self.sample(trial, name, phase, value));
                    }
                }
                for (server, bytes) in [("remote", 4.0e7), ("local", 1.0e5)] {
                    let bytes = if phase == "after" { 4.01e7 - bytes } else { bytes };
                    out.push(self.sample(
                        trial,
                        metric::SERVER_BYTES,
                        &format!("{phase}:{server}"),
                        Some(bytes),
                    ));
                }
            }
        }
        out
    }

    /// A file system of experiment `layers`: the later in the list, the slower.
    fn layers(&mut self, trial: &Trial) -> Vec<Sample> {
        let slow = match Arm::PEERS.iter().position(|arm| *arm == trial.arm) {
            _ if trial.arm == Arm::MergerfsPassthrough => return Vec::new(),
            Some(place) if !trial.arm.is_ours() => 1.0 + place as f64,
            Some(_) => 1.2,
            None => 1.0,
        };
        let cannot = peer::cannot(trial.arm);
        let able = |metric: &&str| !cannot.contains_key(*metric);
        let mut out = Vec::new();
        for metric in metric::LAYERS.into_iter().filter(able) {
            let value = self.around(5.0, 0.1);
            let value = if metric::unit(metric) == "GB/s" { value / slow } else { value * slow };
            out.push(self.sample(trial, metric, "", Some(value)));
        }
        for metric in metric::FAULTS.into_iter().chain([metric::STORM_READS]).filter(able) {
            let value =
                if metric == metric::STORM_READS { 50_000.0 } else { f64::from(u8::from(slow > 2.0)) };
            out.push(self.sample(trial, metric, "", Some(value)));
        }
        out
    }

    /// Every sample of a scenario; the second trial that counts has failed.
    pub(crate) fn samples(&mut self, scenario: &Scenario) -> Vec<Sample> {
        Plan::new(scenario).trials.iter().flat_map(|trial| self.trial(scenario.experiment, trial)).collect()
    }

    /// A finished run's folder under `root`.
    pub(crate) fn run(&mut self, root: &Path, scenario: &Scenario) -> PathBuf {
        let plan = Plan::new(scenario);
        let run = RunFolder::create(root, scenario, &plan, About::default()).unwrap();
        run.update_manifest(|manifest| {
            manifest.accelerator = Some(self.accelerator.into());
            manifest.dilation = Some(5.0);
            manifest.hosts = serde_json::json!([
                {"name": "host-a", "site": "remote", "kernel": "6.12.0", "memory": "1 GiB"},
                {"name": "host-b", "site": "local", "kernel": "6.12.0", "memory": "1 GiB"},
            ]);
            manifest.tools = serde_json::json!({"qemu": "10.0.2", "libvirt": "11.3.0"});
        })
        .unwrap();
        if scenario.experiment == Experiment::Layers {
            run.update_manifest(|manifest| manifest.peers = notes(scenario)).unwrap();
        }
        if scenario.experiment == Experiment::Gluster {
            let trial = Trial { block: 0, arm: Arm::Recontext, order: 0, file_operations: false };
            for (link, rtt, rate) in [("remote", 52.0, 4.7), ("local", 7.1, 88.0)] {
                let mut rtt = self.sample(&trial, metric::LINK_RTT, link, Some(rtt));
                let mut rate = self.sample(&trial, metric::LINK_RATE, link, Some(rate));
                (rtt.dilation, rate.dilation) = (5.0, 5.0);
                run.samples(&[rtt, rate]).unwrap();
            }
        }
        for trial in &plan.trials {
            run.trial_started(trial).unwrap();
            let mut samples = self.trial(scenario.experiment, trial);
            let failed = trial.order == 3;
            for sample in samples.iter_mut().filter(|_| failed) {
                sample.valid = false;
                sample.reason = "the migration was given up after 5 min".into();
            }
            run.samples(&samples).unwrap();
            let outcome = if failed {
                Outcome::Failed { reason: "the migration was given up after 5 min".into() }
            } else {
                Outcome::Completed
            };
            run.trial_ended(trial, &outcome).unwrap();
        }
        run.finish().unwrap()
    }
}
