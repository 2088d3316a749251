//! What experiment `layers` mounts and how long it probes, and what such a scenario may not say.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Experiment, Scenario, Size, TestbedKind, Time, check::At, overlay::Fault};

/// The trees that are mounted and the probes on them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Layers {
    /// Names in the directory that is looked up, read and listed.
    #[schemars(range(min = 10, max = 100_000))]
    pub files: u32,
    /// Size of the file that is read from end to end.
    pub large: Size,
    /// Fresh mounts whose cold lookups are measured in a trial; the trial's value is their median.
    #[schemars(range(min = 1, max = 100))]
    pub mounts: u32,
    /// Passes over all names whose median is the trial's warm value.
    #[schemars(range(min = 1, max = 1000))]
    pub passes: u32,
    /// Swaps of a layer whose latency is measured in a trial.
    #[schemars(range(min = 2, max = 10_000))]
    pub swaps: u32,
    /// Changed entries that the kernel has cached when a layer is swapped.
    #[schemars(range(min = 10, max = 100_000))]
    pub cached: u32,
    /// How long readers look for mixed and torn content while layers change: a time in which whole changes happen.
    pub storm: Time,
    /// Changes a second while they look.
    #[schemars(range(min = 1, max = 1000))]
    pub storm_rate: u32,
    /// Files of the large union, spread over its layers.
    #[schemars(range(min = 10, max = 10_000_000))]
    pub many_files: u32,
    /// Layers of the large union.
    #[schemars(range(min = 2, max = 100))]
    pub many_layers: u32,
    /// Of those files, how many are looked up before the program's memory is read.
    #[schemars(range(max = 10_000_000))]
    pub many_looked_up: u32,
}

impl Default for Layers {
    fn default() -> Self {
        Self {
            files: 2000,
            large: Size::from_mib(256),
            mounts: 3,
            passes: 5,
            swaps: 200,
            cached: 5000,
            storm: Time::from_secs(5),
            storm_rate: 20,
            many_files: 100_000,
            many_layers: 10,
            many_looked_up: 100_000,
        }
    }
}

/// Refuses what a local testbed has not; gives `[layers]` its defaults.
pub(super) fn check(scenario: &mut Scenario, at: &At<'_, '_>) -> Result<(), Fault> {
    if scenario.testbed.kind != TestbedKind::Local {
        let path: &[&str] =
            if at.says("testbed", Some("kind")) { &["testbed", "kind"] } else { &["experiment"] };
        let help = "set [testbed] kind = \"local\": an emulated machine would drown microseconds";
        return at.fail(path, None, "experiment \"layers\" runs on this machine's own kernel", help);
    }
    for field in [
        "hypervisor",
        "accelerator",
        "hosts",
        "host_vcpus",
        "inventory",
        "dilation",
        "emulated_dilation",
        "file_dilation",
    ] {
        if at.says("testbed", Some(field)) {
            let message = format!("a local testbed has no {field}");
            let help = "remove it: a local testbed is this machine's own kernel, without hosts and links";
            return at.fail(&["testbed", field], None, &message, help);
        }
    }
    for table in ["guest", "recontext", "migration", "network", "bonnie"] {
        if at.says(table, None) {
            let message = format!("[{table}] has no meaning in experiment \"{}\"", Experiment::Layers);
            return at.fail(&[table], None, &message, "remove it: nothing migrates");
        }
    }
    let layers = scenario.layers.get_or_insert_with(Layers::default);
    let limits = [
        ("files", layers.files, 10, 100_000),
        ("mounts", layers.mounts, 1, 100),
        ("passes", layers.passes, 1, 1000),
        ("swaps", layers.swaps, 2, 10_000),
        ("cached", layers.cached, 10, 100_000),
        ("storm_rate", layers.storm_rate, 1, 1000),
        ("many_files", layers.many_files, 10, 10_000_000),
        ("many_layers", layers.many_layers, 2, 100),
    ];
    for (field, value, least, most) in limits {
        if !(least..=most).contains(&value) {
            let message = format!("{field} = {value} is outside {least} to {most}");
            let usual = format!("without it, it is {}", default_of(field));
            return at.fail(&["layers", field], None, &message, &usual);
        }
    }
    if layers.large < Size::from_mib(1) || layers.large > Size::from_mib(4096) {
        let message = format!("a file of {} is no measure of throughput", layers.large);
        return at.fail(&["layers", "large"], None, &message, "use \"1 MiB\" to \"4 GiB\"; 256 MiB is usual");
    }
    if layers.storm < Time::from_millis(100) || layers.storm > Time::from_secs(600) {
        let message = format!("a storm of {} shows nothing, or takes too long", layers.storm);
        return at.fail(&["layers", "storm"], None, &message, "use \"100 ms\" to \"10 min\"; 5 s are usual");
    }
    if layers.many_looked_up > layers.many_files {
        let message = format!("{} of {} files cannot be looked up", layers.many_looked_up, layers.many_files);
        return at.fail(&["layers", "many_looked_up"], None, &message, "use at most as many as many_files");
    }
    Ok(())
}

fn default_of(field: &str) -> String {
    let defaults = serde_json::to_value(Layers::default()).unwrap_or_default();
    defaults.get(field).map(ToString::to_string).unwrap_or_default()
}
