//! What a probe process is told, and what it answers: one JSON value each, on its command line and
//! its standard output.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::probe::{self, Cold, Warm};
use super::swap::{self, Cached, Control, Events, Storm, Version};
use super::tree::Many;

/// Name of the hidden subcommand of `bench` that does a task.
pub const SUBCOMMAND: &str = "layers-probe";

/// One task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Cold lookups.
    Cold {
        /// Where the union is shown.
        root: PathBuf,
        /// Names to look up.
        files: u32,
    },
    /// Everything that a cache can help.
    Warm {
        /// Where the union is shown.
        root: PathBuf,
        /// Names to look up.
        files: u32,
        /// Passes that count.
        passes: u32,
    },
    /// Swap until seen.
    Visible(Swaps),
    /// Swap until told.
    Events(Swaps),
    /// Swap with entries cached and without; `count` is rounds.
    Cached {
        /// The swaps.
        swaps: Swaps,
        /// Entries to cache.
        entries: u32,
    },
    /// Readers while layers change; `count` is the rate, a second.
    Storm(Swaps),
    /// Lookups in the large union.
    Walk {
        /// Where the union is shown.
        root: PathBuf,
        /// Its shape.
        many: Many,
        /// Files to look up.
        count: u32,
    },
}

/// A union whose layer is swapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swaps {
    /// Where the union is shown.
    pub root: PathBuf,
    /// How its layer is swapped.
    pub control: Control,
    /// The versions to go through.
    pub versions: Vec<Version>,
    /// How often, or how fast.
    pub count: u32,
}

/// What a task found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// Of [`Task::Cold`].
    Cold(Cold),
    /// Of [`Task::Warm`].
    Warm(Warm),
    /// Of [`Task::Visible`]: ms each.
    Visible(Vec<f64>),
    /// Of [`Task::Events`].
    Events(Events),
    /// Of [`Task::Cached`].
    Cached(Cached),
    /// Of [`Task::Storm`].
    Storm(Storm),
    /// Of [`Task::Walk`].
    Walked,
}

impl Task {
    /// Does it.
    ///
    /// # Errors
    /// The file system showed something else than it should, or nothing.
    pub fn run(&self) -> io::Result<Found> {
        // One thread and one processor, except where several programs play together.
        if matches!(self, Self::Cold { .. } | Self::Warm { .. } | Self::Walk { .. }) {
            probe::pin()?;
        }
        match self {
            Self::Cold { root, files } => probe::cold(root, *files).map(Found::Cold),
            Self::Warm { root, files, passes } => probe::warm(root, *files, *passes).map(Found::Warm),
            Self::Visible(Swaps { root, control, versions, count }) => {
                swap::visible(root, control, versions, *count).map(Found::Visible)
            }
            Self::Events(Swaps { root, control, versions, count }) => {
                swap::events(root, control, versions, *count).map(Found::Events)
            }
            Self::Cached { swaps: Swaps { root, control, versions, count }, entries } => {
                swap::cached(root, control, versions, *entries, *count).map(Found::Cached)
            }
            Self::Storm(Swaps { root, control, versions, count }) => {
                swap::storm(root, control, versions, *count).map(Found::Storm)
            }
            Self::Walk { root, many, count } => probe::walk(root, *many, *count).map(|()| Found::Walked),
        }
    }
}
