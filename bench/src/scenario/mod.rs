//! A scenario: what a person asks the bench to measure, as a TOML file.
//!
//! Reading goes in three steps, and each error points into the file: the syntax, the fields and
//! their types (`toml` and serde), then what the fields mean together (`check`) and that no tool would round
//! them (`exact`). A profile, such as `quick`, is a table `[profile.quick.…]` laid over the others before the second step. All
//! profiles of a file are read whichever is asked for, so that a mistake in one is found at once.
//!
//! Nothing here touches a machine: whether a testbed can do what is asked is the testbed's to say.

mod check;
mod exact;
mod layers;
mod overlay;
mod schema;
mod testbed;

use std::path::Path;

pub use layers::Layers;
pub use schema::schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
pub use testbed::Testbed;

use crate::figures::FigureId;
pub use crate::language::ScenarioError;
pub use crate::model::{
    AcceleratorChoice, Class, Distribution, GuestType, Hypervisor, Percent, QuantityError, Rate, Size,
    Strategy, TestbedKind, Time,
};
use crate::model::{hex, names};

/// What to measure.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Where it came from.
    #[serde(skip)]
    pub source: Source,
    /// One line that says what is measured.
    pub title: String,
    /// What is done in each trial.
    pub experiment: Experiment,
    /// The figures of the report.
    #[serde(default)]
    pub figures: Vec<FigureId>,
    /// The machines.
    #[serde(default)]
    pub testbed: Testbed,
    /// The virtual machine that migrates.
    #[serde(default)]
    pub guest: Guest,
    /// Arms, repetitions and their order.
    pub design: Design,
    /// How the guest's context is replaced.
    #[serde(default)]
    pub recontext: Recontext,
    /// How the guest migrates.
    #[serde(default)]
    pub migration: Migration,
    /// The shaped links; experiment "gluster" needs them and no other has them.
    #[serde(default)]
    pub network: Option<Network>,
    /// The Bonnie++ runs; always there in experiment "gluster" and in no other.
    #[serde(default)]
    pub bonnie: Option<Bonnie>,
    /// The trees and probes; always there in experiment "layers" and in no other.
    #[serde(default)]
    pub layers: Option<Layers>,
}

/// Where a scenario came from, kept word for word for the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// The file's name without its extension; the name of its folder of results.
    pub name: String,
    /// The file's text, word for word.
    pub text: String,
    /// SHA-256 of the text, in hex.
    pub sha256: String,
    /// The profile that was laid over it; none for the file itself.
    pub profile: Option<String>,
}

/// What is done in each trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Experiment {
    /// One live migration, with or without recontextualization (Figs. 1 and 2).
    Migration,
    /// One live migration of a file-system client, with Bonnie++ before it, between it and
    /// recontextualization, and after (Figs. 6 and 7).
    Gluster,
    /// The same layers shown by `ffs` and by other union file systems, on this machine's own kernel.
    Layers,
}

/// The virtual machine that migrates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Guest {
    /// Its memory, at least 64 MiB, in whole MiB.
    pub memory: Size,
    /// Its virtual CPUs, at least 1.
    #[schemars(range(min = 1, max = 64))]
    pub vcpus: u32,
    /// How the hypervisor runs it: "hvm" on KVM; "pvh", "hvm" or "pv" on Xen. By default "hvm" on KVM and
    /// "pvh" on Xen.
    #[serde(rename = "type")]
    pub kind: Option<GuestType>,
}

impl Default for Guest {
    fn default() -> Self {
        Self { memory: Size::from_mib(256), vcpus: 1, kind: None }
    }
}

impl Guest {
    /// How a hypervisor runs it: as asked, or as is usual there.
    pub fn kind_on(&self, hypervisor: Hypervisor) -> GuestType {
        self.kind.unwrap_or(match hypervisor {
            Hypervisor::Kvm => GuestType::Hvm,
            Hypervisor::Xen => GuestType::Pvh,
        })
    }
}

/// Arms, repetitions and their order.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Design {
    /// What is compared, each once in every block: "plain", "recontext"; in experiment "layers" "native" and
    /// file systems such as "ffs" and "overlayfs".
    pub arms: Vec<Arm>,
    /// Blocks that count, at least 1; every block has each arm once.
    #[schemars(range(min = 1, max = 10_000))]
    pub blocks: u32,
    /// Blocks before those, which do not count.
    #[serde(default = "one")]
    #[schemars(range(max = 100))]
    pub warmup: u32,
    /// Seed of the order within blocks: a whole number from 0.
    #[schemars(range(max = 9_223_372_036_854_775_807_u64))]
    pub seed: u64,
    /// After this long a trial is given up and has failed, from "1 s"; by default ten times its estimate, 10 min, and twice
    /// `migration.timeout`.
    #[serde(default)]
    pub trial_deadline: Option<Time>,
    /// After this long no other trial begins, from "1 s"; `bench resume` goes on, with as much time again. By default ten times
    /// the estimate of what is left to do, and 1 h.
    #[serde(default)]
    pub run_deadline: Option<Time>,
}

const fn one() -> u32 {
    1
}

/// An arm of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// No context device and no recontextualizer.
    Plain,
    /// A context device, replaced by the recontextualizer after the migration.
    Recontext,
    /// No union at all: a copy of the merged tree in tmpfs.
    Native,
    /// The kernel's overlayfs.
    Overlayfs,
    /// fuse-overlayfs.
    FuseOverlayfs,
    /// mergerfs with all its caches on.
    Mergerfs,
    /// mergerfs that lets the kernel read the files of its branches by itself.
    MergerfsPassthrough,
    /// unionfs-fuse.
    UnionfsFuse,
    /// This project's `ffs`.
    Ffs,
    /// `ffs` that lets the kernel read large files by itself, and is asked for each open.
    FfsPassthrough,
}

/// How the guest's context is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Recontext {
    /// How the device is changed: "replace", "swap" or "prestage".
    pub strategy: Strategy,
    /// Size of the infrastructure's context data.
    pub payload: Size,
    /// Classes of context data on the device: "service", "infrastructure".
    pub classes: Vec<Class>,
    /// Whether a run waits until the guest has said that it shows the data, as its fifth phase, `acknowledge`. The
    /// paper's runs have four.
    pub acknowledge: bool,
}

impl Default for Recontext {
    fn default() -> Self {
        Self {
            strategy: Strategy::Replace,
            payload: Size::from_mib(1),
            classes: vec![Class::Service, Class::Infrastructure],
            acknowledge: false,
        }
    }
}

/// How the guest migrates.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Migration {
    /// Limit on the time for which the guest is stopped, in whole milliseconds; 300 ms is QEMU's own default.
    pub max_downtime: Time,
    /// After this long, in whole milliseconds, a migration is given up; the sample is invalid.
    pub timeout: Time,
    /// Whether QEMU may slow the guest down so that the migration ends.
    pub auto_converge: bool,
}

impl Default for Migration {
    fn default() -> Self {
        Self { max_downtime: Time::from_millis(300), timeout: Time::from_secs(300), auto_converge: false }
    }
}

/// The shaped links between the client and its file servers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// How far a measured link may be from what is asked before the run stops.
    #[serde(default = "thirty_percent")]
    pub tolerance: Percent,
    /// Between the client and the remote server.
    pub remote: Link,
    /// Between the client and the local server.
    pub local: Link,
}

const fn thirty_percent() -> Percent {
    Percent::from_percent(30)
}

/// One shaped link.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Data rate in each direction, in whole bytes a second before dilation: a multiple of 8 bit/s.
    pub rate: Rate,
    /// What the link adds to a round trip, half of it in each direction.
    pub delay: Time,
    /// Standard deviation of that delay, as a share of it.
    #[serde(default)]
    pub jitter: Percent,
    /// How much a packet's delay depends on the one before.
    #[serde(default)]
    pub correlation: Percent,
    /// Distribution of the variation: "normal", "uniform", "pareto" or "paretonormal".
    #[serde(default)]
    pub distribution: Distribution,
}

impl Link {
    /// The link for a machine that runs `dilation` times slower: rate ÷ d, delay × d.
    #[must_use]
    pub fn dilated(&self, dilation: f64) -> Self {
        Self {
            rate: self.rate.divided_by(dilation),
            delay: self.delay.multiplied_by(dilation),
            ..self.clone()
        }
    }
}

/// The Bonnie++ runs of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Bonnie {
    /// Size of the file, in whole MiB (`-s`).
    pub size: Size,
    /// Size of a read or write (`-s SIZE:CHUNK`): a power of 2 from 1 KiB to 1 MiB.
    pub chunk: Size,
    /// Number of seeks (`-s SIZE:CHUNK:SEEKS`); Bonnie++'s own 8192 outlast everything on a slow link.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub seeks: u32,
    /// Size of the per-character tests, in whole MiB (`-f SIZE`); "0 B" skips them (`-f`).
    pub per_char: Size,
    /// Files of the file operations, in 1024 (`-n`); 0 skips them.
    #[schemars(range(max = 1000))]
    pub files: u32,
    /// In how many blocks, from the first, the file operations run.
    #[schemars(range(max = 10_000))]
    pub file_blocks: u32,
}

impl Default for Bonnie {
    fn default() -> Self {
        Self {
            size: Size::from_mib(8),
            chunk: Size::from_bytes(64 << 10),
            seeks: 100,
            per_char: Size::default(),
            files: 1,
            file_blocks: 1,
        }
    }
}

names!(Experiment { Migration => "migration", Gluster => "gluster", Layers => "layers" });
names!(Arm {
    Plain => "plain",
    Recontext => "recontext",
    Native => "native",
    Overlayfs => "overlayfs",
    FuseOverlayfs => "fuse-overlayfs",
    Mergerfs => "mergerfs",
    MergerfsPassthrough => "mergerfs-passthrough",
    UnionfsFuse => "unionfs-fuse",
    Ffs => "ffs",
    FfsPassthrough => "ffs-passthrough",
});

impl Arm {
    /// The file systems that are compared with [`Arm::Native`], in the order of tables and figures.
    pub const PEERS: [Self; 7] = [
        Self::Overlayfs,
        Self::FuseOverlayfs,
        Self::Mergerfs,
        Self::MergerfsPassthrough,
        Self::UnionfsFuse,
        Self::Ffs,
        Self::FfsPassthrough,
    ];

    /// Whether it is a way to run this project's own file system.
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Ffs | Self::FfsPassthrough)
    }

    /// Whether an experiment has this arm.
    pub const fn fits(self, experiment: Experiment) -> bool {
        match experiment {
            Experiment::Migration => matches!(self, Self::Plain | Self::Recontext),
            Experiment::Gluster => matches!(self, Self::Recontext),
            Experiment::Layers => !matches!(self, Self::Plain | Self::Recontext),
        }
    }
}

impl Scenario {
    /// Reads a scenario file and lays a profile over it. `full` is the file itself, as is none.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong: then with file, line, column and what
    /// to do.
    pub fn load(path: &Path, profile: Option<&str>) -> Result<Self, ScenarioError> {
        let file = path.display().to_string();
        let text = ctx_io::bounded::read_to_string(path, ctx_io::bounded::CONFIG)
            .map_err(|source| ScenarioError::unreadable(file.clone(), &source))?;
        Self::parse(&file, &text, profile)
    }

    /// The same from text; `file` is what errors call it and what the scenario is named after.
    ///
    /// # Errors
    /// As [`Scenario::load`], except for reading.
    pub fn parse(file: &str, text: &str, profile: Option<&str>) -> Result<Self, ScenarioError> {
        Self::read(file, text, profile, exact::check)
    }

    /// The same for a run that was done: also with values that an earlier version took and a tool then rounded.
    ///
    /// # Errors
    /// As [`Scenario::parse`].
    pub fn parse_stored(file: &str, text: &str, profile: Option<&str>) -> Result<Self, ScenarioError> {
        Self::read(file, text, profile, |_, _| Ok(()))
    }

    fn read(
        file: &str,
        text: &str,
        profile: Option<&str>,
        exact: impl Fn(&Self, &overlay::Table<'_>) -> Result<(), overlay::Fault>,
    ) -> Result<Self, ScenarioError> {
        let profile = profile.filter(|name| *name != "full");
        let name = Path::new(file).file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        let fail = |span, message: String, help: String| ScenarioError::at(file, text, span, message, help);
        if name.is_empty() || name.starts_with('.') {
            return Err(fail(
                0..0,
                format!("`{file}` has no name"),
                "rename it, e.g. to my-test.toml".into(),
            ));
        }
        let layers =
            overlay::Layers::parse(text).map_err(|fault| fail(fault.span, fault.message, fault.help))?;
        if let Some(wanted) = profile.filter(|wanted| !layers.profiles().any(|name| name == *wanted)) {
            let known = layers.profiles().chain(["full"]).collect::<Vec<_>>().join(", ");
            return Err(fail(
                0..0,
                format!("there is no profile `{wanted}` in this file"),
                format!("use one of {known}, or add a table such as [profile.{wanted}.design]"),
            )
            .of_the_question());
        }
        let mut chosen = None;
        for one in std::iter::once(None).chain(layers.profiles().map(Some)) {
            let table = layers.over(one);
            let mut scenario = overlay::read(&table).map_err(|f| fail(f.span, f.message, f.help))?;
            check::check(&mut scenario, &table)
                .and_then(|()| exact(&scenario, &table))
                .map_err(|f| fail(f.span, f.message, f.help))?;
            if one == profile {
                chosen = Some(scenario);
            }
        }
        // The loop has seen `profile`, whose name was looked up above.
        let mut scenario = chosen.ok_or_else(|| fail(0..0, "no profile".into(), String::new()))?;
        scenario.source = Source {
            name,
            text: text.to_owned(),
            sha256: hex(&Sha256::digest(text.as_bytes())),
            profile: profile.map(str::to_owned),
        };
        Ok(scenario)
    }

    /// The scenario's name, from its file's.
    pub fn name(&self) -> &str {
        &self.source.name
    }
}

#[cfg(test)]
mod tests;
