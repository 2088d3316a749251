//! What is compared with what.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A comparison within blocks: two arms, two phases, or two metrics, at each point of the other factors.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// Its name, for claims and figures.
    pub name: String,
    /// The side that is compared with.
    pub from: Side,
    /// The side that is compared.
    pub to: Side,
    /// The metrics; by default all that both sides have. Left out where the sides name their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// What the two sides are, for people: `plain and recontextualized migrations of the same block`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub title: String,
}

/// One side: whatever is not named is the same on both.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Side {
    /// Value of the factor `arm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arm: Option<String>,
    /// A phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// A metric of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
}
