//! What a program hands over to the one that takes its place.
//!
//! The state is a line `ffs state N`, N being [`FORMAT`], and one JSON value, in memory without a name
//! (memfd) that the successor inherits. A successor reads the line alone at first and refuses any format but those it
//! knows; in the JSON it refuses what it does not know: a field means something, or it would not be there.
//! Whoever changes the meaning of anything here counts [`FORMAT`] up.
//!
//! | part | holds |
//! |---|---|
//! | [`Connection`] | the kernel's end: `/dev/fuse`, the private mount, what was agreed on at the mount |
//! | [`Tree`] | everything that layers and generations are made of, each object once |
//! | [`Kernel`] | what the kernel knows: inodes with its references, open directories |
//! | [`Daemon`] | what the loop knows: what was asked for, drives, deadlines, hooks, trust |
//!
//! Descriptors are numbers: the successor is the same process and inherits them ([`Fd`]). Content is
//! in them and never in the JSON, which is as long as names and attributes are: 150 to 300 bytes a file.
//!
//! Objects of the tree are named by their place in a list, and name only such as come before them, so
//! that a tree is rebuilt in one pass and cannot have a loop. What shared an object shares it again: a
//! merge compares by identity.
//!
//! Bytes (names, targets, values) are text with `%XX` for all that is not plain ASCII ([`Bytes`]).

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::time::{Duration, SystemTime};

use ctx_format::ClassName;
use ctx_format::ack::{Ack, Hook};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::{Config, LayerSpec};
use crate::escape;
use crate::hooks::Outcome;
use crate::layer::Vouched;
use crate::table::Way;

/// The only format so far.
pub(crate) const FORMAT: u32 = 2;

/// The number of a descriptor that is inherited.
pub(crate) type Fd = RawFd;

/// A place in one of the lists of [`Tree`].
pub(crate) type At = u32;

/// Why a state is not understood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("not a state of ffs: its first line is not `ffs state N`")]
    Foreign,
    #[error("the state has format {0}, this is ffs {version}, which knows {FORMAT}: restart the mount instead", version = env!("CARGO_PKG_VERSION"))]
    Format(u32),
    #[error("the state cannot be understood by ffs {version}: {0}", version = env!("CARGO_PKG_VERSION"))]
    Json(#[from] serde_json::Error),
    #[error("the state contradicts itself: {0}")]
    Wrong(&'static str),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// The version of the program that wrote it.
    pub(crate) version: String,
    /// The mount point.
    pub(crate) point: Bytes,
    pub(crate) connection: Connection,
    pub(crate) tree: Tree,
    pub(crate) kernel: Kernel,
    pub(crate) daemon: Daemon,
}

/// The kernel's end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(clippy::struct_excessive_bools)] // Each is a fact of its own.
pub(crate) struct Connection {
    pub(crate) fuse: Fd,
    /// The number of the mounted device.
    pub(crate) device: u64,
    pub(crate) agreed: Agreed,
    /// The private mount, or why there is none.
    pub(crate) private: Result<PrivateMount, String>,
    /// Whether fusermount3 mounted it for a user.
    pub(crate) users_mount: bool,
    /// Writes that were refused. What the last ones left in the kernel's cache may still be there.
    pub(crate) refused_writes: u64,
}

/// What kernel and program told each other at the mount. The kernel asks once, so it holds for all
/// who answer later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Agreed {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// `FUSE_*` flags that were asked for and granted.
    pub(crate) taken: u64,
}

impl Agreed {
    /// Whether the kernel asks for the target of a rename whatever it has cached: FUSE 7.37, Linux 6.1.
    pub(crate) fn renames_over(self) -> bool {
        (self.major, self.minor) >= (7, 37)
    }

    /// Whether the kernel can let a name expire (`FUSE_EXPIRE_ONLY`): FUSE 7.38, Linux 6.2.
    pub(crate) fn expires(self) -> bool {
        (self.major, self.minor) >= (7, 38)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PrivateMount {
    pub(crate) root: Fd,
    /// The number of the next stand-in.
    pub(crate) stand_in: u64,
}

/// Lists of objects. An object names only such as come before it in their lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tree {
    /// Sealed memory.
    pub(crate) sealed: Vec<Fd>,
    /// Directories that files are opened below.
    pub(crate) bases: Vec<Fd>,
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) layer_dirs: Vec<LayerDir>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) files: Vec<File>,
    pub(crate) dirs: Vec<Dir>,
    pub(crate) shown: Generation,
    /// The one kept for a rollback, and what was asked for then.
    pub(crate) before: Option<(Generation, Desired)>,
    /// The next inode number.
    pub(crate) next_inode: u64,
    /// Files of several names, which share them.
    pub(crate) linked: Vec<At>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Leaf(pub(crate) Meta, pub(crate) Xattrs, pub(crate) Content);

pub(crate) type Xattrs = Vec<(Bytes, Bytes)>;

/// Type, permission bits, owner, group, size, blocks, links, modification, change, device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meta(
    pub(crate) Kind,
    pub(crate) u16,
    pub(crate) u32,
    pub(crate) u32,
    pub(crate) u64,
    pub(crate) u64,
    pub(crate) u32,
    pub(crate) Time,
    pub(crate) Time,
    pub(crate) (u32, u32),
);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    #[serde(rename = "d")]
    Dir,
    #[serde(rename = "-")]
    File,
    #[serde(rename = "l")]
    Symlink,
    #[serde(rename = "c")]
    CharDevice,
    #[serde(rename = "b")]
    BlockDevice,
    #[serde(rename = "p")]
    Fifo,
    #[serde(rename = "s")]
    Socket,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content {
    /// In `sealed`, with offset and length of each range.
    Sealed(At, Vec<(u64, u64)>),
    Held(Fd, Stamp),
    /// Below one of `bases`.
    Path(At, Bytes, Stamp),
    Target(Bytes),
    Empty,
}

/// Device, inode, size, change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp(pub(crate) u64, pub(crate) u64, pub(crate) u64, pub(crate) (i64, i64));

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerDir {
    pub(crate) meta: Meta,
    pub(crate) opaque: bool,
    pub(crate) xattrs: Xattrs,
    pub(crate) entries: Vec<(Bytes, LayerNode)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum LayerNode {
    #[serde(rename = "d")]
    Dir(At),
    #[serde(rename = "l")]
    Leaf(At),
    #[serde(rename = "w")]
    Whiteout,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layer {
    pub(crate) name: String,
    pub(crate) priority: u16,
    pub(crate) origin: String,
    pub(crate) class: Option<ClassName>,
    pub(crate) generation: Option<u64>,
    pub(crate) vouched: Option<Vouched>,
    pub(crate) root: At,
}

/// Inode number, leaf, name of the layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct File(pub(crate) u64, pub(crate) At, pub(crate) String);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Dir {
    pub(crate) ino: u64,
    pub(crate) meta: Meta,
    pub(crate) entries: Vec<(Bytes, Node)>,
    /// What it was merged from: a layer's name and its directory.
    pub(crate) sources: Vec<(String, At)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Node {
    #[serde(rename = "d")]
    Dir(At),
    #[serde(rename = "f")]
    File(At),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    pub(crate) layers: Vec<At>,
    pub(crate) root: At,
    pub(crate) earlier: Option<Earlier>,
}

/// What a projection showed before: the name of its directory, that directory if anything holds it, and the inode numbers of
/// the directories in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Earlier(pub(crate) Bytes, pub(crate) Option<At>, pub(crate) Vec<u64>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Desired {
    pub(crate) layers: Vec<LayerSpec>,
    pub(crate) ranks: BTreeMap<String, u16>,
}

/// What the kernel knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kernel {
    /// Inodes and how many references it has of each.
    pub(crate) known: Vec<(Node, u64)>,
    /// How it comes by the content of those that were opened, by inode number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) ways: Vec<(u64, Way)>,
    pub(crate) next_handle: u64,
    /// Open directories by handle.
    pub(crate) open_dirs: Vec<(u64, At)>,
    /// Names that changed while something was mounted on or below them: directory, name, path, and what the kernel has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) covered: Vec<(u64, Bytes, Bytes, Node)>,
    /// A directory layer was found to differ from its scan, and is yet to be read again.
    pub(crate) stale: bool,
}

/// What the loop knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Daemon {
    pub(crate) config: Config,
    pub(crate) desired: Desired,
    /// Images that were rolled back, by layer: generation and digest.
    pub(crate) held: BTreeMap<String, (Option<u64>, String)>,
    /// Layers that could not be read again, and why.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) refused: BTreeMap<String, String>,
    pub(crate) devices: BTreeMap<String, Device>,
    /// Drives that wait to be read.
    pub(crate) unread: Vec<String>,
    pub(crate) due: Vec<(u64, Due)>,
    pub(crate) hooks: Hooks,
    pub(crate) trust: Trust,
    /// Where the event log is written to.
    pub(crate) log: Option<Fd>,
    /// Where the kernel tells of devices.
    pub(crate) uevents: Option<Fd>,
    pub(crate) control: Control,
    pub(crate) ack: Option<Acks>,
    /// How often a program took over since the mount.
    pub(crate) taken_over: u64,
    /// When the first thread was stopped that answers the kernel, on `CLOCK_MONOTONIC`.
    pub(crate) stopped_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Device {
    pub(crate) attempt: u32,
    pub(crate) state: String,
}

/// What is due after so many milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Due {
    Retry(String),
    DropLayer { layer: String, device: String },
    Poll,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Hooks {
    pub(crate) outcomes: Vec<Outcome>,
    /// The generation and the paths that hooks are yet to run for.
    pub(crate) waiting: Option<(u64, Vec<Bytes>)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trust {
    /// The keys in force, as lines; none where images need not be signed.
    pub(crate) keys: Option<Vec<String>>,
    /// What was last accepted, as in its file.
    pub(crate) accepted: serde_json::Value,
    /// Why that file could not be written.
    pub(crate) unwritten: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Control {
    pub(crate) path: Bytes,
    pub(crate) listener: Fd,
    /// The connection over which this was asked for: the successor answers.
    pub(crate) asker: Option<Fd>,
}

/// What the host is told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Acks {
    pub(crate) states: Vec<AckState>,
    /// What the image in each drive claims to be.
    pub(crate) claims: Vec<(String, ClassName, u64)>,
    pub(crate) classes: Vec<(String, ClassName)>,
    pub(crate) hooks: Vec<Hook>,
    /// An open virtio-serial port, which no two can open at a time.
    pub(crate) port: Option<Port>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AckState {
    pub(crate) ack: Ack,
    pub(crate) waits: Option<u64>,
    pub(crate) told: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Port {
    pub(crate) fd: Fd,
    pub(crate) connected: bool,
    /// What did not fit of the line under way.
    pub(crate) rest: Bytes,
}

impl State {
    /// Writes it.
    ///
    /// # Errors
    /// What writing returns.
    pub(crate) fn write(&self, mut to: impl Write) -> io::Result<()> {
        writeln!(to, "ffs state {FORMAT}")?;
        Ok(serde_json::to_writer(to, self)?)
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`StateError`] for another format, or anything in it that is not known.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, StateError> {
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or(StateError::Foreign)?;
        let (line, json) = bytes.split_at(end);
        let line = std::str::from_utf8(line).ok().and_then(|line| line.strip_prefix("ffs state "));
        match line.and_then(|number| number.parse().ok()) {
            Some(FORMAT) => Ok(serde_json::from_slice(json)?),
            Some(other) => Err(StateError::Format(other)),
            None => Err(StateError::Foreign),
        }
    }

    /// All descriptors that it names.
    pub(crate) fn descriptors(&self) -> Vec<Fd> {
        let Self { connection, tree, daemon, .. } = self;
        let held = tree.leaves.iter().filter_map(|Leaf(_, _, content)| match content {
            Content::Held(fd, _) => Some(*fd),
            _ => None,
        });
        let private = connection.private.as_ref().ok().map(|private| private.root);
        let port = daemon.ack.as_ref().and_then(|ack| ack.port.as_ref()).map(|port| port.fd);
        let some = [private, port, daemon.log, daemon.uevents, daemon.control.asker].into_iter().flatten();
        let always = [connection.fuse, daemon.control.listener];
        always
            .into_iter()
            .chain(some)
            .chain(held)
            .chain(tree.sealed.iter().chain(&tree.bases).copied())
            .collect()
    }
}

/// Bytes that are mostly text.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bytes(pub(crate) Box<[u8]>);

impl<T: AsRef<[u8]> + ?Sized> From<&T> for Bytes {
    fn from(bytes: &T) -> Self {
        Self(bytes.as_ref().into())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape::write(&self.0, f)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(&self.0) {
            // Nearly all: without a copy.
            Ok(text) if text.bytes().all(escape::is_plain) => to.serialize_str(text),
            _ => to.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if !text.contains('%') {
            return Ok(Self(text.into_bytes().into()));
        }
        let bytes = escape::read(text.as_bytes());
        Ok(Self(bytes.ok_or_else(|| D::Error::custom("`%` without two hexadecimal digits"))?.into()))
    }
}

/// Seconds since 1970, before it below zero, and nanoseconds after them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Time(pub(crate) i64, pub(crate) u32);

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Self(after.as_secs().cast_signed(), after.subsec_nanos()),
            Err(before) => {
                let before = before.duration();
                match (before.as_secs().cast_signed(), before.subsec_nanos()) {
                    (seconds, 0) => Self(-seconds, 0),
                    (seconds, nanos) => Self(-seconds - 1, 1_000_000_000 - nanos),
                }
            }
        }
    }
}

impl From<Time> for SystemTime {
    fn from(Time(seconds, nanos): Time) -> Self {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let start = if seconds < 0 {
            Self::UNIX_EPOCH.checked_sub(whole)
        } else {
            Self::UNIX_EPOCH.checked_add(whole)
        };
        let time = start.and_then(|start| start.checked_add(Duration::from_nanos(nanos.into())));
        // What no clock of this system can hold was never one of its times.
        time.unwrap_or(Self::UNIX_EPOCH)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
