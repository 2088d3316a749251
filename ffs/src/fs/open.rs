//! Opening files, and who reads them then.
//!
//! As a rule opens are not asked for (`ENOSYS` to the first one), so a warm open, read and close is the kernel's alone: 5 µs
//! here where a request for each open makes it 48, and overlayfs takes 6. Content is held by the inode and not by the open
//! file, which is as good: a number never stands for two contents. A user's mount, which the kernel does not hold read-only,
//! is asked.
//!
//! With `passthrough` opens are asked for too, and the answer names the file that a large one was found in: the kernel reads
//! that by itself from the first byte on, without a request and without a second copy in its page cache (FUSE passthrough,
//! Linux 6.9, Documentation/filesystems/fuse/fuse-passthrough.rst). It is arranged in the answer to an open and for a whole
//! connection, so it cannot be had beside opens that are not asked for: whoever mounts says which of the two counts more.
//!
//! Content in sealed memory, which all images and small files are, is no file of its own and comes from the page cache.
//! So does what lies on a file system that is stacked itself (overlayfs): the kernel allows so many storeys.

use std::fs::File;
use std::sync::Arc;

use fuser::{BackingId, Errno, FileHandle, FopenFlags, INodeNo, InitFlags, ReplyOpen};

use super::Shared;
use crate::layer::Content;
use crate::sys;
use crate::table::Way;

impl Shared {
    /// Whether the kernel takes files to read by itself.
    pub(crate) fn passes(&self) -> bool {
        let taken = self.agreed.get().map_or(0, |agreed| agreed.taken);
        InitFlags::from_bits_retain(taken).contains(InitFlags::FUSE_PASSTHROUGH)
    }

    /// Opens a file for reading.
    pub(super) fn open(self: &Arc<Self>, ino: INodeNo, reply: ReplyOpen) {
        if !self.passes() {
            return if self.users_mount {
                opened(reply, Way::Asked);
            } else {
                // ENOSYS is how FUSE says "never ask again".
                reply.error(Errno::ENOSYS);
            };
        }
        if let Some(way) = self.table.way(ino.0) {
            return opened(reply, way);
        }
        let leaf = match self.file(ino) {
            Ok(file) => file.leaf.clone(),
            Err(error) => return reply.error(error),
        };
        match &leaf.content {
            Content::Held { file, .. } => self.pass(ino, file, reply),
            Content::Path { stamp, .. } => {
                let (this, device) = (self.clone(), stamp.inode.0);
                self.readers.run(device, move || match this.open_path(&leaf) {
                    Ok(file) => this.pass(ino, &file, reply),
                    Err(error) => reply.error(error.into()),
                });
            }
            _ => self.settle(ino, Way::Asked, reply),
        }
    }

    /// Gives a file to the kernel, where it takes it, until it forgets the inode.
    fn pass(&self, ino: INodeNo, file: &File, reply: ReplyOpen) {
        // The descriptors of the session stand for something else while it is handed over.
        let number = self.connection.get().map(|connection| BackingId::create_raw(connection, file));
        let way = match number {
            Some(Ok(number)) => Way::Passed(number),
            Some(Err(error)) => {
                tracing::debug!(%error, ino = ino.0, "the kernel does not read this file by itself");
                Way::Asked
            }
            None => Way::Asked,
        };
        self.settle(ino, way, reply);
    }

    fn settle(&self, ino: INodeNo, way: Way, reply: ReplyOpen) {
        let settled = self.table.settle(ino.0, way);
        if settled != Some(way) {
            self.let_go(way);
        }
        match settled {
            Some(way) => opened(reply, way),
            None => reply.error(Errno::ESTALE),
        }
    }

    /// Has the kernel let go of a file that nobody has open.
    pub(super) fn let_go(&self, way: Way) {
        let (Way::Passed(number), Some(connection)) = (way, self.connection.get()) else { return };
        if let Err(error) = sys::close_backing(connection, number) {
            tracing::warn!(%error, "the kernel keeps a file open that nobody reads");
        }
    }
}

fn opened(reply: ReplyOpen, way: Way) {
    match way {
        Way::Asked => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH),
        Way::Passed(number) => sys::opened_passthrough(reply, number),
    }
}
