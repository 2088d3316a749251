//! The file system operations, as the kernel asks for them.
//!
//! Every answer may be cached forever (infinite time-outs): a number never stands for two contents,
//! and a switch tells the kernel what to forget. So the warm path is the kernel's alone.
//!
//! Handlers that tell the kernel about names hold the gate for reading until their answer is
//! written; a switch takes it for writing. An answer from before a switch has thus reached the
//! kernel before the switch invalidates anything, and the kernel's directory lock orders the two.

mod attr;
mod data;
mod listing;
mod open;
mod refused;
mod xattr;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use arc_swap::ArcSwap;
use fuser::{
    AccessFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
};

use crate::announced::Announced;
use crate::generation::Generation;
use crate::handover::state::Agreed;
use crate::layer::Content;
use crate::merge::{Dir, File, Node, ROOT};
use crate::prefetch::Prefetch;
use crate::readers::Readers;
use crate::table::{Handles, Table};
use crate::watch::{ALIAS, ALIAS_NAME, HIDDEN, HIDDEN_NAME, HiddenName, Pretended, Replay, hidden_name};
use attr::{BLOCK, attr, hidden, stand_in};
use refused::Refused;

/// As good as forever; the kernel clamps what its clock cannot hold.
const FOREVER: Duration = Duration::from_secs(1 << 31);
/// The most that one request reads: 256 KiB are copied through a processor's own cache. First reads of 256 MiB ran here at
/// 1.3 to 1.7 GB/s by 128 KiB, read ahead one by one; at 2.5 to 2.9 by 256 KiB, four read ahead; at 1.7 to 1.9 by 1 MiB.
const REQUEST: u32 = 256 << 10;
/// Requests that the kernel has under way without anybody waiting for each, all of its reading ahead: those that a disk does not
/// answer must leave room for all others. It is 12 when nothing is said, which three such readers take up.
const AHEAD: u16 = 512;
/// Storeys of file systems that read each other's files, with passthrough: a layer may not lie on such a one itself, and an
/// overlayfs may still have this file system as a layer.
const STOREYS: u32 = 1;
/// One number never stands for two objects, so FUSE's own generation of a number is constant.
const ONE: fuser::Generation = fuser::Generation(0);

/// Does what a command asks, and gives the answer to the second.
pub(crate) type OnCommand =
    dyn Fn(crate::control::Request, Box<dyn FnOnce(crate::control::Response) + Send>) + Send + Sync;

/// What the handlers and the switching thread share.
pub(crate) struct Shared {
    pub(crate) gate: RwLock<()>,
    pub(crate) current: ArcSwap<Generation>,
    /// Names that are answered in a way of their own.
    pub(crate) announced: Announced,
    pub(crate) table: Table,
    /// The replay of changes for watchers.
    pub(crate) replay: Replay,
    /// Listing of directories in advance.
    pub(crate) prefetch: Prefetch,
    /// Who waits for the disks of directory layers.
    pub(crate) readers: Readers,
    /// Whether the kernel takes attributes with listings.
    pub(crate) readdirplus: AtomicBool,
    /// Whether fusermount3 made the mount for a user: the kernel does not hold it read-only. So opens are
    /// asked for, and those for writing are refused; and its owner gives commands by extended attribute.
    pub(crate) users_mount: bool,
    /// Writes, which are refused.
    pub(crate) refused: Refused,
    /// Whether the kernel is to read large files by itself.
    pub(crate) passthrough: bool,
    /// The kernel's end of the connection, of which nobody reads here.
    pub(crate) connection: OnceLock<Arc<OwnedFd>>,
    pub(crate) dirs: Handles<Mutex<Arc<Dir>>>,
    /// What was agreed on with the kernel at the mount.
    pub(crate) agreed: OnceLock<Agreed>,
    /// Set when a file of a directory layer turned out to be another one than was scanned.
    pub(crate) stale: AtomicBool,
    /// Called when that is first seen.
    pub(crate) on_stale: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Called with a command that came as an extended attribute.
    pub(crate) on_command: OnceLock<Box<OnCommand>>,
}

impl Shared {
    pub(crate) fn new(generation: Generation, passthrough: bool, users_mount: bool) -> Self {
        let table = Table::new(generation.root.clone());
        table.remember(&hidden(HIDDEN));
        let root = nix::unistd::geteuid().is_root();
        Self {
            passthrough: passthrough && root,
            ..Self::with(generation, table, Handles::default(), users_mount)
        }
    }

    /// With what the kernel knows already.
    pub(crate) fn with(
        generation: Generation,
        table: Table,
        dirs: Handles<Mutex<Arc<Dir>>>,
        users_mount: bool,
    ) -> Self {
        Self {
            gate: RwLock::new(()),
            announced: Announced::default(),
            table,
            replay: Replay::default(),
            current: ArcSwap::from_pointee(generation),
            users_mount,
            refused: Refused::default(),
            passthrough: false,
            connection: OnceLock::new(),
            prefetch: Prefetch::default(),
            readers: Readers::default(),
            readdirplus: AtomicBool::new(false),
            dirs,
            agreed: OnceLock::new(),
            stale: AtomicBool::new(false),
            on_stale: OnceLock::new(),
            on_command: OnceLock::new(),
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

    /// Allows what the replay does to the name that it is at, and nothing else.
    fn replayed(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if self.replay.may(req.pid(), parent.0, name.as_bytes()) {
            reply.ok();
        } else {
            reply.error(Errno::EROFS);
        }
    }

    /// Answers, for this one lookup, with an inode that the kernel has of an earlier generation.
    fn old(&self, ino: u64, reply: ReplyEntry) {
        match self.table.get(ino) {
            Some(node) => {
                self.table.remember(&node);
                once(reply, &attr(&node));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    /// Answers with the file that is told of, as it is now: the name that it gets stays in the cache as any other.
    fn told(&self, reply: ReplyEntry) {
        let Some((parent, name)) = self.replay.told() else { return reply.error(Errno::ENOENT) };
        let (dir, name) = (self.dir(INodeNo(parent)), name.as_slice());
        match dir.as_ref().ok().and_then(|dir| dir.get(name)) {
            Some(node @ Node::File(_)) => {
                self.table.remember(node);
                self.named(parent, name, node, reply);
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    /// Answers with what a name stands for: forever, unless a switch is about to change that.
    fn named(&self, parent: u64, name: &[u8], node: &Node, reply: ReplyEntry) {
        if self.announced.changes(parent, name) {
            once(reply, &attr(node));
        } else {
            reply.entry(&FOREVER, &attr(node), ONE);
        }
    }

    /// Whether the kernel asks for the target of a rename whatever it has cached.
    pub(crate) fn renames_over(&self) -> bool {
        self.agreed.get().is_some_and(|agreed| agreed.renames_over())
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
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            // Cached pages are dropped when we say so, not when attributes look new.
            | InitFlags::FUSE_EXPLICIT_INVAL_DATA
            | InitFlags::FUSE_EXPORT_SUPPORT
            // Also where no layer has an access control list: one may that comes later. The kernel asks for them on first
            // looks by others than the owner.
            | InitFlags::FUSE_POSIX_ACL;
        if self.0.passthrough {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
            let _ = config.set_max_stack_depth(STOREYS);
        }
        if let Err(missing) = config.add_capabilities(wanted) {
            // What is left is what the kernel has: they were just reported as present.
            let _ = config.add_capabilities(wanted & !missing);
            tracing::info!(?missing, "the kernel lacks some FUSE features: slower, not different");
        }
        let readdirplus = config.capabilities().contains(InitFlags::FUSE_DO_READDIRPLUS);
        self.0.readdirplus.store(readdirplus, Ordering::Relaxed);
        let (version, taken) = (config.kernel_abi(), config.capabilities() & wanted);
        // After a handover it is what it was: the kernel has not been asked again.
        let _ = self.0.agreed.set(Agreed { major: version.0, minor: version.1, taken: taken.bits() });
        // Both decide how large a request may be.
        let _ = config.set_max_write(REQUEST);
        if let Err(most) = config.set_max_readahead(REQUEST) {
            let _ = config.set_max_readahead(most);
        }
        let _ = config.set_max_background(AHEAD);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _gate = self.0.enter();
        if parent.0 == ROOT && name.as_bytes() == HIDDEN_NAME {
            let hidden = hidden(HIDDEN);
            self.0.table.remember(&hidden);
            return reply.entry(&FOREVER, &attr(&hidden), ONE);
        }
        let replayed = self.0.replay.is(req.pid());
        if replayed && let Some(pretence) = self.0.replay.pretence(parent.0, name.as_bytes()) {
            return match pretence.is {
                Pretended::StandIn(ino, dir) => once(reply, &stand_in(ino, dir)),
                Pretended::Old(ino) => self.0.old(ino, reply),
                Pretended::Nothing => reply.error(Errno::ENOENT),
            };
        }
        if parent.0 == HIDDEN {
            return match hidden_name(name.as_bytes()).filter(|_| replayed) {
                Some(HiddenName::NewDir(ino)) => once(reply, &stand_in(ino, true)),
                Some(HiddenName::Now) => self.0.told(reply),
                Some(HiddenName::Old(ino)) => self.0.old(ino, reply),
                None => reply.error(Errno::ENOENT),
            };
        }
        if let Some(covered) = self.0.announced.covered(parent.0, name.as_bytes()) {
            self.0.table.asked(&covered);
            return reply.entry(&FOREVER, &attr(&covered), ONE);
        }
        match self.0.dir(parent) {
            Err(error) => reply.error(error),
            Ok(dir) => match dir.get(name.as_bytes()) {
                Some(node) => {
                    self.0.table.asked(node);
                    self.0.named(parent.0, name.as_bytes(), node, reply);
                    self.0.prefetch.looked_up(dir.ino, &dir.asked, dir.entries.len());
                }
                None if parent.0 == ROOT && name.as_bytes() == ALIAS_NAME => {
                    let alias = hidden(ALIAS);
                    self.0.table.remember(&alias);
                    reply.entry(&FOREVER, &attr(&alias), ONE);
                }
                None if parent.0 == ROOT
                    && let Some(earlier) = self.0.current.load().earlier(name.as_bytes()) =>
                {
                    self.0.table.remember(&earlier);
                    once(reply, &attr(&earlier));
                }
                None if self.0.announced.changes(parent.0, name.as_bytes()) => reply.error(Errno::ENOENT),
                // Number 0 is how FUSE says "not there, and you may remember that".
                None => reply.entry(&FOREVER, &FileAttr { ino: INodeNo(0), ..attr(&Node::Dir(dir)) }, ONE),
            },
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        if let Some(way) = self.0.table.forget(ino.0, nlookup) {
            self.0.let_go(way);
        }
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

    // The kernel refuses these by itself where the mount is read-only. It asks on a user's mount, and where root has made a
    // mount writable.

    fn mknod(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn symlink(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _link_name: &OsStr,
        _target: &std::path::Path,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _req: &Request, _ino: INodeNo, _newparent: INodeNo, _newname: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _req: &Request, _ino: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.replayed(req, parent, name, reply);
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.replayed(req, parent, name, reply);
    }

    fn rename(
        &self,
        req: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.0.replayed(req, newparent, newname, reply);
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
        // All that is not for reading alone, the fourth way (ioctls only, open(2)) too.
        match flags.0 & nix::libc::O_ACCMODE {
            nix::libc::O_RDONLY => self.0.open(ino, reply),
            _ => reply.error(Errno::EROFS),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.0.read(ino, offset, size, reply);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: fuser::WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
        self.0.refused.wrote(ino.0);
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.0.lseek(ino, offset, whence, reply);
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.0.dir(ino) {
            Err(error) => reply.error(error),
            Ok(dir) => {
                let handle = FileHandle(self.0.dirs.insert(Mutex::new(dir)));
                let cached = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR;
                // What is listed in advance is asked for its attributes, which a cached listing has not; and it is
                // listed in an order of its own.
                let flags = if self.0.prefetch.is(req.pid()) { FopenFlags::empty() } else { cached };
                reply.opened(handle, flags);
            }
        }
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.0.readdir(ino, fh, offset, reply);
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.0.readdirplus(ino, fh, offset, self.0.prefetch.is(req.pid()), reply);
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
        self.0.getxattr(ino, name, size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.0.listxattr(ino, size, reply);
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.0.setxattr(req, ino, name, value, reply);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        // Not asked with default_permissions; only the write bit has an answer of ours.
        if mask.contains(AccessFlags::W_OK) { reply.error(Errno::EROFS) } else { reply.ok() }
    }
}

/// Answers with an entry that holds for this one lookup.
fn once(reply: ReplyEntry, attr: &FileAttr) {
    reply.entry_with_ttls(&FOREVER, &Duration::ZERO, attr, ONE);
}
