//! Extended attributes: those of the layers, and our own.
//!
//! The place for what is answered on `<mount>/.ffs` (inode [`HIDDEN`](crate::watch::HIDDEN)): a
//! branch at the top of each function here.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, INodeNo, ReplyEmpty, ReplyXattr, Request};

use super::Shared;
use crate::layer::Name;
use crate::merge::Node;

impl Shared {
    pub(super) fn getxattr(&self, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let Some(node) = self.table.get(ino.0) else { return reply.error(Errno::ESTALE) };
        let own = match (name.as_bytes(), &node) {
            (b"user.ffs.layer", Node::File(file)) => Some(file.layer.to_string()),
            (b"user.ffs.layer", Node::Dir(dir)) => Some(dir.layers().collect::<Vec<_>>().join(":")),
            (b"user.ffs.generation", _) => Some(self.current.load().number.to_string()),
            _ => None,
        };
        if let Some(own) = own {
            return answer(own.as_bytes(), size, reply);
        }
        match layered(&node).iter().find(|(have, _)| **have == *name.as_bytes()) {
            Some((_, value)) => answer(value, size, reply),
            None => reply.error(Errno::ENODATA),
        }
    }

    /// Our own names are not listed: a copy of a file would take them along.
    pub(super) fn listxattr(&self, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let Some(node) = self.table.get(ino.0) else { return reply.error(Errno::ESTALE) };
        let mut names = Vec::new();
        for (name, _) in layered(&node) {
            names.extend_from_slice(name);
            names.push(0);
        }
        answer(&names, size, reply);
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

/// The attributes that a node has from its layer.
fn layered(node: &Node) -> &[(Name, Box<[u8]>)] {
    match node {
        Node::File(file) => &file.leaf.xattrs,
        Node::Dir(dir) => dir.xattrs(),
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
