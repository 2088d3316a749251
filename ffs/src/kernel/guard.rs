//! The mount table, watched: unmounts, and mounts that somebody made writable.
//!
//! The mount that everybody sees is read-only. Root can change that (`mount -o remount,rw`); then the kernel no longer refuses
//! writes by itself, and since it serves open(2) from its cache, the daemon does not learn of opens for writing. So in the
//! daemon's own namespace such a mount is made read-only again at once, and the status says so. In other mount namespaces
//! nobody but the daemon's own root can do it: the kernel locks the flag where a mount comes into a less privileged namespace.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::MsFlags;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

use super::mountinfo::{self, Entry};

/// A mount that cannot be made read-only yet, since a file is open for writing through it, is tried again after so many
/// milliseconds.
const AGAIN_MS: u16 = 1000;

/// What the table told.
#[derive(Debug, Clone, Copy)]
pub enum Seen<'a> {
    /// Mounts came, went or changed, somewhere on this machine.
    Changed,
    /// This mount had been made writable, and is read-only again.
    MadeReadOnly(&'a Path),
}

/// What became of mounts that somebody made writable.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guard(Arc<Mutex<Found>>);

#[derive(Debug, Default)]
struct Found {
    /// How often one was made read-only again.
    undone: u64,
    /// Those that are writable, and why they still are.
    writable: BTreeSet<(PathBuf, String)>,
}

impl Guard {
    /// What people have to know, for the status.
    pub(crate) fn reduced(&self) -> Vec<String> {
        let found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let writable = found.writable.iter().map(|(point, error)| {
            format!(
                "`{}` was made writable by somebody and cannot be made read-only again ({error}): writes are refused, but \
                 a shared map shows other content until it is written back",
                point.display()
            )
        });
        let undone = (found.undone > 0).then(|| {
            format!("the mount was made writable by somebody, and read-only again: {} times", found.undone)
        });
        writable.chain(undone).collect()
    }

    /// Makes all writable mounts among `entries` read-only. Whether all are.
    fn keep_read_only(&self, entries: &[Entry], seen: &impl Fn(Seen<'_>)) -> bool {
        let mut writable = BTreeSet::new();
        for entry in entries.iter().filter(|entry| !entry.is_read_only()) {
            let point = entry.point.display();
            match make_read_only(entry) {
                Ok(()) => {
                    tracing::warn!("`{point}` was made writable by somebody: it is read-only again");
                    self.0.lock().unwrap_or_else(PoisonError::into_inner).undone += 1;
                    seen(Seen::MadeReadOnly(&entry.point));
                }
                Err(error) => drop(writable.insert((entry.point.clone(), error.to_string()))),
            }
        }
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (point, error) in writable.difference(&found.writable) {
            tracing::error!(error, "`{}` was made writable by somebody", point.display());
        }
        found.writable = writable;
        found.writable.is_empty()
    }
}

/// Blocks until nothing is mounted any more under a device number in this thread's mount namespace, whoever unmounted it: the
/// private mount would keep the session from ending by itself. Meanwhile `guard`, if there is one, keeps all of its mounts
/// read-only. Calls `seen` whenever mounts came or went, and for each that was made read-only.
///
/// # Errors
/// What reading the mount table returns.
pub(crate) fn watch(
    device: u64,
    guard: Option<Guard>,
    seen: impl Fn(Seen<'_>) + Send + 'static,
) -> io::Result<impl FnOnce() -> io::Result<()> + Send + 'static> {
    let device = numbers(device);
    let mut table = File::open("/proc/thread-self/mountinfo")?;
    Ok(move || {
        loop {
            let mut bytes = Vec::new();
            table.seek(SeekFrom::Start(0))?;
            table.read_to_end(&mut bytes)?;
            let entries: Vec<Entry> =
                mountinfo::parse(&bytes).filter(|entry| entry.device == device).collect();
            if entries.is_empty() {
                return Ok(());
            }
            seen(Seen::Changed);
            let calm = guard.as_ref().is_none_or(|guard| guard.keep_read_only(&entries, &seen));
            let patience = if calm { PollTimeout::NONE } else { PollTimeout::from(AGAIN_MS) };
            // Returns when mounts came, went or changed since the last read (proc(5)).
            let mut wait = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut wait, patience) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    })
}

/// Major and minor number, as they are in the table.
pub(super) fn numbers(device: u64) -> (u64, u64) {
    (nix::libc::major(device).into(), nix::libc::minor(device).into())
}

/// Makes one mount read-only and leaves its other flags as they are.
fn make_read_only(entry: &Entry) -> io::Result<()> {
    change(entry, entry.flags | MsFlags::MS_RDONLY)
}

/// Changes what the mount of an ffs forbids, and nothing else (`mount -o remount`).
///
/// # Errors
/// That no ffs is mounted there; what mount(2) returns.
pub fn remount(point: &Path, noexec: bool, nosymfollow: bool) -> io::Result<()> {
    let point = point.canonicalize()?;
    let table = std::fs::read("/proc/thread-self/mountinfo")?;
    let top = mountinfo::parse(&table).filter(|entry| entry.point == point).last();
    let Some(entry) = top.filter(|entry| entry.kind == b"fuse.ffs") else {
        return Err(io::Error::other("no ffs is mounted there"));
    };
    let mut flags = entry.flags;
    flags.set(MsFlags::MS_NOEXEC, noexec);
    flags.set(mountinfo::NOSYMFOLLOW, nosymfollow);
    change(&entry, flags)
}

/// Gives a mount other flags.
fn change(entry: &Entry, mut flags: MsFlags) -> io::Result<()> {
    let mount = open_mount(entry)?;
    flags |= MsFlags::MS_REMOUNT | MsFlags::MS_BIND;
    if !flags.intersects(MsFlags::MS_NOATIME | MsFlags::MS_RELATIME) {
        flags |= MsFlags::MS_STRICTATIME;
    }
    let path = format!("/proc/self/fd/{}", mount.as_raw_fd());
    Ok(nix::mount::mount(None::<&str>, path.as_str(), None::<&str>, flags, None::<&str>)?)
}

/// Opens the root of a mount, and no other one that is at the same place.
pub(super) fn open_mount(entry: &Entry) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mount = open(&entry.point, flags, Mode::empty())?;
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", mount.as_raw_fd()))?;
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:")).map(str::trim);
    if id == Some(entry.id.to_string().as_str()) {
        return Ok(mount);
    }
    Err(io::Error::other("something else is mounted over it"))
}
