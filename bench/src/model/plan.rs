//! The plan of a run: everything that a scenario asked for, compiled once. What comes after sees the plan and never the scenario.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Claim, Compare, Figure, Guest, Host, Link, Metric, Server, Testbed, Time, Workload};

/// Machines, programs, trials and definitions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The scenario's name: its file's, without the extension.
    pub name: String,
    /// One line that says what is measured.
    pub title: String,
    /// Who provides the machines.
    pub testbed: Testbed,
    /// The hosts, in order; each arm has what they tell their guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<Host>,
    /// The machines beside them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<Server>,
    /// Classes of links.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<Link>,
    /// The arms, in the order of the file.
    pub arms: Vec<Arm>,
    /// Blocks, order and deadlines.
    pub design: Design,
    /// The trials in the order in which they are done; each one's `order` is its index.
    pub trials: Vec<Trial>,
    /// What is computed from what is seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// What is compared with what.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub comparisons: Vec<Compare>,
    /// What the report draws.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<Figure>,
    /// What is claimed, and compared with what was measured.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claim>,
}

/// One point of the design: its factors, its machines' settings, and what a trial of it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// Its name in samples: that of `[[arm]]`, and the values of the matrix: `recontext, rate = 64`.
    pub name: String,
    /// Its factors: `arm`, and one a key of the matrix.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub factors: BTreeMap<String, Factor>,
    /// The guests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<Guest>,
    /// What each host tells its guests in this arm, where that is not what [`Plan::hosts`] says: `context` and `payload` alone
    /// may differ between arms.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hosts: BTreeMap<String, Host>,
    /// The workloads that its steps run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<Workload>,
    /// What a trial does, from top to bottom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub program: Vec<Step>,
    /// What this machine must have for it; without, it is absent with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<Need>,
    /// Metrics that it cannot have by its nature, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub cannot: BTreeMap<String, String>,
}

/// The value of a factor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Factor {
    /// As it is written.
    pub text: String,
    /// As a number in `unit`, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<f64>,
    /// Its unit, such as `MiB` or `s`; empty for a plain number.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub unit: String,
}

/// What this machine must have for an arm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// A program on the path; its first line of `--version` has the version. `linux` is the kernel.
    pub program: String,
    /// The Debian package that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// The first version that will do, such as "2.41".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

/// One step of a program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Its name, unique in its arm; what metrics call its events by.
    pub name: String,
    /// What it does.
    pub verb: String,
    /// With what, checked when the plan was compiled; [`crate::step`] reads it as the verb's own type.
    pub arguments: Value,
    /// The part of the trial that its values belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// After this long it has failed; by default what is usual for its verb.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// Whether the trial goes on when it fails; its reason is then that of what is missing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_fail: bool,
    /// The blocks in which it is done, the warm-up being 0; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Blocks>,
    /// How often it is done, one after the other.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub repeat: u32,
    /// For the verb `together` alone: chains of steps that are done at the same time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chains: Vec<Vec<Step>>,
    /// Where it stands: `file:line`.
    pub place: String,
}

const fn once() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_once(repeat: &u32) -> bool {
    *repeat == 1
}

/// Blocks from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocks {
    /// The first.
    pub from: u32,
    /// The last.
    pub to: u32,
}

/// Blocks, their order and deadlines.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Design {
    /// Blocks that count, at least 1; every block has each arm once.
    #[schemars(range(min = 1, max = 10_000))]
    pub blocks: u32,
    /// Blocks before those, which do not count.
    #[serde(default = "once")]
    #[schemars(range(max = 100))]
    pub warmup: u32,
    /// Seed of the order within blocks: a whole number from 0.
    #[schemars(range(max = 9_223_372_036_854_775_807_u64))]
    pub seed: u64,
    /// After this long a trial is given up and has failed, from "1 s"; by default ten times its estimate, 10 min, and twice the
    /// longest deadline of its steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial_deadline: Option<Time>,
    /// After this long no other trial begins, from "1 s"; `bench resume` goes on, with as much time again. By default ten times
    /// the estimate of what is left to do, and 1 h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_deadline: Option<Time>,
}

/// One trial: a program of steps, once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// Block of the paired design, from 1; 0 for every trial of the warm-up.
    pub block: u32,
    /// Name of the arm.
    pub arm: String,
    /// Position in the run, from 0; unique.
    pub order: u32,
}

impl Plan {
    /// The metric of a name.
    pub fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }
}

/// Where a plan came from, kept word for word for the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The scenario's file and all that it includes, in the order in which they were read; the first is the scenario's own.
    pub files: Vec<SourceFile>,
    /// The profile that was laid over it; none for the file itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
}

/// One file of a scenario.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// Its path, relative to the scenario's folder.
    pub path: String,
    /// SHA-256 of the text, in hex.
    pub sha256: String,
    /// The file word for word.
    pub text: String,
}
