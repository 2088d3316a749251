//! A directory as a layer.
//!
//! Names and attributes are read once; content stays in the files and is opened beneath the layer's
//! directory, never through a symbolic link. A file that was replaced since the layer was read is
//! noticed when it is opened ([`Stamp`]), read around the caches, and the layer is read again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta, Stamp, WhiteoutName, whiteout_name};
use crate::sys;

/// Directories below one another, at most.
const DEPTH: usize = 128;

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
    let error = |source| DirError { path: path.to_owned(), source };
    let path = path.canonicalize().map_err(error)?;
    let root = File::open(&path).map_err(error)?;
    if !root.metadata().map_err(error)?.is_dir() {
        return Err(error(io::ErrorKind::NotADirectory.into()));
    }
    let root: Arc<OwnedFd> = Arc::new(root.into());
    let tree = scan(&root, &path, Path::new(""), 0)?;
    Ok(Layer {
        name: name.to_owned(),
        priority,
        origin: format!("dir:{}", path.display()),
        generation: None,
        root: tree,
    })
}

fn scan(root: &Arc<OwnedFd>, base: &Path, below: &Path, depth: usize) -> Result<Arc<LayerDir>, DirError> {
    let here = base.join(below);
    let error = |source| DirError { path: here.clone(), source };
    if depth > DEPTH {
        return Err(error(io::Error::other(format!("more than {DEPTH} directories below one another"))));
    }
    let meta = here.symlink_metadata().map_err(error)?;
    let opaque = [c"trusted.overlay.opaque", c"user.overlay.opaque"]
        .iter()
        .any(|name| sys::xattr(&here, name).is_some_and(|value| value == b"y"));
    let mut dir = LayerDir { meta: attributes(&meta), opaque, entries: BTreeMap::new() };
    for entry in here.read_dir().map_err(error)? {
        let entry = entry.map_err(error)?;
        let name = entry.file_name();
        let path = below.join(&name);
        // DirEntry::metadata does not follow links.
        let meta = match entry.metadata() {
            // Removed while the directory was read: not there.
            Err(gone) if gone.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|source| DirError { path: base.join(&path), source })?,
        };
        match whiteout_name(name.as_bytes()) {
            WhiteoutName::Opaque => dir.opaque = true,
            WhiteoutName::Ignored => {}
            WhiteoutName::Hides(hidden) => {
                dir.entries.entry(hidden.into()).or_insert(LayerNode::Whiteout);
            }
            WhiteoutName::Plain => {
                let node = node(root, base, path, &meta, depth)?;
                dir.entries.insert(name.into_vec().into(), node);
            }
        }
    }
    Ok(Arc::new(dir))
}

fn node(
    root: &Arc<OwnedFd>,
    base: &Path,
    path: PathBuf,
    meta: &std::fs::Metadata,
    depth: usize,
) -> Result<LayerNode, DirError> {
    let attributes = attributes(meta);
    let content = match attributes.kind {
        Kind::Dir => return Ok(LayerNode::Dir(scan(root, base, &path, depth + 1)?)),
        Kind::CharDevice if meta.rdev() == 0 => return Ok(LayerNode::Whiteout),
        Kind::File => {
            let full = base.join(&path);
            let whiteout = |name| attributes.size == 0 && sys::xattr(&full, name).is_some();
            if whiteout(c"user.overlay.whiteout") || whiteout(c"trusted.overlay.whiteout") {
                return Ok(LayerNode::Whiteout);
            }
            Content::Path { root: root.clone(), path, stamp: stamp(meta) }
        }
        Kind::Symlink => {
            let full = base.join(&path);
            let target = std::fs::read_link(&full).map_err(|source| DirError { path: full, source })?;
            Content::Target(target.into_os_string().into_vec().into())
        }
        _ => Content::Empty,
    };
    Ok(LayerNode::Leaf(Arc::new(Leaf { meta: attributes, content })))
}

/// Opens a file of a directory layer; returns whether it is still the file that the layer was made
/// of.
///
/// # Errors
/// What openat2(2) and fstat(2) return; `ELOOP` when a link is in the way.
pub fn open(root: &impl AsFd, path: &Path, expected: &Stamp) -> io::Result<(File, bool)> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let how =
        OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file = File::from(openat2(root, path, how)?);
    let same = stamp(&file.metadata()?) == *expected;
    Ok((file, same))
}

fn stamp(meta: &std::fs::Metadata) -> Stamp {
    Stamp { inode: (meta.dev(), meta.ino()), size: meta.size(), ctime: (meta.ctime(), meta.ctime_nsec()) }
}

fn attributes(meta: &std::fs::Metadata) -> Meta {
    let kind = meta.file_type();
    let kind = if kind.is_dir() {
        Kind::Dir
    } else if kind.is_symlink() {
        Kind::Symlink
    } else if kind.is_char_device() {
        Kind::CharDevice
    } else if kind.is_block_device() {
        Kind::BlockDevice
    } else if kind.is_fifo() {
        Kind::Fifo
    } else if kind.is_socket() {
        Kind::Socket
    } else {
        Kind::File
    };
    let since = Duration::from_secs(meta.mtime().unsigned_abs());
    let mtime = if meta.mtime() < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(since)
    } else {
        let nanos = Duration::from_nanos(meta.mtime_nsec().unsigned_abs());
        SystemTime::UNIX_EPOCH.checked_add(since + nanos)
    };
    let device = meta.rdev();
    Meta {
        kind,
        // 0o7777 fits.
        perm: (meta.mode() & 0o7777) as u16,
        uid: meta.uid(),
        gid: meta.gid(),
        size: if kind == Kind::File || kind == Kind::Symlink { meta.size() } else { 0 },
        mtime: mtime.unwrap_or(SystemTime::UNIX_EPOCH),
        // Linux device numbers have a 12-bit major and a 20-bit minor part.
        device: (nix::libc::major(device), nix::libc::minor(device)),
    }
}
