//! A directory as a layer.
//!
//! The layer is a snapshot: names, attributes and the content of small files are read once, into
//! sealed memory, and large files are held open. Nothing that happens in the directory afterwards
//! gives a reader an error or a mixture: what was shown stays until the directory is read again. Only
//! a large file that is written in place shows its new bytes at once, since there is one copy of them.
//!
//! `scan` reads its tree; here is what one name of it is.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;
use nix::sys::stat::{FileStat, SFlag, fstat};

use super::{Kind, Layer, Meta, Stamp, Xattrs, scan};
use crate::config::Source;
use crate::sys::{self, XattrsOf};

/// Why a directory cannot be a layer.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{}` of a directory layer: {source}", path.display())]
pub struct DirError {
    /// What could not be read.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Makes a layer of a directory.
///
/// # Errors
/// [`DirError`] with the first path that cannot be read.
pub fn layer(path: &Path, name: &str, priority: u16) -> Result<Layer, DirError> {
    layer_telling(path, name, priority, &|_| ())
}

/// Makes a layer of a directory. `each` is called with its path and that of each directory in it, without links, before
/// that is listed.
///
/// # Errors
/// [`DirError`] with the first path that cannot be read.
pub fn layer_telling(
    path: &Path,
    name: &str,
    priority: u16,
    each: &(dyn Fn(&Path) + Sync),
) -> Result<Layer, DirError> {
    let error = |source| DirError { path: path.to_owned(), source };
    let path = path.canonicalize().map_err(error)?;
    let root = File::open(&path).map_err(error)?;
    if !root.metadata().map_err(error)?.is_dir() {
        return Err(error(io::ErrorKind::NotADirectory.into()));
    }
    let tree = scan::tree(&Arc::new(root.into()), &path, each)?;
    Ok(Layer {
        name: name.to_owned(),
        priority,
        origin: Source::Dir(path).to_string(),
        class: None,
        generation: None,
        vouched: None,
        root: tree,
    })
}

/// How anything in a layer is opened: never a link, never a wait for the other end of a pipe.
pub(super) const OPEN: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY);

/// Opens a file of a directory layer; returns whether it is still the file that the layer was made
/// of.
///
/// # Errors
/// What openat2(2) and fstat(2) return; `ELOOP` when a link is in the way.
pub fn open(root: &impl AsFd, path: &Path, expected: &Stamp) -> io::Result<(File, bool)> {
    let how =
        OpenHow::new().flags(OPEN).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file = File::from(openat2(root, path, how)?);
    let same = stamp(&fstat(&file)?) == *expected;
    Ok((file, same))
}

/// Reads from a place in a file until the buffer is full or the file ends.
///
/// # Errors
/// What pread(2) returns.
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// A path to a name in an open directory that works at any depth: the calls for extended attributes
/// that take a directory's descriptor came with Linux 6.13.
pub(super) fn in_dir(parent: BorrowedFd<'_>, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    // A name from the kernel has no NUL in it.
    CString::new(path).unwrap_or_default()
}

/// What overlayfs's attributes say.
#[derive(Default)]
pub(super) struct Marks {
    pub(super) opaque: bool,
    pub(super) whiteout: bool,
}

pub(super) fn xattrs(of: XattrsOf<'_>) -> (Xattrs, Marks) {
    let mut marks = Marks::default();
    let mut kept = Vec::new();
    for (name, value) in sys::xattrs(of) {
        match name.strip_prefix(b"trusted.overlay.").or_else(|| name.strip_prefix(b"user.overlay.")) {
            Some(b"opaque") => marks.opaque |= value == b"y",
            Some(b"whiteout") => marks.whiteout = true,
            Some(_) => {}
            None => kept.push((name.into(), value.into())),
        }
    }
    (kept.into(), marks)
}

pub(super) fn stamp(stat: &FileStat) -> Stamp {
    Stamp {
        inode: (stat.st_dev, stat.st_ino),
        size: stat.st_size.unsigned_abs(),
        ctime: (stat.st_ctime, stat.st_ctime_nsec),
    }
}

fn time(seconds: i64, nanos: i64) -> SystemTime {
    let nanos = Duration::from_nanos(nanos.unsigned_abs());
    let since = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(since).and_then(|time| time.checked_add(nanos))
    } else {
        SystemTime::UNIX_EPOCH.checked_add(since + nanos)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

pub(super) fn attributes(stat: &FileStat) -> Meta {
    let kind = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFDIR => Kind::Dir,
        SFlag::S_IFLNK => Kind::Symlink,
        SFlag::S_IFCHR => Kind::CharDevice,
        SFlag::S_IFBLK => Kind::BlockDevice,
        SFlag::S_IFIFO => Kind::Fifo,
        SFlag::S_IFSOCK => Kind::Socket,
        _ => Kind::File,
    };
    let sized = matches!(kind, Kind::File | Kind::Symlink);
    Meta {
        kind,
        // 0o7777 fits.
        perm: (stat.st_mode & 0o7777) as u16,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if sized { stat.st_size.unsigned_abs() } else { 0 },
        blocks: if sized { stat.st_blocks.unsigned_abs() } else { 0 },
        // A count beyond 2^32 does not exist in any Linux file system.
        links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX),
        mtime: time(stat.st_mtime, stat.st_mtime_nsec),
        ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        // Linux device numbers have a 12-bit major and a 20-bit minor part.
        device: (libc::major(stat.st_rdev), libc::minor(stat.st_rdev)),
    }
}
