//! Figures, drawn from samples alone: samples → [`Analysis`] → [`Drawing`] → SVG and PNG.
//!
//! A [`Drawing`] is a plain description (bars, whiskers, dots, words), so what a figure says is tested
//! without drawing it; `draw` lays it out the same way for both formats. The same samples give the
//! same bytes: the font is our own file, and nothing depends on the machine or the clock.
//!
//! A new figure is a name in [`FigureId`] and a function from an [`Analysis`] to a [`Chart`] or
//! [`Panels`]. A [`Timeline`] shows what one trial has seen, and not statistics.

mod bars;
pub mod chart;
mod draw;
mod panels;
mod paper;
mod peers;
pub mod timeline;

use std::fmt;

pub use chart::Chart;
pub use draw::{FigureError, png, svg};
pub use panels::Panels;
pub use peers::slower;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use timeline::Timeline;

use crate::{scenario::Experiment, stats::Analysis, workload::layers::peer::Notes};

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
    /// `ffs` and other union file systems, one panel an operation.
    Peers,
}

/// What a caption says beside what the samples know.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// The scenario's name.
    pub scenario: String,
    /// The runs' names.
    pub runs: Vec<String>,
    /// The profile, when it was not the file itself.
    pub profile: Option<String>,
    /// What file systems cannot do, by arm.
    pub peers: Notes,
}

/// The description of a figure.
#[derive(Debug, Clone, PartialEq)]
pub enum Drawing {
    /// Grouped bars.
    Bars(Chart),
    /// Panels of points on an axis of their own.
    Panels(Panels),
    /// One trial on an axis of time.
    Timeline(Timeline),
}

impl Drawing {
    /// What is shown, in one line.
    pub fn title(&self) -> &str {
        match self {
            Self::Bars(chart) => &chart.title,
            Self::Panels(panels) => &panels.title,
            Self::Timeline(timeline) => &timeline.title,
        }
    }

    /// Sentences under the figure.
    pub fn caption(&self) -> &[String] {
        match self {
            Self::Bars(chart) => &chart.caption,
            Self::Panels(panels) => &panels.caption,
            Self::Timeline(timeline) => &timeline.caption,
        }
    }
}

impl FigureId {
    /// All figures.
    pub const ALL: [Self; 5] = [Self::Fig1, Self::Fig2, Self::Fig6, Self::Fig7, Self::Peers];

    /// The name in scenario files and of the figure's own files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fig1 => "fig1",
            Self::Fig2 => "fig2",
            Self::Fig6 => "fig6",
            Self::Fig7 => "fig7",
            Self::Peers => "peers",
        }
    }

    /// The experiment whose samples it shows.
    pub const fn experiment(self) -> Experiment {
        match self {
            Self::Fig1 | Self::Fig2 => Experiment::Migration,
            Self::Fig6 | Self::Fig7 => Experiment::Gluster,
            Self::Peers => Experiment::Layers,
        }
    }

    /// The description of the figure for these statistics.
    pub fn drawing(self, analysis: &Analysis, context: &Context) -> Drawing {
        match self {
            Self::Fig1 => Drawing::Bars(paper::fig1(analysis, context)),
            Self::Fig2 => Drawing::Bars(paper::fig2(analysis, context)),
            Self::Fig6 => Drawing::Bars(paper::fig6(analysis, context)),
            Self::Fig7 => Drawing::Bars(paper::fig7(analysis, context)),
            Self::Peers => Drawing::Panels(peers::peers(analysis, context)),
        }
    }
}

impl fmt::Display for FigureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests;
