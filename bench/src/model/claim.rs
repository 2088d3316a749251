//! What is claimed, and by whom, to be put beside what was measured.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A claim about a metric or a comparison.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// What is claimed, in one line.
    pub what: String,
    /// Where: `Fig. 1`, `goal`.
    pub source: String,
    /// What stands there, in its own numbers.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub says: String,
    /// The comparison that it is about; or `metric`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare: Option<String>,
    /// The metric; with `compare`, that of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Several metrics: the claim is made of each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// The phase of the metric; the whole trial by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The arm of the metric; every arm by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// What of it: "median", "mean", "sd", "ratio", "increase", "share", "difference".
    pub statistic: Statistic,
    /// The value that is claimed; none for a claim in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<f64>,
    /// In place of `expected`: the same statistic of another arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_of: Option<String>,
    /// How it is compared: `equal`, `at_most`, `at_least`, `above`, `below`.
    #[serde(default)]
    pub relation: Relation,
    /// How far from `expected` counts as equal, in its unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<f64>,
    /// A sentence to stand beside the verdict.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A number that statistics give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Statistic {
    /// The median of the metric.
    Median,
    /// The mean.
    Mean,
    /// The standard deviation.
    Sd,
    /// Of a comparison: the geometric mean of `to` ÷ `from`.
    Ratio,
    /// Of a comparison: (`to` − `from`) ÷ `from`.
    Increase,
    /// Of a comparison: (`to` − `from`) ÷ `to`.
    Share,
    /// Of a comparison: `to` − `from`, in the metric's unit.
    Difference,
}

/// How a measured number stands to a claimed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// Within the tolerance.
    #[default]
    Equal,
    /// Not above.
    AtMost,
    /// Not below.
    AtLeast,
    /// Above.
    Above,
    /// Below.
    Below,
}
