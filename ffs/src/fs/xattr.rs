//! Extended attributes: those of the layers, and our own.
//!
//! The place for what is answered on `<mount>/.ffs` (inode [`HIDDEN`](crate::watch::HIDDEN)): a
//! branch at the top of each function here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, INodeNo, ReplyEmpty, ReplyXattr, Request};

use super::Shared;
use crate::merge::Node;

impl Shared {
    pub(super) fn getxattr(&self, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.table.get(ino.0).and_then(|node| match (name.as_bytes(), node) {
            (b"user.ffs.layer", Node::File(file)) => Some(file.layer.to_string()),
            (b"user.ffs.layer", Node::Dir(dir)) => Some(dir.layers().collect::<Vec<_>>().join(":")),
            (b"user.ffs.generation", _) => Some(self.current.load().number.to_string()),
            _ => None,
        });
        match value {
            None => reply.error(Errno::ENODATA),
            Some(value) => answer(value.as_bytes(), size, reply),
        }
    }

    /// Our own names are not listed: a copy of a file would take them along.
    #[allow(clippy::unused_self)]
    pub(super) fn listxattr(&self, _ino: INodeNo, size: u32, reply: ReplyXattr) {
        answer(&[], size, reply);
    }

    #[allow(clippy::unused_self)]
    pub(super) fn setxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }
}

/// Answers as getxattr(2) and listxattr(2) do: the length to a caller that offers no room.
fn answer(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
