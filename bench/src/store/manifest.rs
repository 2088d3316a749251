//! `manifest.json`: what was asked, and on what it was measured.

use std::{io::ErrorKind, path::Path};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{
    Environment, MANIFEST,
    error::{Doing as _, StoreError},
    event::Now,
    file::write_whole,
};
use crate::{
    model::hex,
    plan::Plan,
    provenance::Digests,
    scenario::{AcceleratorChoice, Scenario},
    workload::layers::peer::Notes,
};

/// The format that this version writes and reads.
const FORMAT: u32 = 1;

/// What the store cannot know by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct About {
    /// Git revision of the source that the bench is built from, with `-dirty` when that was not as committed; none when it was built outside of
    /// a checkout.
    pub git_revision: Option<String>,
    /// Git revision of the repository that has the scenario's file; none when no repository has it.
    pub scenario_revision: Option<String>,
    /// SHA-256 of the `Cargo.lock` that the bench is built with.
    pub cargo_lock: Option<String>,
    /// SHA-256 of the bench and of the programs under test, by name.
    pub programs: Digests,
    /// What runs the hosts as the command line asks for it; none where it says nothing.
    pub accelerator: Option<AcceleratorChoice>,
}

/// What was asked, and on what it was measured.
///
/// The sections from `hosts` on are the drivers' own JSON; reports show them as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// Name of the run.
    pub run: String,
    /// The scenario.
    pub scenario: StoredScenario,
    /// The seed of the order.
    pub seed: u64,
    /// The trials as planned; `events.jsonl` has what became of them.
    pub plan: Plan,
    /// Version of the bench.
    pub tool_version: String,
    /// Git revision of the source that it is built from, with `-dirty` when that was not as committed; none when it was built outside of a
    /// checkout. Runs that have no `programs` have the revision of the scenario's folder here.
    pub git_revision: Option<String>,
    /// SHA-256 of the `Cargo.lock` that it is built with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cargo_lock: Option<String>,
    /// SHA-256 of the bench and of the programs under test, by name: those with which the run began.
    #[serde(default, skip_serializing_if = "Digests::is_empty")]
    pub programs: Digests,
    /// Start of the run, UTC.
    pub started_utc: String,
    /// End of the run, UTC; none while it runs or when it was cut off.
    pub ended_utc: Option<String>,
    /// What runs the hosts as the command line asked for it; none where it said nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator_asked: Option<AcceleratorChoice>,
    /// Accelerator of the hosts as QMP reported it: `kvm` or `tcg`; none before they are up.
    pub accelerator: Option<String>,
    /// Dilation of the links; none before it is chosen.
    pub dilation: Option<f64>,
    /// The hosts: processor, kernel, memory, addresses, versions.
    #[serde(default)]
    pub hosts: Value,
    /// The guests.
    #[serde(default)]
    pub guests: Value,
    /// Versions of the tools that were used, and the machine: its kernel, processor, memory, and load before and after the run.
    #[serde(default)]
    pub tools: Value,
    /// The links as asked and as measured.
    #[serde(default)]
    pub links: Value,
    /// The qdiscs as read back.
    #[serde(default)]
    pub qdiscs: Value,
    /// Images, with their digests and package versions.
    #[serde(default)]
    pub images: Value,
    /// The file systems of experiment `layers`, by arm: version, options, what they cannot do.
    #[serde(default, skip_serializing_if = "Notes::is_empty")]
    pub peers: Notes,
}

/// The scenario in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredScenario {
    /// Its name.
    pub name: String,
    /// Its title.
    pub title: String,
    /// The profile that was laid over it.
    pub profile: Option<String>,
    /// SHA-256 of the text.
    pub sha256: String,
    /// Git revision of the repository that has its file, with `-dirty` when the file was not as committed; none when no repository has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git_revision: Option<String>,
    /// The file word for word.
    pub text: String,
}

impl Manifest {
    pub(super) fn new(
        run: String,
        scenario: &Scenario,
        plan: &Plan,
        about: About,
        started_utc: String,
    ) -> Self {
        Self {
            format: FORMAT,
            run,
            scenario: StoredScenario {
                name: scenario.source.name.clone(),
                title: scenario.title.clone(),
                profile: scenario.source.profile.clone(),
                sha256: scenario.source.sha256.clone(),
                git_revision: about.scenario_revision,
                text: scenario.source.text.clone(),
            },
            seed: scenario.design.seed,
            plan: plan.clone(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            git_revision: about.git_revision,
            cargo_lock: about.cargo_lock,
            programs: about.programs,
            accelerator_asked: about.accelerator,
            started_utc,
            ended_utc: None,
            accelerator: None,
            dilation: None,
            hosts: Value::Null,
            guests: Value::Null,
            tools: Value::Null,
            links: Value::Null,
            qdiscs: Value::Null,
            images: Value::Null,
            peers: Notes::new(),
        }
    }

    /// The manifest that a run would have which began here and now, without a name: for [`super::differences`].
    pub fn here(scenario: &Scenario, about: About, environment: Environment) -> Self {
        let mut manifest = Self::new(String::new(), scenario, &Plan::new(scenario), about, Now::read().utc());
        manifest.keep(environment);
        manifest
    }

    /// Takes from an environment what is not said yet, and leaves the rest as it is.
    pub(super) fn keep(&mut self, environment: Environment) {
        let Environment { accelerator, dilation, hosts, guests, tools, images, peers } = environment;
        self.accelerator = self.accelerator.take().or(accelerator);
        self.dilation = self.dilation.or(dilation);
        let sections = [
            (&mut self.hosts, hosts),
            (&mut self.guests, guests),
            (&mut self.tools, tools),
            (&mut self.images, images),
        ];
        for (section, new) in sections {
            if section.is_null() {
                *section = new;
            }
        }
        for (arm, note) in peers {
            self.peers.entry(arm).or_insert(note);
        }
    }

    /// Reads the manifest of a run's folder.
    ///
    /// # Errors
    /// There is none, it was changed, or a later version wrote it.
    pub fn read(folder: &Path) -> Result<Self, StoreError> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let path = folder.join(MANIFEST);
        let text = match ctx_io::bounded::read_to_string(&path, ctx_io::bounded::STATE) {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                return Err(StoreError::NotARun { path: folder.to_owned() });
            }
            other => other.doing("read", &path)?,
        };
        let damaged = |error: serde_json::Error| StoreError::Damaged {
            path: path.clone(),
            line: error.line(),
            what: format!("it is not a manifest: {error}"),
        };
        // The version first: a later format may not even have these fields.
        let Version { format } = serde_json::from_str(&text).map_err(damaged)?;
        if format != FORMAT {
            return Err(StoreError::Format { path, found: format, known: FORMAT });
        }
        serde_json::from_str(&text).map_err(damaged)
    }

    /// The scenario as it was done, read again with its profile. What an earlier version accepted and a tool then rounded
    /// is read as it stands ([`Scenario::parse_stored`]).
    ///
    /// # Errors
    /// Its text was changed, or this version reads it differently.
    pub fn scenario(&self) -> Result<Scenario, StoreError> {
        let StoredScenario { name, text, profile, sha256, .. } = &self.scenario;
        let damaged = |what| StoreError::Damaged { path: MANIFEST.into(), line: 1, what };
        let actual = hex(&Sha256::digest(text.as_bytes()));
        if actual != *sha256 {
            return Err(damaged(format!("its scenario has the SHA-256 {actual} and should have {sha256}")));
        }
        Scenario::parse_stored(&format!("{name}.toml"), text, profile.as_deref())
            .map_err(|error| damaged(format!("its scenario cannot be read: {error}")))
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), StoreError> {
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|source| StoreError::Payload { kind: MANIFEST.to_owned(), source })?;
        text.push('\n');
        write_whole(&folder.join(MANIFEST), text.as_bytes())
    }
}
