//! Unmounts that take away nothing that others mounted.
//!
//! umount2(2) takes a path, and what is mounted there last is what it unmounts; a descriptor in `/proc/self/fd` is no exception.
//! So the mounts of a file system are looked up in the mount table by the number of their device, each one is opened and compared
//! with its row, and only one that nothing is mounted over is unmounted. Between the comparison and umount2(2) are some
//! microseconds in which somebody can still mount over it: the kernel has no call that does both.
//!
//! Detaching a mount detaches what is mounted below it, too. Whoever asks for an unmount can be told so; a daemon that has to end
//! cannot wait ([`Policy`]).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::guard::{numbers, open_mount};
use super::mountinfo::{self, Entry};

/// What becomes of mounts that others made on the file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// If there are any, or a mount cannot be reached, nothing is unmounted.
    Ask,
    /// A mount that has another one over its root stays; what is mounted further down goes with it.
    End,
}

/// Why a mount stays.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Somebody mounted something on it.
    #[error("cannot unmount `{}`: `{kind}` is mounted on it at `{}`: unmount that first", point.display(), over.display())]
    Covered {
        /// The mount.
        point: PathBuf,
        /// The place of what is on it.
        over: PathBuf,
        /// The type of that.
        kind: String,
    },
    /// It cannot be opened or unmounted.
    #[error("cannot unmount `{}`: {source}", point.display())]
    Failed {
        /// The mount.
        point: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mount table cannot be read.
    #[error("cannot read the mount table: {0}")]
    Table(io::Error),
}

/// The mount table of this thread's namespace, seen from one file system.
struct Table {
    rows: Vec<Entry>,
    device: (u64, u64),
}

impl Table {
    fn read(device: u64) -> Result<Self, UnmountError> {
        let bytes = std::fs::read("/proc/thread-self/mountinfo").map_err(UnmountError::Table)?;
        Ok(Self { rows: mountinfo::parse(&bytes).collect(), device: numbers(device) })
    }

    /// The number alone is not enough: the kernel gives it to another file system, of any type, once this one is gone. Where
    /// mount(2) made ours, the type has no subtype.
    fn is_own(&self, row: &Entry) -> bool {
        row.device == self.device && (row.kind == b"fuse.ffs" || row.kind == b"fuse")
    }

    fn own(&self) -> impl Iterator<Item = &Entry> {
        self.rows.iter().filter(|row| self.is_own(row))
    }

    /// What is mounted over the root of a mount, so that its path leads elsewhere.
    fn over(&self, below: &Entry) -> Option<&Entry> {
        self.rows.iter().find(|row| row.parent == below.id && row.point == below.point)
    }

    /// Own mounts that nothing is mounted over.
    fn uncovered(&self) -> impl Iterator<Item = &Entry> {
        self.own().filter(|row| self.over(row).is_none())
    }

    /// A mount of somebody else on one of ours, wherever in its tree.
    fn covered(&self) -> Option<UnmountError> {
        self.own().find_map(|own| {
            let on_it = |row: &&Entry| row.parent == own.id && !self.is_own(row);
            self.rows.iter().find(on_it).map(|row| covered(own, row))
        })
    }
}

fn covered(below: &Entry, over: &Entry) -> UnmountError {
    let kind = String::from_utf8_lossy(&over.kind).into_owned();
    UnmountError::Covered { point: below.point.clone(), over: over.point.clone(), kind }
}

/// Where a file system is mounted, as this thread sees it. Does not ask the file system.
pub(crate) fn points(device: u64) -> Vec<PathBuf> {
    Table::read(device)
        .map_or_else(|_| Vec::new(), |table| table.own().map(|own| own.point.clone()).collect())
}

/// Unmounts a file system wherever it is in the namespace of this thread, in use or not. Gives why mounts are left, one error
/// for each; none when all are gone.
///
/// # Errors
/// With [`Policy::Ask`], why nothing was unmounted; [`UnmountError::Table`].
pub(crate) fn unmount(device: u64, policy: Policy) -> Result<Vec<UnmountError>, UnmountError> {
    if policy == Policy::Ask {
        let table = Table::read(device)?;
        if let Some(error) = table.covered() {
            return Err(error);
        }
        for own in table.uncovered() {
            open_mount(own).map_err(|source| failed(own, source))?;
        }
    }
    // One at a time: others go with it, by propagation and as its children.
    let mut tried = BTreeMap::new();
    loop {
        let table = Table::read(device)?;
        let Some(next) = table.uncovered().find(|own| !tried.contains_key(&own.id)) else {
            let why = |own: &Entry| match table.over(own) {
                Some(over) => covered(own, over),
                None => failed(own, tried.remove(&own.id).flatten().unwrap_or_else(|| Errno::EBUSY.into())),
            };
            return Ok(table.own().map(why).collect());
        };
        tried.insert(next.id, detach(next).err());
    }
}

fn failed(own: &Entry, source: io::Error) -> UnmountError {
    UnmountError::Failed { point: own.point.clone(), source }
}

/// Detaches one mount. fuser 0.18.0 gives up on a busy mount and leaves a dead one behind: this does not.
fn detach(own: &Entry) -> io::Result<()> {
    let mount = open_mount(own)?;
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    match umount2(path.as_str(), MntFlags::MNT_DETACH) {
        Err(Errno::EPERM) => as_user(&own.point),
        result => Ok(result?),
    }
}

/// Has fusermount3 do it, which may unmount what it mounted for the same user.
fn as_user(point: &Path) -> io::Result<()> {
    let status = Command::new("fusermount3").arg("-uz").arg(point).status();
    match status.map_err(|error| io::Error::new(error.kind(), format!("fusermount3: {error}")))? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("fusermount3: {status}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &str) -> Table {
        Table { rows: mountinfo::parse(rows.as_bytes()).collect(), device: (0, 31) }
    }

    fn points_of<'a>(rows: impl Iterator<Item = &'a Entry>) -> Vec<&'a str> {
        rows.map(|row| row.point.to_str().unwrap()).collect()
    }

    #[test]
    fn own_mounts_are_those_of_the_device_and_the_type() {
        let table = table(
            "1 0 8:1 / / rw - ext4 a rw\n\
             2 1 0:31 / /m ro - fuse.ffs ffs ro\n\
             3 1 0:31 /d /bind ro - fuse.ffs ffs ro\n\
             4 1 0:31 / /reused rw - tmpfs t rw\n\
             5 1 0:32 / /other ro - fuse.ffs ffs ro\n",
        );
        assert_eq!(points_of(table.own()), ["/m", "/bind"]);
        assert_eq!(points_of(table.uncovered()), ["/m", "/bind"]);
        assert!(table.covered().is_none());
    }

    #[test]
    fn what_is_mounted_over_the_root_covers_and_what_is_below_does_not() {
        let rows = "1 0 8:1 / / rw - ext4 a rw\n\
                    2 1 0:31 / /m ro - fuse.ffs ffs ro\n\
                    3 2 0:31 / /m ro - fuse.ffs ffs ro\n\
                    4 1 0:31 / /n ro - fuse.ffs ffs ro\n";
        let own = table(rows);
        // One of its own over it goes first, and is nobody else's.
        assert_eq!(points_of(own.uncovered()), ["/m", "/n"]);
        assert_eq!(own.uncovered().map(|row| row.id).collect::<Vec<_>>(), [3, 4]);
        assert!(own.covered().is_none());
        let below = table(&format!("{rows}5 4 0:40 / /n/d rw - tmpfs t rw\n"));
        assert_eq!(points_of(below.uncovered()), ["/m", "/n"]);
        let said = below.covered().unwrap().to_string();
        assert_eq!(said, "cannot unmount `/n`: `tmpfs` is mounted on it at `/n/d`: unmount that first");
        let over = table(&format!("{rows}5 4 0:40 / /n rw - tmpfs t rw\n"));
        assert_eq!(points_of(over.uncovered()), ["/m"]);
        assert!(over.covered().is_some());
    }
}
