//! Attributes as the kernel wants them.

use std::sync::Arc;

use fuser::{FileAttr, FileType, INodeNo};

use crate::layer::{Kind, Meta};
use crate::merge::{Dir, Node};

/// The block size of statfs and stat.
pub(super) const BLOCK: u32 = 4096;

pub(super) fn attr(node: &Node) -> FileAttr {
    let Meta { kind, perm, uid, gid, size, blocks, links, mtime, ctime, device } = *node.meta();
    let nlink = match node {
        Node::Dir(dir) => dir.subdirs.saturating_add(2),
        Node::File(_) => links,
    };
    FileAttr {
        ino: INodeNo(node.ino()),
        size,
        blocks,
        atime: mtime,
        mtime,
        ctime,
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

pub(super) fn file_type(kind: Kind) -> FileType {
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

/// The hidden directory, or its alias: empty, there for the replay and for its extended attributes,
/// which are its owner's to write.
pub(super) fn hidden(ino: u64) -> Node {
    let uid = nix::unistd::geteuid().as_raw();
    Node::Dir(Arc::new(Dir::empty(ino, Meta { perm: 0o755, uid, ..Meta::bare_dir() })))
}

/// What stands for a real inode while it is moved into place or removed.
pub(super) fn stand_in(ino: u64, dir: bool) -> FileAttr {
    let bare = Node::Dir(Arc::new(Dir::empty(ino, Meta { perm: 0o700, ..Meta::bare_dir() })));
    let kind = if dir { FileType::Directory } else { FileType::RegularFile };
    FileAttr { kind, nlink: if dir { 2 } else { 1 }, ..attr(&bare) }
}
