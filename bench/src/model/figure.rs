//! What a report draws, as a scenario defines it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A figure.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The name of its files.
    pub name: String,
    /// What is shown, in one line.
    pub title: String,
    /// How.
    pub kind: Kind,
    /// Quantity and unit of the axis of values; by default those of the metrics.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub axis: String,
    /// Metrics, for `forest`, `strip`, `curve`, `ecdf`: a panel or a series each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// `bars` and `phases`: groups of bars from left to right; each names what its bars share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Cell>,
    /// `bars`, `phases`, `curve`: one entry of the legend each; each names what is its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<Cell>,
    /// Where several machines (hypervisor, accelerator) of reports side by side stand: as groups, or as series.
    #[serde(default)]
    pub machines: Machines,
    /// `curve`: the factor of the x axis, a numeric one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// Arms that are shown, by the factor `arm`, in this order; all by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arms: Vec<String>,
    /// `forest`: the arm that the others are divided by; without, values in their own unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<String>,
    /// `forest`: arms that stand out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ours: Vec<String>,
    /// `forest`: metrics shown in their own unit beside the ratios.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub absolute: Vec<String>,
    /// `forest`: counts shown as words: each sums up its metrics, of the total that is the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counts: Vec<Count>,
    /// Sentences under the figure, before the bench's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caption: Vec<String>,
    /// A sentence when some group has no value at all and is left out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub without: String,
}

/// A kind of figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Bars in groups, with whiskers and dots.
    Bars,
    /// The parts of one metric, side by side.
    Phases,
    /// Ratios with intervals, a row an arm and a panel a metric.
    Forest,
    /// Every value as a dot, a row an arm.
    Strip,
    /// A metric over a numeric factor, with intervals.
    Curve,
    /// The share of values up to each value.
    Ecdf,
    /// One trial: source, destination and guest on one axis.
    Timeline,
}

/// What a bar is of, as far as a group or a series says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cell {
    /// Its name in the figure.
    pub label: String,
    /// The metric.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// The phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// The arm, by the factor `arm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
}

/// Counts of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Count {
    /// The panel's title.
    pub label: String,
    /// The metrics that are added up.
    pub metrics: Vec<String>,
    /// The metric that counts all.
    pub of: String,
}

/// Where the machines of several runs stand in a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Machines {
    /// As groups of bars.
    #[default]
    Groups,
    /// As series.
    Series,
}
