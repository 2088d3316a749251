//! The mount table, `/proc/PID/mountinfo` (proc(5)). Pure: from its bytes to mounts.
//!
//! Paths are bytes. The kernel escapes only space, tab, newline, backslash and `#`, in octal; all other bytes stand as they
//! are, so the table as a whole need not be UTF-8.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use nix::mount::MsFlags;

/// `MS_NOSYMFOLLOW` (linux/mount.h), which nix does not have.
pub const NOSYMFOLLOW: MsFlags = MsFlags::from_bits_retain(256);

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number of the mount, which is unique while it exists.
    pub id: u64,
    /// The number of the mount that it is mounted on.
    pub parent: u64,
    /// Major and minor number of the file system's device.
    pub device: (u64, u64),
    /// What of the file system is mounted: a path in it.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type of the file system, with its subtype.
    pub kind: Vec<u8>,
    /// The flags of this mount; the file system has others, which hold for all of its mounts.
    pub flags: MsFlags,
}

impl Entry {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = number(fields.next()?)?;
        let (parent, device, root) = (number(fields.next()?)?, fields.next()?, fields.next()?);
        let colon = device.iter().position(|byte| *byte == b':')?;
        let device = (number(&device[..colon])?, number(&device[colon + 1..])?);
        let path = |field| PathBuf::from(OsString::from_vec(unescape(field)));
        let (root, point) = (path(root), path(fields.next()?));
        let flags = flags(fields.next()?);
        // Optional fields end with a hyphen.
        fields.find(|field| *field == b"-")?;
        Some(Self { id, parent, device, root, point, kind: unescape(fields.next()?), flags })
    }

    /// Whether nobody can write through this mount.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MsFlags::MS_RDONLY)
    }
}

/// The mounts of a table, in its order: what is mounted over something comes after it. Lines that are not understood are
/// skipped.
pub fn parse(table: &[u8]) -> impl Iterator<Item = Entry> {
    table.split(|byte| *byte == b'\n').filter_map(Entry::parse)
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn flags(options: &[u8]) -> MsFlags {
    let mut flags = MsFlags::empty();
    for option in options.split(|byte| *byte == b',') {
        flags |= match option {
            b"ro" => MsFlags::MS_RDONLY,
            b"nosuid" => MsFlags::MS_NOSUID,
            b"nodev" => MsFlags::MS_NODEV,
            b"noexec" => MsFlags::MS_NOEXEC,
            b"noatime" => MsFlags::MS_NOATIME,
            b"nodiratime" => MsFlags::MS_NODIRATIME,
            b"relatime" => MsFlags::MS_RELATIME,
            b"nosymfollow" => NOSYMFOLLOW,
            _ => MsFlags::empty(),
        };
    }
    flags
}

/// Undoes the kernel's escapes: a backslash and three octal digits stand for a byte.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        if let (b'\\', &[a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ref after @ ..]) = (byte, after) {
            bytes.push(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'));
            rest = after;
        } else {
            bytes.push(byte);
            rest = after;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_table_is_read_as_bytes() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
            42 22 0:39 / /x/a\\040b\xff ro,nosuid,nodev,noexec,noatime,nosymfollow - fuse.ffs ffs rw,user_id=0\n\
            not a line\n\
            43 22 0:40 /sub /z rw shared:2 master:1 - tmpfs none rw";
        let entries: Vec<Entry> = parse(table).collect();
        assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), [22, 42, 43]);
        let ours = &entries[1];
        assert_eq!((ours.device, &*ours.kind), ((0, 39), &b"fuse.ffs"[..]));
        assert_eq!(ours.point.as_os_str().as_bytes(), b"/x/a b\xff");
        assert_eq!(ours.flags.bits(), 1 | 2 | 4 | 8 | 1024 | 256);
        assert_eq!(entries.iter().map(Entry::is_read_only).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!((entries[2].device, &*entries[2].kind), ((0, 40), &b"tmpfs"[..]));
    }

    #[test]
    fn only_whole_escapes_are_undone() {
        for (field, bytes) in [
            (&b"/a\\011\\012\\134\\043"[..], &b"/a\t\n\\#"[..]),
            (b"\\377", b"\xff"),
            (b"\\400", b"\\400"),
            (b"\\04", b"\\04"),
            (b"a\\", b"a\\"),
            (b"", b""),
        ] {
            assert_eq!(unescape(field), bytes);
        }
    }
}
