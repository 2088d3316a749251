//! How a mount is, as `ffs status --json` prints it.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::hooks::Outcome;
use crate::projection::Projection;

/// How a mount is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The mount point; a byte that is not UTF-8 is shown as `\u{fffd}`.
    #[serde(serialize_with = "lossy")]
    pub mount: PathBuf,
    /// The version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// How often another program took over since the mount: `ffs upgrade`.
    #[serde(default)]
    pub taken_over: u64,
    /// The generation that is shown.
    pub generation: u64,
    /// The generation that a rollback shows again, while it is kept.
    pub rollback_to: Option<u64>,
    /// What is shown in place of the tree itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub projection: Option<Projection>,
    /// Layers, highest priority first.
    pub layers: Vec<LayerStatus>,
    /// Names shown.
    pub names: u64,
    /// Bytes of the files shown.
    pub bytes: u64,
    /// Inodes that the kernel holds.
    pub known_inodes: u64,
    /// Image content in memory.
    pub memory: MemoryStatus,
    /// Drives that are followed.
    pub devices: Vec<DeviceStatus>,
    /// The last outcome of each hook that ran.
    pub hooks: Vec<Outcome>,
    /// What works here, by name: `inotify` (watchers are told),
    /// once), `readdirplus` (listings bring attributes), `prefetch` (directories are listed in advance),
    /// `passthrough` (the kernel reads large files by itself),
    /// `allow_other`, `device_events`, `follow_directories`.
    pub abilities: Vec<String>,
    /// What this kernel or these privileges do not allow, and what that means; layers that could not be read again.
    pub reduced: Vec<String>,
}

/// A path need not be UTF-8, and JSON must be.
fn lossy<S: serde::Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStatus {
    /// Its name.
    pub name: String,
    /// Its rank.
    pub priority: u16,
    /// Where it came from.
    pub origin: String,
    /// The class that the image's manifest states.
    pub class: Option<String>,
    /// The generation that its manifest states.
    pub generation: Option<u64>,
    /// `sha256:` and the digest of its image in hexadecimal; none for a directory.
    pub digest: Option<String>,
    /// Bytes of its image in memory; 0 for a directory.
    pub bytes: u64,
}

/// Memory for image content, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryStatus {
    /// Held now, by the present generation, the one kept for a rollback and what is still open.
    pub in_use: u64,
    /// No image is read that would go over this.
    pub limit: u64,
}

/// One drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name, like `sr0`.
    pub device: String,
    /// What came of it last.
    pub state: String,
}
