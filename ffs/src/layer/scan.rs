//! Reading the tree of a directory layer.
//!
//! It is walked by descriptors ([`openat(2)`]), never through a symbolic link, so neither a
//! rename while it is read nor a path longer than the system's limit leads elsewhere.
//!
//! A tree of more than some hundred names is read by several threads: nearly all of the time goes to the
//! system calls of each file (open, stat, list attributes, read, stat, close; 4 to 7 µs together here). A
//! thread reads alone at first, and calls for others where it is then; so it costs little trees nothing,
//! and it does not matter whether large ones are wide or deep.
//!
//! [`openat(2)`]: https://man7.org/linux/man-pages/man2/openat.2.html

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};

use super::dir::{DirError, OPEN, attributes, in_dir, stamp, xattrs};
use super::{Content, Kind, LayerDir, LayerNode, Leaf, Meta, Name, WhiteoutName, Xattrs, whiteout_name};
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
/// Names that one thread reads before it calls for others: starting one takes as long as reading ten.
const ALONE: usize = 256;
/// Names of one directory that a thread takes at a time.
const PIECE: usize = 16;
/// Threads that read one layer, at most.
const THREADS: usize = 8;
/// The stack of each: [`DEPTH`] calls fit, as they do on that of a process.
const STACK: usize = 8 << 20;

/// Reads the tree below `root`, which is at `base`; `each` is called with each directory's path before it is listed.
///
/// # Errors
/// [`DirError`] with a path that cannot be read.
pub(super) fn tree(
    root: &Arc<OwnedFd>,
    base: &Path,
    each: &(dyn Fn(&Path) + Sync),
) -> Result<Arc<LayerDir>, DirError> {
    let error = |source| DirError { path: base.to_owned(), source };
    let scan = Scan {
        root: root.clone(),
        base,
        each,
        copied: Mutex::default(),
        may_hold: AtomicU64::new(HELD.min(sys::raise_descriptor_limit() / HELD_PART)),
        linked: Mutex::default(),
        names: AtomicUsize::new(0),
    };
    let fd = root.try_clone().map_err(error)?;
    let tree = Walker::new(&scan, true).dir(fd, &mut PathBuf::new(), 0)?;
    let copied = scan.copied.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut finish = Finish {
        copied: Arc::new(copied.seal().map_err(error)?),
        linked: scan.linked.into_inner().unwrap_or_else(PoisonError::into_inner),
        done: HashMap::new(),
    };
    Ok(finish.dir(tree))
}

/// A directory as it was found: as [`LayerDir`], while the copies are not sealed yet.
struct FoundDir {
    meta: Meta,
    opaque: bool,
    xattrs: Xattrs,
    /// Whiteouts first.
    entries: Vec<(Name, Found)>,
}

enum Found {
    Dir(FoundDir),
    Leaf(FoundLeaf),
    /// A file of several names, by device and inode number.
    Linked(Inode),
    Whiteout,
}

/// Device and inode number.
type Inode = (u64, u64);

struct FoundLeaf {
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

/// Makes a layer of what was found, once the copies are sealed.
struct Finish {
    copied: Arc<Sealed>,
    /// Files of several names that no name has asked for yet.
    linked: HashMap<Inode, Option<FoundLeaf>>,
    done: HashMap<Inode, Arc<Leaf>>,
}

impl Finish {
    fn dir(&mut self, found: FoundDir) -> Arc<LayerDir> {
        let node = |(name, found)| {
            let node = match found {
                Found::Dir(dir) => LayerNode::Dir(self.dir(dir)),
                Found::Leaf(leaf) => LayerNode::Leaf(self.leaf(leaf)),
                Found::Linked(inode) => LayerNode::Leaf(self.linked(inode)?),
                Found::Whiteout => LayerNode::Whiteout,
            };
            Some((name, node))
        };
        // All at once, which fills the map's nodes. Of two entries of a name it takes the last.
        let entries: BTreeMap<_, _> = found.entries.into_iter().filter_map(node).collect();
        Arc::new(LayerDir { meta: found.meta, opaque: found.opaque, xattrs: found.xattrs, entries })
    }

    fn leaf(&self, found: FoundLeaf) -> Arc<Leaf> {
        let content = match found.content {
            FoundContent::Copied(start, len) => {
                Content::Sealed { image: self.copied.clone(), ranges: Box::new([(start, len)]) }
            }
            FoundContent::Else(content) => content,
        };
        Arc::new(Leaf { meta: found.meta, xattrs: found.xattrs, content })
    }

    /// All names of a file have the same leaf.
    fn linked(&mut self, inode: Inode) -> Option<Arc<Leaf>> {
        if let Some(found) = self.linked.remove(&inode).flatten() {
            let leaf = self.leaf(found);
            self.done.insert(inode, leaf);
        }
        self.done.get(&inode).cloned()
    }
}

/// What the threads that read a layer share.
struct Scan<'a> {
    root: Arc<OwnedFd>,
    base: &'a Path,
    each: &'a (dyn Fn(&Path) + Sync),
    copied: Mutex<Writer>,
    /// How many more files may be held open.
    may_hold: AtomicU64,
    /// Files of several names: taken in under the name that comes first.
    linked: Mutex<HashMap<Inode, Option<FoundLeaf>>>,
    /// Names so far.
    names: AtomicUsize,
}

/// One of these threads.
struct Walker<'a> {
    scan: &'a Scan<'a>,
    /// A small file while it is copied.
    buffer: Vec<u8>,
    /// Others may be called for.
    alone: bool,
}

impl Scan<'_> {
    fn copied(&self) -> MutexGuard<'_, Writer> {
        self.copied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn linked(&self) -> MutexGuard<'_, HashMap<Inode, Option<FoundLeaf>>> {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more file may be held open; it counts from now on.
    fn hold(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        self.may_hold.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    fn error(&self, path: &Path, source: impl Into<io::Error>) -> DirError {
        DirError { path: self.path(path), source: source.into() }
    }

    /// The path of something below the top.
    fn path(&self, below: &Path) -> PathBuf {
        // Nothing joined to a path would leave a slash at its end.
        if below.as_os_str().is_empty() { self.base.to_owned() } else { self.base.join(below) }
    }

    fn by_path(&self, path: &Path, stat: &FileStat) -> Content {
        Content::Path { root: self.root.clone(), path: path.to_owned(), stamp: stamp(stat) }
    }
}

/// A name in a directory, and what the file system says that it is.
type Listed = (CString, Option<Type>);

impl<'a> Walker<'a> {
    fn new(scan: &'a Scan<'a>, alone: bool) -> Self {
        Self { scan, buffer: vec![0; usize::try_from(SMALL + 1).unwrap_or_default()], alone }
    }

    /// Reads the directory `fd`, which is at `below` in the layer.
    fn dir(&mut self, fd: OwnedFd, below: &mut PathBuf, depth: usize) -> Result<FoundDir, DirError> {
        if depth > DEPTH {
            let source = io::Error::other(format!("more than {DEPTH} directories below one another"));
            return Err(self.scan.error(below, source));
        }
        (self.scan.each)(&self.scan.path(below));
        let error = |errno: Errno| self.scan.error(below, errno);
        let stat = fstat(&fd).map_err(error)?;
        let (xattrs, marks) = xattrs(XattrsOf::Fd(fd.as_fd()));
        let mut found =
            FoundDir { meta: attributes(&stat), opaque: marks.opaque, xattrs, entries: Vec::new() };
        let mut dir = Dir::from_fd(fd).map_err(error)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(error)?;
            let name = entry.file_name();
            match whiteout_name(name.to_bytes()) {
                _ if name == c"." || name == c".." => {}
                WhiteoutName::Opaque => found.opaque = true,
                WhiteoutName::Ignored => {}
                WhiteoutName::Hides(hidden) => found.entries.push((hidden.into(), Found::Whiteout)),
                WhiteoutName::Plain => names.push((name.to_owned(), entry.file_type())),
            }
        }
        let mut left = names.as_slice();
        while let Some((name, rest)) = left.split_first() {
            let before = self.scan.names.fetch_add(1, Ordering::Relaxed);
            if self.alone && before >= ALONE && left.len() > PIECE {
                found.entries.extend(self.together(dir.as_fd(), left, below, depth)?);
                break;
            }
            found.entries.extend(self.entry(dir.as_fd(), name, below, depth)?);
            left = rest;
        }
        // First, so that a name that the layer itself has is stronger.
        found.entries.sort_by_key(|(_, found)| !matches!(found, Found::Whiteout));
        Ok(found)
    }

    /// Reads names of a directory beside other threads.
    fn together(
        &mut self,
        parent: BorrowedFd<'_>,
        names: &[Listed],
        below: &Path,
        depth: usize,
    ) -> Result<Vec<(Name, Found)>, DirError> {
        let next = AtomicUsize::new(0);
        let read = |walker: &mut Walker<'_>| {
            let (mut at, mut found) = (below.to_owned(), Vec::new());
            loop {
                let from = next.fetch_add(PIECE, Ordering::Relaxed);
                let Some(left) = names.get(from..).filter(|left| !left.is_empty()) else {
                    return Ok(found);
                };
                for name in &left[..PIECE.min(left.len())] {
                    found.extend(walker.entry(parent, name, &mut at, depth)?);
                }
            }
        };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let others = processors.min(THREADS).min(names.len().div_ceil(PIECE)) - 1;
        let scan = self.scan;
        std::thread::scope(|scope| {
            let start = |_| {
                let thread = std::thread::Builder::new().name("scan".to_owned()).stack_size(STACK);
                // Without it the others read what it would have.
                thread.spawn_scoped(scope, || read(&mut Walker::new(scan, false))).ok()
            };
            let others: Vec<_> = (0..others).filter_map(start).collect();
            self.alone = false;
            let mine = read(self);
            self.alone = true;
            let mut all = mine?;
            for other in others {
                let panicked = |_| scan.error(below, io::Error::other("a thread that reads it panicked"));
                all.extend(other.join().map_err(panicked)??);
            }
            Ok(all)
        })
    }

    /// Reads a name of a directory; nothing when it is gone.
    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        (name, hint): &Listed,
        below: &mut PathBuf,
        depth: usize,
    ) -> Result<Option<(Name, Found)>, DirError> {
        below.push(OsStr::from_bytes(name.to_bytes()));
        let node = self.node(parent, name, *hint, below, depth);
        below.pop();
        match node {
            Ok(found) => Ok(Some((name.to_bytes().into(), found))),
            // Removed while the directory was read: not there.
            Err(gone) if gone.source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CStr,
        hint: Option<Type>,
        path: &mut PathBuf,
        depth: usize,
    ) -> Result<Found, DirError> {
        let scan = self.scan;
        // A file is opened before it is looked at: one name, one object.
        if hint == Some(Type::File) {
            match openat(parent, name, OPEN, Mode::empty()) {
                Ok(file) => return self.file(file.into(), path).map_err(|source| scan.error(path, source)),
                // Not for us to read, or no file any more: looked at from outside.
                Err(Errno::EACCES | Errno::EPERM | Errno::ELOOP | Errno::ENXIO | Errno::EMFILE) => {}
                Err(errno) => return Err(scan.error(path, errno)),
            }
        }
        let stat =
            fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|errno| scan.error(path, errno))?;
        let meta = attributes(&stat);
        let content = match meta.kind {
            Kind::Dir => {
                let flags = OPEN | OFlag::O_DIRECTORY;
                let fd =
                    openat(parent, name, flags, Mode::empty()).map_err(|errno| scan.error(path, errno))?;
                return Ok(Found::Dir(self.dir(fd, path, depth + 1)?));
            }
            Kind::CharDevice if stat.st_rdev == 0 => return Ok(Found::Whiteout),
            Kind::File if hint != Some(Type::File) => {
                // A file system that does not say what a name is.
                match openat(parent, name, OPEN, Mode::empty()) {
                    Ok(file) => {
                        return self.file(file.into(), path).map_err(|source| scan.error(path, source));
                    }
                    Err(_) => scan.by_path(path, &stat),
                }
            }
            Kind::File => scan.by_path(path, &stat),
            Kind::Symlink => {
                let target = readlinkat(parent, name).map_err(|errno| scan.error(path, errno))?;
                Content::Target(target.into_vec().into())
            }
            _ => Content::Empty,
        };
        let (xattrs, marks) = xattrs(XattrsOf::Path(&in_dir(parent, name)));
        if marks.whiteout && meta.kind == Kind::File && meta.size == 0 {
            return Ok(Found::Whiteout);
        }
        let leaf = FoundLeaf { meta, xattrs, content: FoundContent::Else(content) };
        if meta.links <= 1 {
            return Ok(Found::Leaf(leaf));
        }
        let inode = (stat.st_dev, stat.st_ino);
        scan.linked().entry(inode).or_insert(Some(leaf));
        Ok(Found::Linked(inode))
    }

    /// Takes in an open regular file.
    fn file(&mut self, file: File, path: &Path) -> io::Result<Found> {
        let mut stat = fstat(&file)?;
        let (xattrs, marks) = xattrs(XattrsOf::Fd(file.as_fd()));
        if marks.whiteout && stat.st_size == 0 {
            return Ok(Found::Whiteout);
        }
        let inode = (stat.st_dev, stat.st_ino);
        let several = stat.st_nlink > 1;
        if several {
            match self.scan.linked().entry(inode) {
                Entry::Occupied(_) => return Ok(Found::Linked(inode)),
                // Ours to read.
                Entry::Vacant(entry) => drop(entry.insert(None)),
            }
        }
        let mut content = None;
        for _ in 0..TRIES {
            let size = stat.st_size.unsigned_abs();
            if size > SMALL || self.scan.copied().len() + size > COPIED {
                break;
            }
            // One byte more than there should be: a read that stops before it has met the end.
            let room = usize::try_from(size + 1).unwrap_or_default();
            // Who reads it is told why it cannot be read; the layer is not to fail for one file.
            let Ok(read) = file.read_at(&mut self.buffer[..room], 0) else { break };
            let after = fstat(&file)?;
            if stamp(&after) == stamp(&stat) && read as u64 == size {
                let at = self.scan.copied().append(&self.buffer[..read])?;
                content = Some(FoundContent::Copied(at, size));
                break;
            }
            stat = after;
        }
        let content = content.unwrap_or_else(|| {
            FoundContent::Else(if self.scan.hold() {
                Content::Held { file, stamp: stamp(&stat), in_memory: OnceLock::new() }
            } else {
                self.scan.by_path(path, &stat)
            })
        });
        let leaf = FoundLeaf { meta: attributes(&stat), xattrs, content };
        if several {
            self.scan.linked().insert(inode, Some(leaf));
            return Ok(Found::Linked(inode));
        }
        Ok(Found::Leaf(leaf))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// What a tree shows, in the order of its paths; the number of a file is that of its leaf.
    fn shown(dir: &LayerDir, at: &str, all: &mut Vec<(String, Vec<u8>, usize)>) {
        for (name, node) in &dir.entries {
            let path = format!("{at}/{}", String::from_utf8_lossy(name));
            match node {
                LayerNode::Dir(dir) => shown(dir, &path, all),
                LayerNode::Leaf(leaf) => {
                    let content = match &leaf.content {
                        Content::Sealed { image, ranges } => {
                            image.chunks(ranges).collect::<Vec<_>>().concat()
                        }
                        other => format!("{other:?}").into_bytes(),
                    };
                    all.push((path, content, Arc::as_ptr(leaf) as usize));
                }
                LayerNode::Whiteout => all.push((path, b"hidden".to_vec(), 0)),
            }
        }
    }

    #[test]
    fn many_threads_read_what_one_would() {
        let dir = tempfile::tempdir().unwrap();
        let mut wanted = Vec::new();
        let file = |path: &str, wanted: &mut Vec<(String, Vec<u8>)>| {
            std::fs::write(dir.path().join(path), path).unwrap();
            wanted.push((format!("/{path}"), path.into()));
        };
        // Wide, deep, and names of the same files on both sides.
        for n in 0..2 * ALONE {
            file(&format!("wide{n:04}"), &mut wanted);
            if n % 8 == 0 {
                let (sub, link) = (format!("sub{n:04}"), format!("sub{n:04}/linked"));
                std::fs::create_dir(dir.path().join(&sub)).unwrap();
                std::fs::hard_link(dir.path().join(format!("wide{n:04}")), dir.path().join(&link)).unwrap();
                wanted.push((format!("/{link}"), format!("wide{n:04}").into()));
                for m in 0..2 * PIECE {
                    file(&format!("{sub}/{m:04}"), &mut wanted);
                }
                std::fs::write(dir.path().join(&sub).join(".wh.0000"), "").unwrap();
                std::fs::write(dir.path().join(&sub).join(".wh.gone"), "").unwrap();
                wanted.push((format!("/{sub}/gone"), b"hidden".to_vec()));
            }
        }
        wanted.sort();
        let root = Arc::new(OwnedFd::from(File::open(dir.path()).unwrap()));
        let mut all = Vec::new();
        let told = Mutex::new(Vec::new());
        let each = |path: &Path| told.lock().unwrap().push(path.to_owned());
        shown(&tree(&root, dir.path(), &each).unwrap(), "", &mut all);
        let plain: Vec<_> = all.iter().map(|(path, content, _)| (path.clone(), content.clone())).collect();
        assert_eq!(plain, wanted);
        // Each directory was told of once, the top first.
        let mut told = told.into_inner().unwrap();
        assert_eq!(told[0], dir.path());
        told.sort();
        let subs = (0..2 * ALONE).step_by(8).map(|n| dir.path().join(format!("sub{n:04}")));
        assert_eq!(told, std::iter::once(dir.path().to_owned()).chain(subs).collect::<Vec<_>>());
        // One file, one leaf; others have their own.
        let mut leaves: HashMap<u64, std::collections::HashSet<usize>> = HashMap::new();
        for (path, _, leaf) in all.iter().filter(|(.., leaf)| *leaf != 0) {
            let inode = std::fs::metadata(dir.path().join(&path[1..])).unwrap().ino();
            leaves.entry(inode).or_default().insert(*leaf);
        }
        assert!(leaves.values().all(|leaves| leaves.len() == 1));
        let different: std::collections::HashSet<_> = leaves.values().flatten().collect();
        assert_eq!(different.len(), leaves.len());
    }
}
