//! A directory as a layer.
//!
//! The layer is a snapshot: names, attributes and the content of small files are read once, into
//! sealed memory, and large files are held open. Nothing that happens in the directory afterwards
//! gives a reader an error or a mixture: what was shown stays until the directory is read again. Only
//! a large file that is written in place shows its new bytes at once, since there is one copy of them.
//!
//! The tree is walked by descriptors ([`openat(2)`]), never through a symbolic link, so neither a
//! rename while it is read nor a path longer than the system's limit leads elsewhere.
//!
//! [`openat(2)`]: https://man7.org/linux/man-pages/man2/openat.2.html

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};

use super::{
    Content, Kind, Layer, LayerDir, LayerNode, Leaf, Meta, Name, Stamp, WhiteoutName, Xattrs, whiteout_name,
};
use crate::sealed::{Sealed, Writer};
use crate::sys::{self, XattrsOf};

/// Directories below one another, at most: each costs a descriptor while the tree is read.
const DEPTH: usize = 512;
/// The content of files up to this size is copied.
const SMALL: u64 = 64 << 10;
/// Of one layer, at most so much is copied.
const COPIED: u64 = 256 << 20;
/// Of one layer, at most so many files are held open, and at most this part of all descriptors.
const HELD: u64 = 4096;
const HELD_PART: u64 = 8;
/// A file that is written while it is copied is tried so often.
const TRIES: usize = 5;

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
    let mut scan = Scan {
        root: root.clone(),
        base: path.clone(),
        copied: Writer::new().map_err(error)?,
        may_hold: HELD.min(sys::raise_descriptor_limit() / HELD_PART),
        seen: HashSet::new(),
        buffer: vec![0; usize::try_from(SMALL + 1).unwrap_or_default()],
    };
    let fd = root.try_clone().map_err(error)?;
    let tree = scan.dir(fd, &mut PathBuf::new(), 0)?;
    let copied = Arc::new(scan.copied.seal().map_err(error)?);
    let tree = tree.finish(&copied, &mut HashMap::new());
    Ok(Layer {
        name: name.to_owned(),
        priority,
        origin: format!("dir:{}", path.display()),
        class: None,
        generation: None,
        root: tree,
    })
}

/// A directory as it was found: as [`LayerDir`], while the copies are not sealed yet.
struct FoundDir {
    meta: Meta,
    opaque: bool,
    xattrs: Xattrs,
    entries: Vec<(Name, Found)>,
}

enum Found {
    Dir(FoundDir),
    Leaf(FoundLeaf),
    Whiteout,
}

struct FoundLeaf {
    /// Device and inode number, to find other names of the same file.
    inode: (u64, u64),
    meta: Meta,
    xattrs: Xattrs,
    content: FoundContent,
}

enum FoundContent {
    /// Offset and length among the copies.
    Copied(u64, u64),
    /// Anything else.
    Else(Content),
}

impl FoundDir {
    fn finish(self, copied: &Arc<Sealed>, linked: &mut HashMap<(u64, u64), Arc<Leaf>>) -> Arc<LayerDir> {
        let mut entries = BTreeMap::new();
        for (name, found) in self.entries {
            let node = match found {
                Found::Dir(dir) => LayerNode::Dir(dir.finish(copied, linked)),
                Found::Leaf(leaf) => LayerNode::Leaf(leaf.finish(copied, linked)),
                // The layer has the name itself: that is stronger.
                Found::Whiteout if entries.contains_key(&name) => continue,
                Found::Whiteout => LayerNode::Whiteout,
            };
            entries.insert(name, node);
        }
        Arc::new(LayerDir { meta: self.meta, opaque: self.opaque, xattrs: self.xattrs, entries })
    }
}

impl FoundLeaf {
    fn finish(self, copied: &Arc<Sealed>, linked: &mut HashMap<(u64, u64), Arc<Leaf>>) -> Arc<Leaf> {
        let Self { inode, meta, xattrs, content } = self;
        if let Some(leaf) = linked.get(&inode) {
            return leaf.clone();
        }
        let content = match content {
            FoundContent::Copied(start, len) => {
                Content::Sealed { image: copied.clone(), ranges: Box::new([(start, len)]) }
            }
            FoundContent::Else(content) => content,
        };
        let leaf = Arc::new(Leaf { meta, xattrs, content });
        if meta.links > 1 {
            linked.insert(inode, leaf.clone());
        }
        leaf
    }
}

struct Scan {
    root: Arc<OwnedFd>,
    base: PathBuf,
    copied: Writer,
    /// How many more files may be held open.
    may_hold: u64,
    /// Files of several names that were taken in under one of them.
    seen: HashSet<(u64, u64)>,
    /// A small file while it is copied.
    buffer: Vec<u8>,
}

impl Scan {
    /// Reads the directory `fd`, which is at `below` in the layer.
    fn dir(&mut self, fd: OwnedFd, below: &mut PathBuf, depth: usize) -> Result<FoundDir, DirError> {
        let error = |path: PathBuf| move |source| DirError { path, source };
        let here = |below: &Path, base: &Path| base.join(below);
        if depth > DEPTH {
            let source = io::Error::other(format!("more than {DEPTH} directories below one another"));
            return Err(DirError { path: here(below, &self.base), source });
        }
        let stat = fstat(&fd).map_err(io::Error::from).map_err(error(here(below, &self.base)))?;
        let (xattrs, marks) = xattrs(XattrsOf::Fd(fd.as_fd()));
        let mut found =
            FoundDir { meta: attributes(&stat), opaque: marks.opaque, xattrs, entries: Vec::new() };
        let mut dir = Dir::from_fd(fd).map_err(io::Error::from).map_err(error(here(below, &self.base)))?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(io::Error::from).map_err(error(here(below, &self.base)))?;
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
        for (name, hint) in names {
            let bytes = name.to_bytes();
            match whiteout_name(bytes) {
                _ if bytes == b"." || bytes == b".." => {}
                WhiteoutName::Opaque => found.opaque = true,
                WhiteoutName::Ignored => {}
                // Last, so that a name that the layer itself has is stronger.
                WhiteoutName::Hides(hidden) => found.entries.push((hidden.into(), Found::Whiteout)),
                WhiteoutName::Plain => {
                    below.push(std::ffi::OsString::from_vec(bytes.to_vec()));
                    let node = self.node(&dir, &name, hint, below, depth);
                    let node = match node {
                        // Removed while the directory was read: not there.
                        Err(gone) if gone.source.kind() == io::ErrorKind::NotFound => Ok(None),
                        other => other.map(Some),
                    };
                    below.pop();
                    found.entries.extend(node?.map(|node| (bytes.into(), node)));
                }
            }
        }
        found.entries.sort_by_key(|(_, found)| matches!(found, Found::Whiteout));
        Ok(found)
    }

    fn node(
        &mut self,
        parent: &Dir,
        name: &CString,
        hint: Option<Type>,
        path: &mut PathBuf,
        depth: usize,
    ) -> Result<Found, DirError> {
        let base = self.base.clone();
        let error = |path: &Path, errno: Errno| DirError { path: base.join(path), source: errno.into() };
        // A file is opened before it is looked at: one name, one object.
        if hint == Some(Type::File) {
            match openat(parent, name.as_c_str(), OPEN, Mode::empty()) {
                Ok(file) => {
                    return self
                        .file(file.into(), path)
                        .map_err(|source| DirError { path: base.join(&*path), source });
                }
                // Not for us to read, or no file any more: looked at from outside.
                Err(Errno::EACCES | Errno::EPERM | Errno::ELOOP | Errno::ENXIO | Errno::EMFILE) => {}
                Err(errno) => return Err(error(path, errno)),
            }
        }
        let stat = fstatat(parent, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(|errno| error(path, errno))?;
        let meta = attributes(&stat);
        let content = match meta.kind {
            Kind::Dir => {
                let flags = OPEN | OFlag::O_DIRECTORY;
                let fd = openat(parent, name.as_c_str(), flags, Mode::empty())
                    .map_err(|errno| error(path, errno))?;
                return Ok(Found::Dir(self.dir(fd, path, depth + 1)?));
            }
            Kind::CharDevice if stat.st_rdev == 0 => return Ok(Found::Whiteout),
            Kind::File if hint != Some(Type::File) => {
                // A file system that does not say what a name is.
                match openat(parent, name.as_c_str(), OPEN, Mode::empty()) {
                    Ok(file) => {
                        return self
                            .file(file.into(), path)
                            .map_err(|source| DirError { path: base.join(&*path), source });
                    }
                    Err(_) => self.by_path(path, &stat),
                }
            }
            Kind::File => self.by_path(path, &stat),
            Kind::Symlink => {
                let target = readlinkat(parent, name.as_c_str()).map_err(|errno| error(path, errno))?;
                Content::Target(target.into_vec().into())
            }
            _ => Content::Empty,
        };
        let (xattrs, marks) = xattrs(XattrsOf::Path(&in_dir(parent, name)));
        if marks.whiteout && meta.kind == Kind::File && meta.size == 0 {
            return Ok(Found::Whiteout);
        }
        Ok(Found::Leaf(FoundLeaf {
            inode: (stat.st_dev, stat.st_ino),
            meta,
            xattrs,
            content: FoundContent::Else(content),
        }))
    }

    fn by_path(&self, path: &Path, stat: &FileStat) -> Content {
        Content::Path { root: self.root.clone(), path: path.to_owned(), stamp: stamp(stat) }
    }

    /// Takes in an open regular file.
    fn file(&mut self, file: File, path: &Path) -> io::Result<Found> {
        let mut stat = fstat(&file)?;
        let (xattrs, marks) = xattrs(XattrsOf::Fd(file.as_fd()));
        if marks.whiteout && stat.st_size == 0 {
            return Ok(Found::Whiteout);
        }
        // The first name has the content, and is finished first too.
        let again = stat.st_nlink > 1 && !self.seen.insert((stat.st_dev, stat.st_ino));
        let mut content = again.then_some(FoundContent::Else(Content::Empty));
        for _ in 0..if again { 0 } else { TRIES } {
            let size = stat.st_size.unsigned_abs();
            if size > SMALL || self.copied.len() + size > COPIED {
                break;
            }
            // One byte more than there should be: a read that stops before it has met the end.
            let room = usize::try_from(size + 1).unwrap_or_default();
            // Who reads it is told why it cannot be read; the layer is not to fail for one file.
            let Ok(read) = file.read_at(&mut self.buffer[..room], 0) else { break };
            let after = fstat(&file)?;
            if stamp(&after) == stamp(&stat) && read as u64 == size {
                content = Some(FoundContent::Copied(self.copied.append(&self.buffer[..read])?, size));
                break;
            }
            stat = after;
        }
        let content = content.unwrap_or_else(|| {
            FoundContent::Else(if self.may_hold > 0 {
                self.may_hold -= 1;
                Content::Held { file, stamp: stamp(&stat), in_memory: OnceLock::new() }
            } else {
                self.by_path(path, &stat)
            })
        });
        Ok(Found::Leaf(FoundLeaf {
            inode: (stat.st_dev, stat.st_ino),
            meta: attributes(&stat),
            xattrs,
            content,
        }))
    }
}

/// How anything in a layer is opened: never a link, never a wait for the other end of a pipe.
const OPEN: OFlag = OFlag::O_RDONLY
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
fn in_dir(parent: &Dir, name: &CStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.to_bytes());
    // A name from the kernel has no NUL in it.
    CString::new(path).unwrap_or_default()
}

/// What overlayfs's attributes say.
#[derive(Default)]
struct Marks {
    opaque: bool,
    whiteout: bool,
}

fn xattrs(of: XattrsOf<'_>) -> (Xattrs, Marks) {
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

fn stamp(stat: &FileStat) -> Stamp {
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

fn attributes(stat: &FileStat) -> Meta {
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
