//! On what a run is made, and whether here is the same.
//!
//! The samples of a run do not say from which machine they are, so a run is of one environment, and `bench resume`
//! refuses any other. What counts is listed in [`COMPARED`]; load, free memory and boot times are not in it, since they are of
//! the moment. A value that one side does not know is not compared: manifests of earlier versions lack some.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::Manifest;
use crate::{plan::Plan, workload::layers::peer::Notes};

/// On what trials are done.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Environment {
    /// Accelerator of the hosts, `kvm` or `tcg`; `none` without hosts.
    pub accelerator: Option<String>,
    /// Dilation of the links.
    pub dilation: Option<f64>,
    /// The hosts: processor, kernel, memory, addresses, versions.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub hosts: Value,
    /// The guests.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub guests: Value,
    /// This machine and the versions of the tools that are used.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub tools: Value,
    /// Images, with their digests.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub images: Value,
    /// The file systems of experiment `layers`, by arm. An event has their versions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", serialize_with = "versions")]
    pub peers: Notes,
}

fn versions<S: Serializer>(peers: &Notes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(peers.iter().map(|(arm, note)| (arm, &note.version)))
}

/// What must be the same in a manifest, as paths in it; `*` is any key. What such a path leads to is compared whole.
///
/// An image counts with the bytes of its files: its recipe may give other packages next week.
const COMPARED: [&str; 15] = [
    "tool_version",
    "git_revision",
    "cargo_lock",
    // Digests by name.
    "programs.*",
    "accelerator",
    "tools.kernel",
    "tools.processor",
    "tools.microcode",
    "tools.cores",
    "tools.cpu_governor",
    "tools.numa_nodes",
    "tools.qemu",
    "images.*.digest",
    "images.*.files.*.sha256",
    "peers.*.version",
];

/// A value that is another one here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its path in the manifest, e.g. `tools.kernel`.
    pub field: String,
    /// What the manifest says, as JSON.
    pub stored: String,
    /// What it is here.
    pub here: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: stored {}, here {}", self.field, self.stored, self.here)
    }
}

/// A run that was begun in another environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{} was begun in another environment:{}\nSamples of both would be in one run, and nothing would tell them apart: begin a \
     new run with `bench run`, or resume this one where it was begun",
    run.display(),
    differences.iter().map(|difference| format!("\n  {difference}")).collect::<String>()
)]
pub struct OtherEnvironment {
    /// Its folder.
    pub run: PathBuf,
    /// What is another; never empty.
    pub differences: Vec<Difference>,
}

/// What of a stored run is another in the manifest that a run would have here ([`Manifest::here`]): its plan, the bench, digests
/// of programs, accelerator, kernel, processor, QEMU, images and the versions of file systems, in this order.
pub fn differences(stored: &Manifest, here: &Manifest) -> Vec<Difference> {
    let mut found: Vec<Difference> = plan(&stored.plan, &here.plan).into_iter().collect();
    let earlier = stored.programs.is_empty();
    // A manifest was read from JSON or is written to it, so it always serializes.
    let [mut stored, here] =
        [stored, here].map(|manifest| serde_json::to_value(manifest).unwrap_or_default());
    if earlier {
        // It has the revision of the scenario's folder there.
        stored["git_revision"] = Value::Null;
    }
    found.extend(compare(&stored, &here));
    found
}

/// The first trial that is another.
fn plan(stored: &Plan, here: &Plan) -> Option<Difference> {
    let words = |plan: &Plan, at: usize| match plan.trials.get(at) {
        None => format!("{at} trials"),
        Some(trial) => {
            let files = if trial.file_operations { ", with file operations" } else { "" };
            format!("block {}, {}{files}", trial.block, trial.arm)
        }
    };
    let length = stored.trials.len().max(here.trials.len());
    let at = (0..length).find(|&at| stored.trials.get(at) != here.trials.get(at))?;
    Some(Difference { field: format!("plan.trials.{at}"), stored: words(stored, at), here: words(here, at) })
}

/// What two manifests say differently, as JSON of any version.
fn compare(stored: &Value, here: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    for path in COMPARED {
        let parts: Vec<&str> = path.split('.').collect();
        walk(&parts, String::new(), stored, here, &mut found);
    }
    found
}

fn walk(parts: &[&str], field: String, stored: &Value, here: &Value, found: &mut Vec<Difference>) {
    if stored.is_null() || here.is_null() {
        return;
    }
    let Some((part, rest)) = parts.split_first() else {
        if stored != here {
            found.push(Difference { field, stored: stored.to_string(), here: here.to_string() });
        }
        return;
    };
    let below = |key: &str| if field.is_empty() { key.to_owned() } else { format!("{field}.{key}") };
    let keys: Vec<&str> = match stored.as_object() {
        Some(map) if *part == "*" => map.keys().map(String::as_str).collect(),
        _ => vec![part],
    };
    for key in keys {
        if let (Some(stored), Some(here)) = (stored.get(key), here.get(key)) {
            walk(rest, below(key), stored, here, found);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        scenario::{Arm, Scenario},
        store::About,
        workload::layers::peer::Note,
    };

    fn scenario() -> Scenario {
        let text = "title = \"t\"\nexperiment = \"migration\"\n\
            [design]\narms = [\"plain\", \"recontext\"]\nblocks = 2\nseed = 7\n";
        Scenario::parse("t.toml", text, None).unwrap()
    }

    fn environment() -> Environment {
        Environment {
            accelerator: Some("tcg".into()),
            dilation: Some(1.0),
            hosts: json!({"a": {"boot_seconds": 13.2}}),
            guests: Value::Null,
            tools: json!({
                "kernel": "Linux 6.12", "processor": "A", "microcode": "0x1", "cores": 2, "qemu": "QEMU 10.0",
                "load_average": "0.10", "memory": "1 kB", "ssh": null,
            }),
            images: json!({"host": {"digest": "d1", "built_at": 1, "files": {"root.ext4": {"bytes": 1, "sha256": "s1"}}}}),
            peers: Notes::from([("ffs".into(), Note { version: "ffs 1".into(), ..Note::default() })]),
        }
    }

    /// A manifest as JSON, with the digests that a later version adds.
    fn manifest() -> Value {
        let about = About { git_revision: Some("abc".into()), ..About::default() };
        let mut value = serde_json::to_value(Manifest::here(&scenario(), about, environment())).unwrap();
        value["programs"] = json!({"ctx": "c1", "ffs": "f1", "bench-probe": "p1", "bench": "b1"});
        value
    }

    /// Changes the value at a path, whose keys are separated by slashes.
    fn with(path: &str, new: Value) -> Value {
        let mut value = manifest();
        *value.pointer_mut(path).unwrap() = new;
        value
    }

    fn told(here: &Value) -> Vec<String> {
        compare(&manifest(), here).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_thing_that_counts_is_told_with_both_values() {
        assert_eq!(told(&manifest()), [""; 0]);
        for (path, line) in [
            ("/tool_version", r#"tool_version: stored "0.1.0", here "x""#),
            ("/git_revision", r#"git_revision: stored "abc", here "x""#),
            ("/programs/ctx", r#"programs.ctx: stored "c1", here "x""#),
            ("/programs/ffs", r#"programs.ffs: stored "f1", here "x""#),
            ("/programs/bench-probe", r#"programs.bench-probe: stored "p1", here "x""#),
            ("/programs/bench", r#"programs.bench: stored "b1", here "x""#),
            ("/accelerator", r#"accelerator: stored "tcg", here "x""#),
            ("/tools/kernel", r#"tools.kernel: stored "Linux 6.12", here "x""#),
            ("/tools/processor", r#"tools.processor: stored "A", here "x""#),
            ("/tools/microcode", r#"tools.microcode: stored "0x1", here "x""#),
            ("/tools/cores", r#"tools.cores: stored 2, here "x""#),
            ("/tools/qemu", r#"tools.qemu: stored "QEMU 10.0", here "x""#),
            ("/images/host/digest", r#"images.host.digest: stored "d1", here "x""#),
            (
                "/images/host/files/root.ext4/sha256",
                r#"images.host.files.root.ext4.sha256: stored "s1", here "x""#,
            ),
            ("/peers/ffs/version", r#"peers.ffs.version: stored "ffs 1", here "x""#),
        ] {
            let line = line.replace("0.1.0", env!("CARGO_PKG_VERSION"));
            assert_eq!(told(&with(path, json!("x"))), [line], "{path}");
            // What is not known on one side is no difference.
            assert_eq!(told(&with(path, Value::Null)), [""; 0], "{path}");
        }
    }

    #[test]
    fn what_is_of_the_moment_does_not_count() {
        for path in [
            "/run",
            "/started_utc",
            "/hosts/a/boot_seconds",
            "/tools/load_average",
            "/tools/memory",
            "/tools/ssh",
            "/images/host/built_at",
        ] {
            assert_eq!(told(&with(path, json!("x"))), [""; 0], "{path}");
        }
    }

    #[test]
    fn all_differences_are_in_one_error_that_says_what_to_do() {
        let mut here = with("/tools/kernel", json!("Linux 6.1"));
        here["programs"]["ffs"] = json!("f2");
        let error = OtherEnvironment { run: "results/t/r".into(), differences: compare(&manifest(), &here) };
        insta::assert_snapshot!(error.to_string(), @r#"
        results/t/r was begun in another environment:
          programs.ffs: stored "f1", here "f2"
          tools.kernel: stored "Linux 6.12", here "Linux 6.1"
        Samples of both would be in one run, and nothing would tell them apart: begin a new run with `bench run`, or resume this one where it was begun
        "#);
    }

    #[test]
    fn another_plan_is_told_by_its_first_trial_that_differs() {
        let stored = Manifest::here(&scenario(), About::default(), environment());
        assert_eq!(differences(&stored, &stored), []);
        let mut here = stored.clone();
        let last = here.plan.trials.pop().unwrap();
        let told = differences(&stored, &here)[0].to_string();
        assert_eq!(told, format!("plan.trials.5: stored block 2, {}, here 5 trials", last.arm));
        here = stored.clone();
        let arm = here.plan.trials[2].arm;
        here.plan.trials[2].arm = if arm == Arm::Plain { Arm::Recontext } else { Arm::Plain };
        let told = differences(&stored, &here);
        let line = format!("plan.trials.2: stored block 1, {arm}, here block 1, {}", here.plan.trials[2].arm);
        assert_eq!(told.iter().map(ToString::to_string).collect::<Vec<_>>(), [line]);
    }
}
