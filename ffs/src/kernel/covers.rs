//! Paths of a mount that something else is mounted on, in the mount namespace of this process.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Component;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::mountinfo::{self, Entry};

/// Paths from the root of the mount, without a leading slash.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths(BTreeSet<Vec<u8>>);

impl Paths {
    /// Whether nothing is mounted anywhere.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether something is mounted at a path or below it.
    pub(crate) fn is_at_or_below(&self, path: &[u8]) -> bool {
        if self.is_empty() {
            return false;
        }
        let below = [path, b"/"].concat();
        self.0.contains(path)
            || self.0.range(below.clone()..).next().is_some_and(|next| next.starts_with(&below))
    }

    /// What is mounted on the mounts of a device.
    fn of(table: &[u8], device: (u64, u64)) -> Self {
        let rows: Vec<Entry> = mountinfo::parse(table).collect();
        let own: HashMap<u64, &Entry> =
            rows.iter().filter(|row| row.device == device).map(|row| (row.id, row)).collect();
        let covers = rows.iter().filter_map(|row| {
            let parent = own.get(&row.parent)?;
            let path = parent.root.join(row.point.strip_prefix(&parent.point).ok()?);
            let names = path.components().filter_map(|part| match part {
                Component::Normal(name) => Some(name.as_bytes()),
                _ => None,
            });
            Some(names.collect::<Vec<_>>().join(&b'/')).filter(|path| !path.is_empty())
        });
        Self(covers.collect())
    }
}

/// Knows them as of now, and reads the table of mounts only when it has changed.
#[derive(Debug)]
pub(crate) struct Covers {
    /// None where it cannot be had: then nothing is known to be covered.
    table: Option<File>,
    device: (u64, u64),
    paths: Paths,
}

impl Covers {
    /// Of the mount with this device number.
    pub(crate) fn of(device: u64) -> Self {
        let table = File::open("/proc/self/mountinfo")
            .inspect_err(|error| tracing::warn!(%error, "what is mounted below the mount point is not known"))
            .ok();
        let device = (u64::from(nix::libc::major(device)), u64::from(nix::libc::minor(device)));
        let mut covers = Self { table, device, paths: Paths::default() };
        if let Err(error) = covers.read() {
            tracing::warn!(%error, "what is mounted below the mount point is not known");
        }
        covers
    }

    /// The paths of now.
    pub(crate) fn now(&mut self) -> &Paths {
        if self.changed()
            && let Err(error) = self.read()
        {
            tracing::warn!(%error, "what is mounted below the mount point is not known");
        }
        &self.paths
    }

    /// Whether mounts came or went since the table was last read (proc(5): that is an exceptional condition).
    fn changed(&self) -> bool {
        let Some(table) = &self.table else { return false };
        let mut wait = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        // When in doubt it is read again.
        poll(&mut wait, PollTimeout::ZERO).map_or(true, |ready| ready > 0)
    }

    fn read(&mut self) -> io::Result<()> {
        let Some(table) = &mut self.table else { return Ok(()) };
        let mut text = Vec::new();
        table.seek(SeekFrom::Start(0))?;
        table.read_to_end(&mut text)?;
        self.paths = Paths::of(&text, self.device);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_on_any_mount_of_the_device() {
        let table = b"1 0 8:1 / / rw - ext4 a rw\n\
                      2 1 0:31 / /m ro - fuse.ffs ffs ro\n\
                      3 2 0:40 / /m/d/secret rw - tmpfs t rw\n\
                      4 1 0:31 /d /elsewhere ro - fuse.ffs ffs ro\n\
                      5 4 0:41 / /elsewhere/x\\040y rw - tmpfs t rw\n\
                      6 3 0:42 / /m/d/secret/inner rw - tmpfs t rw\n\
                      7 1 0:43 / /other rw - tmpfs t rw\n";
        let paths = Paths::of(table, (0, 31));
        assert_eq!(paths.0.iter().map(|path| &path[..]).collect::<Vec<_>>(), [&b"d/secret"[..], b"d/x y"]);
        assert!(
            paths.is_at_or_below(b"d") && paths.is_at_or_below(b"d/secret") && paths.is_at_or_below(b"d/x y")
        );
        assert!(
            !paths.is_at_or_below(b"d/sec")
                && !paths.is_at_or_below(b"e")
                && !paths.is_at_or_below(b"d/secret/inner")
        );
    }
}
