//! The file system operations, as the kernel asks for them.
//!
//! Every answer may be cached forever (infinite time-outs): a number never stands for two contents,
//! and a switch tells the kernel what to forget. So the warm path is the kernel's alone.
//!
//! Handlers that tell the kernel about names hold the gate for reading until their answer is
//! written; a switch takes it for writing. An answer from before a switch has thus reached the
//! kernel before the switch invalidates anything, and the kernel's directory lock orders the two.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use crate::generation::Generation;
use crate::layer::{Content, Kind, Meta};
use crate::merge::{Dir, File, Node, ROOT};
use crate::table::{Handles, Table};
use crate::watch::{HIDDEN, HIDDEN_NAME, HiddenName, Replay, hidden_name};

/// As good as forever; the kernel clamps what its clock cannot hold.
const FOREVER: Duration = Duration::from_secs(1 << 31);
/// One number never stands for two objects, so FUSE's own generation of a number is constant.
const ONE: fuser::Generation = fuser::Generation(0);
/// The block size of statfs and stat.
const BLOCK: u32 = 4096;

/// What the handlers and the switching thread share.
pub(crate) struct Shared {
    pub(crate) gate: RwLock<()>,
    pub(crate) current: ArcSwap<Generation>,
    pub(crate) table: Table,
    /// Opens are left to the kernel: no request for each, and the first answer holds for the whole
    /// life of the connection. For mounts that begin without directory layers, whose files are the
    /// only ones that must be opened to be read.
    no_open: bool,
    /// The replay of changes for watchers.
    pub(crate) replay: Replay,
    files: Handles<std::fs::File>,
    dirs: Handles<Mutex<Arc<Dir>>>,
    /// Set when a file of a directory layer turned out to be another one than was scanned.
    pub(crate) stale: AtomicBool,
    /// Called when that is first seen.
    pub(crate) on_stale: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Shared {
    pub(crate) fn new(generation: Generation) -> Self {
        let table = Table::new(generation.root.clone());
        table.remember(&hidden());
        Self {
            gate: RwLock::new(()),
            table,
            no_open: !generation.layers.iter().any(|layer| layer.origin.starts_with("dir:")),
            replay: Replay::default(),
            current: ArcSwap::from_pointee(generation),
            files: Handles::default(),
            dirs: Handles::default(),
            stale: AtomicBool::new(false),
            on_stale: OnceLock::new(),
        }
    }

    fn found_stale(&self) {
        if !self.stale.swap(true, Ordering::Relaxed)
            && let Some(tell) = self.on_stale.get()
        {
            tell();
        }
    }

    fn enter(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn dir(&self, ino: INodeNo) -> Result<Arc<Dir>, Errno> {
        match self.table.get(ino.0) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => Err(Errno::ENOTDIR),
            None => Err(Errno::ESTALE),
        }
    }

    fn file(&self, ino: INodeNo) -> Result<Arc<File>, Errno> {
        match self.table.get(ino.0) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ESTALE),
        }
    }
}

/// The file system that fuser drives.
pub(crate) struct Ffs(pub(crate) Arc<Shared>);

impl Filesystem for Ffs {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            // Cached pages are dropped when we say so, not when attributes look new.
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_EXPORT_SUPPORT;
        if let Err(missing) = config.add_capabilities(wanted) {
            // What is left is what the kernel has: they were just reported as present.
            let _ = config.add_capabilities(wanted & !missing);
            tracing::info!(?missing, "the kernel lacks some FUSE features: slower, not different");
        }
        // As much read-ahead as the kernel offers.
        if let Err(most) = config.set_max_readahead(1 << 20) {
            let _ = config.set_max_readahead(most);
        }
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _gate = self.0.enter();
        if parent.0 == ROOT && name.as_bytes() == HIDDEN_NAME {
            let hidden = hidden();
            self.0.table.remember(&hidden);
            return reply.entry(&FOREVER, &attr(&hidden), ONE);
        }
        let replayed = self.0.replay.is(req.pid());
        if replayed && let Some(pretence) = self.0.replay.pretence(parent.0, name.as_bytes()) {
            return match pretence.stand_in {
                Some((ino, dir)) => once(reply, &stand_in(ino, dir)),
                None => reply.error(Errno::ENOENT),
            };
        }
        if parent.0 == HIDDEN {
            return match hidden_name(name.as_bytes()).filter(|_| replayed) {
                Some(HiddenName::New { ino, dir }) => once(reply, &stand_in(ino, dir)),
                Some(HiddenName::Old(ino)) => match self.0.table.get(ino) {
                    Some(node) => {
                        self.0.table.remember(&node);
                        once(reply, &attr(&node));
                    }
                    None => reply.error(Errno::ENOENT),
                },
                None => reply.error(Errno::ENOENT),
            };
        }
        match self.0.dir(parent) {
            Err(error) => reply.error(error),
            Ok(dir) => match dir.get(name.as_bytes()) {
                Some(node) => {
                    self.0.table.remember(node);
                    reply.entry(&FOREVER, &attr(node), ONE);
                }
                // Number 0 is how FUSE says "not there, and you may remember that".
                None => reply.entry(&FOREVER, &FileAttr { ino: INodeNo(0), ..attr(&Node::Dir(dir)) }, ONE),
            },
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.0.table.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.table.get(ino.0) {
            Some(node) => reply.attr(&FOREVER, &attr(&node)),
            None => reply.error(Errno::ESTALE),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<fuser::TimeOrNow>,
        _mtime: Option<fuser::TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        match self.0.table.get(ino.0) {
            // What it is already: the kernel tells the watchers.
            Some(node) if self.0.replay.is(req.pid()) => reply.attr(&FOREVER, &attr(&node)),
            _ => reply.error(Errno::EROFS),
        }
    }

    fn unlink(&self, req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        if self.0.replay.is(req.pid()) { reply.ok() } else { reply.error(Errno::EROFS) }
    }

    fn rmdir(&self, req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        if self.0.replay.is(req.pid()) { reply.ok() } else { reply.error(Errno::EROFS) }
    }

    fn rename(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _newparent: INodeNo,
        _newname: &OsStr,
        _flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        if self.0.replay.is(req.pid()) { reply.ok() } else { reply.error(Errno::EROFS) }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.file(ino).map(|file| file.leaf.clone()) {
            Err(error) => reply.error(error),
            Ok(leaf) => match &leaf.content {
                Content::Target(target) => reply.data(target),
                _ => reply.error(Errno::EINVAL),
            },
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        if self.0.no_open {
            // ENOSYS is how FUSE says "never ask again".
            return reply.error(Errno::ENOSYS);
        }
        let cached = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        match self.0.file(ino) {
            Err(error) => reply.error(error),
            Ok(file) => match &file.leaf.content {
                Content::Path { root, path, stamp } => match crate::layer::dir::open(root, path, stamp) {
                    Ok((open, true)) => reply.opened(FileHandle(self.0.files.insert(open)), cached),
                    // Another file than was scanned: shown as it is, past the caches of the one before.
                    Ok((open, false)) => {
                        self.0.found_stale();
                        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
                        reply.opened(FileHandle(self.0.files.insert(open)), flags);
                    }
                    Err(error) => {
                        self.0.found_stale();
                        reply.error(error.into());
                    }
                },
                // No handle: the number stands for this content as long as anybody has it open.
                _ => reply.opened(FileHandle(0), cached),
            },
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(open) = self.0.files.get(fh.0) {
            let mut buffer = vec![0; size as usize];
            return match read_full(&open, &mut buffer, offset) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(error.into()),
            };
        }
        match self.0.file(ino).map(|file| file.leaf.clone()) {
            Err(error) => reply.error(error),
            Ok(leaf) => match &leaf.content {
                Content::Sealed { image, ranges } => match slice(image.chunks(ranges), offset, size as usize)
                {
                    Piece::One(bytes) => reply.data(bytes),
                    Piece::Joined(bytes) => reply.data(&bytes),
                },
                // A directory layer that came later, on a mount where opens are not asked: opened for
                // each read, which page-cached files need once.
                Content::Path { root, path, stamp } => match crate::layer::dir::open(root, path, stamp) {
                    Ok((open, true)) => {
                        let mut buffer = vec![0; size as usize];
                        match read_full(&open, &mut buffer, offset) {
                            Ok(read) => reply.data(&buffer[..read]),
                            Err(error) => reply.error(error.into()),
                        }
                    }
                    // Better no content than a mixture of two.
                    Ok((_, false)) => {
                        self.0.found_stale();
                        reply.error(Errno::ESTALE);
                    }
                    Err(error) => {
                        self.0.found_stale();
                        reply.error(error.into());
                    }
                },
                _ => reply.data(&[]),
            },
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.files.remove(fh.0);
        reply.ok();
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.0.dir(ino) {
            Err(error) => reply.error(error),
            Ok(dir) => {
                let handle = FileHandle(self.0.dirs.insert(Mutex::new(dir)));
                reply.opened(handle, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR);
            }
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _gate = self.0.enter();
        match self.listing(ino, fh, offset) {
            Err(error) => reply.error(error),
            Ok(dir) => {
                for (next, name, node) in entries(&dir, offset) {
                    let (ino, kind) = match node {
                        Some(node) => (node.ino(), file_type(node.meta().kind)),
                        None => (dir.ino, FileType::Directory),
                    };
                    if reply.add(INodeNo(ino), next, kind, OsStr::from_bytes(name)) {
                        break;
                    }
                }
                reply.ok();
            }
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _gate = self.0.enter();
        match self.listing(ino, fh, offset) {
            Err(error) => reply.error(error),
            Ok(dir) => {
                let own = Node::Dir(dir.clone());
                for (next, name, node) in entries(&dir, offset) {
                    let attr = attr(node.unwrap_or(&own));
                    if reply.add(attr.ino, next, OsStr::from_bytes(name), &FOREVER, &attr, ONE) {
                        break;
                    }
                    // The kernel takes a reference for each entry but `.` and `..`.
                    if let Some(node) = node {
                        self.0.table.remember(node);
                    }
                }
                reply.ok();
            }
        }
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.dirs.remove(fh.0);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let generation = self.0.current.load();
        let totals = generation.totals();
        let blocks = totals.bytes.div_ceil(u64::from(BLOCK));
        reply.statfs(blocks, 0, 0, totals.names, 0, BLOCK, 255, BLOCK);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.0.table.get(ino.0).and_then(|node| match (name.as_bytes(), node) {
            (b"user.ffs.layer", Node::File(file)) => Some(file.layer.to_string()),
            (b"user.ffs.layer", Node::Dir(dir)) => Some(dir.layers().collect::<Vec<_>>().join(":")),
            (b"user.ffs.generation", _) => Some(self.0.current.load().number.to_string()),
            _ => None,
        });
        match value {
            None => reply.error(Errno::ENODATA),
            Some(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
            Some(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
            Some(value) => reply.data(value.as_bytes()),
        }
    }

    fn listxattr(&self, _req: &Request, _ino: INodeNo, size: u32, reply: ReplyXattr) {
        if size == 0 { reply.size(0) } else { reply.data(&[]) }
    }

    fn access(&self, _req: &Request, _ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        // Not asked with default_permissions; only the write bit has an answer of ours.
        if mask.contains(AccessFlags::W_OK) { reply.error(Errno::EROFS) } else { reply.ok() }
    }
}

impl Ffs {
    /// The directory that a listing shows: what it showed when the listing began.
    fn listing(&self, ino: INodeNo, fh: FileHandle, offset: u64) -> Result<Arc<Dir>, Errno> {
        let Some(handle) = self.0.dirs.get(fh.0) else { return self.0.dir(ino) };
        let mut dir = handle.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 {
            // rewinddir(3): what is there now. It also keeps an old listing out of the kernel's cache.
            *dir = self.0.dir(ino)?;
        }
        Ok(dir.clone())
    }
}

/// The hidden directory: empty for everybody, and there for the replay.
fn hidden() -> Node {
    Node::Dir(Arc::new(Dir::empty(HIDDEN, Meta { perm: 0o700, ..Meta::bare_dir() })))
}

/// What stands for a real inode while it is moved into place or removed.
fn stand_in(ino: u64, dir: bool) -> FileAttr {
    let bare = Node::Dir(Arc::new(Dir::empty(ino, Meta { perm: 0o700, ..Meta::bare_dir() })));
    let kind = if dir { FileType::Directory } else { FileType::RegularFile };
    FileAttr { kind, nlink: if dir { 2 } else { 1 }, ..attr(&bare) }
}

/// Answers with an entry that holds for this one lookup.
fn once(reply: ReplyEntry, attr: &FileAttr) {
    reply.entry_with_ttls(&FOREVER, &Duration::ZERO, attr, ONE);
}

/// What a listing has from `offset` on: the offset after it, the name, the node; `.` and `..` first.
fn entries(dir: &Dir, offset: u64) -> impl Iterator<Item = (u64, &[u8], Option<&Node>)> {
    let dots: [(&[u8], Option<&Node>); 2] = [(b".", None), (b"..", None)];
    let names = dir.entries.iter().map(|(name, node)| (&**name, Some(node)));
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let numbered = dots.into_iter().chain(names).zip(1_u64..);
    numbered.skip(skip).map(|((name, node), next)| (next, name, node))
}

fn read_full(file: &std::fs::File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// Part of a content that lies in pieces.
enum Piece<'a> {
    One(&'a [u8]),
    Joined(Vec<u8>),
}

fn slice<'a>(chunks: impl Iterator<Item = &'a [u8]>, offset: u64, size: usize) -> Piece<'a> {
    let mut skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let mut found = Piece::One(&[]);
    let mut left = size;
    for chunk in chunks {
        let part = chunk.get(skip..).unwrap_or_default();
        skip = skip.saturating_sub(chunk.len());
        let part = &part[..part.len().min(left)];
        left -= part.len();
        found = match found {
            _ if part.is_empty() => found,
            Piece::One([]) => Piece::One(part),
            Piece::One(one) => Piece::Joined([one, part].concat()),
            Piece::Joined(mut all) => {
                all.extend_from_slice(part);
                Piece::Joined(all)
            }
        };
        if left == 0 {
            break;
        }
    }
    found
}

fn attr(node: &Node) -> FileAttr {
    let Meta { kind, perm, uid, gid, size, mtime, device } = *node.meta();
    let nlink = match node {
        Node::Dir(dir) => dir.subdirs.saturating_add(2),
        Node::File(_) => 1,
    };
    FileAttr {
        ino: INodeNo(node.ino()),
        size,
        blocks: size.div_ceil(512),
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(kind),
        perm,
        nlink,
        uid,
        gid,
        // The kernel's encoding of device numbers (linux/kdev_t.h, new_encode_dev).
        rdev: (device.1 & 0xff) | (device.0 << 8) | ((device.1 & !0xff) << 12),
        blksize: BLOCK,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Dir => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_and_joined() {
        let get = |offset, size| {
            let chunks: [&[u8]; 3] = [b"abc", b"", b"defg"];
            match slice(chunks.into_iter(), offset, size) {
                Piece::One(one) => one.to_vec(),
                Piece::Joined(all) => all,
            }
        };
        assert_eq!(get(0, 2), b"ab");
        assert_eq!(get(1, 4), b"bcde");
        assert_eq!(get(3, 9), b"defg");
        assert_eq!(get(6, 1), b"g");
        assert_eq!(get(7, 5), b"");
        assert_eq!(get(u64::MAX, 5), b"");
    }
}
