//! Extended attributes: those of the layers, and our own.
//!
//! What is told of the mount, and the commands on `<mount>/.ffs`, are in [`attrs`].

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, INodeNo, ReplyEmpty, ReplyXattr, Request};

use super::Shared;
use crate::attrs::{self, Refused};
use crate::control::Response;
use crate::layer::Name;
use crate::merge::Node;
use crate::watch::{ALIAS, HIDDEN};

impl Shared {
    pub(super) fn getxattr(&self, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let generation = self.current.load();
        let own = match ino.0 {
            HIDDEN | ALIAS => attrs::of_control(name.as_bytes(), &generation),
            _ => self.table.get(ino.0).and_then(|node| attrs::of_path(name.as_bytes(), &node, &generation)),
        };
        if let Some(own) = own {
            return answer(&own, size, reply);
        }
        let node = self.table.get(ino.0);
        let found =
            node.as_ref().and_then(|node| layered(node).iter().find(|(have, _)| **have == *name.as_bytes()));
        match found {
            Some((_, value)) => answer(value, size, reply),
            None => reply.error(Errno::ENODATA),
        }
    }

    /// Our own names are listed on the hidden directory alone: a copy of a file would take them along.
    pub(super) fn listxattr(&self, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if matches!(ino.0, HIDDEN | ALIAS) {
            return answer(attrs::LISTED, size, reply);
        }
        let Some(node) = self.table.get(ino.0) else { return reply.error(Errno::ESTALE) };
        let mut names = Vec::new();
        for (name, _) in layered(&node) {
            names.extend_from_slice(name);
            names.push(0);
        }
        answer(&names, size, reply);
    }

    /// Commands, on a user's mount and from its owner alone. Root's mount takes none: whoever the kernel lets through there
    /// has a writable copy of it, which nobody should have.
    pub(super) fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        reply: ReplyEmpty,
    ) {
        if !self.users_mount || !matches!(ino.0, HIDDEN | ALIAS) {
            return reply.error(Errno::EROFS);
        }
        if req.uid() != nix::unistd::geteuid().as_raw() {
            return reply.error(Errno::EPERM);
        }
        let request = attrs::command(name.as_bytes(), value, &self.current.load());
        match (request, self.on_command.get()) {
            // Answered when it is done, by the one who does it: this thread is needed meanwhile.
            (Ok(request), Some(run)) => run(
                request,
                Box::new(move |response| match response {
                    Response::Status(_) => reply.ok(),
                    // EAGAIN would say it better, but the VFS makes EOPNOTSUPP of that
                    // (fs/xattr.c, __vfs_setxattr_noperm).
                    Response::Conflict(_) => reply.error(Errno::EBUSY),
                    Response::Error(reason) => {
                        tracing::warn!(reason, "a command by attribute was refused");
                        reply.error(Errno::EINVAL);
                    }
                }),
            ),
            (Ok(_), None) => reply.error(Errno::EBUSY),
            (Err(Refused::Unknown), _) => reply.error(Errno::ENODATA),
            (Err(Refused::ReadOnly), _) => reply.error(Errno::EROFS),
            (Err(Refused::Invalid), _) => reply.error(Errno::EINVAL),
        }
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
