//! `shape`: a link between two machines is of a class from here on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Uses;

/// Gives the link between two machines the delay and rate of a class; each pair, class and dilation that a scenario uses is measured before the first trial.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// The two machines: guest or server, and server.
    pub shape: [String; 2],
    /// The class; without, the link is as the testbed has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Rates are divided and delays multiplied by this; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dilation: Option<Dilation>,
    /// Whether its measured rate is judged, too, and not its round trip alone. True by default.
    #[serde(default = "yes")]
    pub judge_rate: bool,
}

/// How much slower a link is, so that it fits the machines.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Dilation {
    /// With hardware virtualization; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware: Option<f64>,
    /// On emulated hosts; 1 by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emulated: Option<f64>,
}

impl Dilation {
    /// The dilation on a machine that is emulated or not.
    pub fn on(self, emulated: bool) -> f64 {
        if emulated { self.emulated } else { self.hardware }.unwrap_or(1.0)
    }
}

const fn yes() -> bool {
    true
}

impl Shape {
    pub(super) fn uses(&self) -> Uses<'_> {
        Uses {
            machines: self.shape.iter().map(String::as_str).collect(),
            links: self.link.iter().map(String::as_str).collect(),
            ..Uses::default()
        }
    }
}
