//! Figures, drawn from samples alone.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scenario::Experiment;

/// A figure that the bench can draw, named after the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FigureId {
    /// Migration with recontextualization, without, and the time in the recontextualizer.
    Fig1,
    /// The phases of a recontextualization.
    Fig2,
    /// Throughput with the remote server against the local one.
    Fig6,
    /// File operations with the remote server against the local one.
    Fig7,
}

impl FigureId {
    /// All figures.
    pub const ALL: [Self; 4] = [Self::Fig1, Self::Fig2, Self::Fig6, Self::Fig7];

    /// The name in scenario files and of the figure's own files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fig1 => "fig1",
            Self::Fig2 => "fig2",
            Self::Fig6 => "fig6",
            Self::Fig7 => "fig7",
        }
    }

    /// The experiment whose samples it shows.
    pub const fn experiment(self) -> Experiment {
        match self {
            Self::Fig1 | Self::Fig2 => Experiment::Migration,
            Self::Fig6 | Self::Fig7 => Experiment::Gluster,
        }
    }
}

impl fmt::Display for FigureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
