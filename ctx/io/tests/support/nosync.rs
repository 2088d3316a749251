//! A file system in memory, over FUSE, on which fsync(2) of a directory is EINVAL, as on several network file systems.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

const TTL: Duration = Duration::ZERO;

enum Node {
    Dir(BTreeMap<OsString, u64>),
    File(Vec<u8>),
}

struct Inode {
    node: Node,
    mode: u32,
}

#[derive(Default)]
struct Nodes {
    all: BTreeMap<u64, Inode>,
    last: u64,
}

impl Nodes {
    fn add(&mut self, node: Node, mode: u32) -> u64 {
        self.last += 1;
        self.all.insert(self.last, Inode { node, mode: mode & 0o7777 });
        self.last
    }

    fn names(&mut self, dir: INodeNo) -> Result<&mut BTreeMap<OsString, u64>, Errno> {
        match self.all.get_mut(&dir.0).map(|inode| &mut inode.node) {
            Some(Node::Dir(names)) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn content(&mut self, file: INodeNo) -> Result<&mut Vec<u8>, Errno> {
        match self.all.get_mut(&file.0).map(|inode| &mut inode.node) {
            Some(Node::File(content)) => Ok(content),
            _ => Err(Errno::EISDIR),
        }
    }

    fn make(&mut self, parent: INodeNo, name: &OsStr, node: Node, mode: u32) -> Result<FileAttr, Errno> {
        if self.names(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        let number = self.add(node, mode);
        self.names(parent)?.insert(name.to_owned(), number);
        self.attr(number)
    }

    fn attr(&self, number: u64) -> Result<FileAttr, Errno> {
        let inode = self.all.get(&number).ok_or(Errno::ENOENT)?;
        let (kind, size) = match &inode.node {
            Node::Dir(_) => (FileType::Directory, 0),
            Node::File(content) => (FileType::RegularFile, content.len() as u64),
        };
        Ok(FileAttr {
            ino: INodeNo(number),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm: inode.mode as u16,
            nlink: 1,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

struct NoSync(Mutex<Nodes>);

impl NoSync {
    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.0.lock().unwrap()
    }
}

fn entry(found: Result<FileAttr, Errno>, reply: ReplyEntry) {
    match found {
        Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn empty(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for NoSync {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut nodes = self.nodes();
        let found = nodes.names(parent).and_then(|names| names.get(name).copied().ok_or(Errno::ENOENT));
        entry(found.and_then(|number| nodes.attr(number)), reply);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.nodes().attr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut nodes = self.nodes();
        if let (Some(mode), Some(inode)) = (mode, nodes.all.get_mut(&ino.0)) {
            inode.mode = mode & 0o7777;
        }
        if let (Some(size), Ok(content)) = (size, nodes.content(ino)) {
            content.resize(size as usize, 0);
        }
        match nodes.attr(ino.0) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error),
        }
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        entry(self.nodes().make(parent, name, Node::Dir(BTreeMap::new()), mode), reply);
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        match self.nodes().make(parent, name, Node::File(Vec::new()), mode) {
            Ok(attr) => reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.nodes().content(ino) {
            Ok(content) => {
                let from = content.len().min(offset as usize);
                let to = content.len().min(from + size as usize);
                reply.data(&content[from..to]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.nodes().content(ino) {
            Ok(content) => {
                let (from, to) = (offset as usize, offset as usize + data.len());
                content.resize(content.len().max(to), 0);
                content[from..to].copy_from_slice(data);
                reply.written(data.len() as u32);
            }
            Err(error) => reply.error(error),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut nodes = self.nodes();
        let moved = nodes.names(parent).and_then(|names| names.remove(name).ok_or(Errno::ENOENT));
        let done = moved
            .and_then(|number| nodes.names(newparent).map(|names| names.insert(newname.to_owned(), number)));
        empty(done.map(drop), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed =
            self.nodes().names(parent).and_then(|names| names.remove(name).map(drop).ok_or(Errno::ENOENT));
        empty(removed, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.unlink(request, parent, name, reply);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let mut nodes = self.nodes();
        let names = match nodes.names(ino) {
            Ok(names) => names.clone(),
            Err(error) => return reply.error(error),
        };
        for (index, (name, number)) in names.iter().enumerate().skip(offset as usize) {
            let Ok(attr) = nodes.attr(*number) else { continue };
            if reply.add(INodeNo(*number), index as u64 + 1, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.error(Errno::EINVAL);
    }
}

/// Such a file system, mounted until it is dropped.
pub struct Mounted {
    _session: fuser::BackgroundSession,
    dir: tempfile::TempDir,
}

impl Mounted {
    /// Mounts one; `None` where that cannot be done, which is then said for the test of this name.
    pub fn new(test: &str) -> Option<Self> {
        if !(nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists()) {
            eprintln!("SKIPPED {test}: needs root and /dev/fuse");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut nodes = Nodes::default();
        nodes.add(Node::Dir(BTreeMap::new()), 0o755);
        let session =
            fuser::spawn_mount(NoSync(Mutex::new(nodes)), dir.path(), &Config::default()).expect("a mount");
        let mounted = Self { _session: session, dir };
        let synced = std::fs::File::open(mounted.path()).unwrap().sync_all();
        assert_eq!(synced.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
        Some(mounted)
    }

    /// Its root.
    pub fn path(&self) -> PathBuf {
        self.dir.path().to_owned()
    }
}
