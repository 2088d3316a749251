//! Workloads: commands that run on a machine, and how values are read from what they print.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::metric::Better;

/// A program that runs on a machine, and what its output says.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Its name.
    pub name: String,
    /// The command, as `sh -c` takes it. Its standard output is parsed, and kept.
    pub command: String,
    /// What is run first, each time, such as the making of its files; not parsed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What ends it where it runs in the background; by default SIGTERM to all of its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Debian packages that the machine on which it runs must have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// Values in its output.
    #[serde(default, rename = "value", skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<ValueOf>,
    /// Whether its values come from the clock of the machine on which it runs; then that clock is judged. True by default.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub timed: bool,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
const fn is_yes(value: &bool) -> bool {
    *value
}

/// One value in an output: exactly one of `json`, `csv` and `regex`.
///
/// Each is a metric of the same name, unless the scenario defines one of that name itself.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValueOf {
    /// Its name, and that of the metric.
    pub name: String,
    /// Its name for people; its name by default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
    /// Its unit; `1` for a count.
    pub unit: String,
    /// Which direction is better.
    #[serde(default)]
    pub better: Better,
    /// JSON pointer to it (RFC 6901); the output is one JSON value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub json: Option<String>,
    /// Its column, from 1, in the last line of the output that has as many, as CSV.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub csv: Option<u32>,
    /// A regular expression with a group `value`; the last match counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regex: Option<String>,
    /// What it is multiplied with; 1 when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f64>,
    /// The text that stands for "beyond what can be measured": a censored value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub censored: Option<String>,
    /// Whether the output may lack it: then there is no sample. Else the sample is invalid.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}
