//! Listing directories.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, PoisonError};

use fuser::{Errno, FileHandle, FileType, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::attr::{attr, file_type};
use super::{FOREVER, ONE, Shared};
use crate::merge::{Dir, Node};

/// A size that no file has: the kernel gives a listed name with it to the program, leaves what it has cached for that name as
/// it is, and forgets the inode again (fs/fuse/readdir.c, `fuse_direntplus_link`). Taking an old name in would drop the new
/// one, and with it what is mounted there.
const NOT_LINKED: u64 = u64::MAX;

impl Shared {
    pub(super) fn readdir(&self, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let _gate = self.enter();
        match self.listing(ino, fh, offset) {
            Err(error) => reply.error(error),
            Ok(dir) => {
                for (next, name, node) in entries(&dir, offset, false) {
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

    /// Lists with attributes; `backwards` for who lists in advance.
    pub(super) fn readdirplus(
        &self,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        backwards: bool,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _gate = self.enter();
        match self.listing(ino, fh, offset) {
            Err(error) => reply.error(error),
            Ok(dir) => {
                let own = Node::Dir(dir.clone());
                let now = self.dir(ino).ok();
                for (next, name, node) in entries(&dir, offset, backwards) {
                    let mut attr = attr(node.unwrap_or(&own));
                    if node.is_some_and(|node| !self.announced.keeps(now.as_ref(), &dir, name, node)) {
                        attr.size = NOT_LINKED;
                    }
                    if reply.add(attr.ino, next, OsStr::from_bytes(name), &FOREVER, &attr, ONE) {
                        break;
                    }
                    // The kernel takes a reference for each entry but `.` and `..`.
                    if let Some(node) = node {
                        self.table.remember(node);
                    }
                }
                reply.ok();
            }
        }
    }

    /// The directory that a listing shows: what it showed when the listing began.
    fn listing(&self, ino: INodeNo, fh: FileHandle, offset: u64) -> Result<Arc<Dir>, Errno> {
        let Some(handle) = self.dirs.get(fh.0) else { return self.dir(ino) };
        let mut dir = handle.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 {
            // rewinddir(3): what is there now. It also keeps an old listing out of the kernel's cache.
            *dir = self.dir(ino)?;
        }
        Ok(dir.clone())
    }
}

/// What a listing has from `offset` on: the offset after it, the name, the node; `.` and `..` first, whichever way.
fn entries(dir: &Dir, offset: u64, backwards: bool) -> impl Iterator<Item = (u64, &[u8], Option<&Node>)> {
    const DOTS: [&[u8]; 2] = [b".", b".."];
    let (names, count) = (&dir.entries, dir.entries.len());
    let first = usize::try_from(offset).unwrap_or(usize::MAX);
    (first..count + DOTS.len()).zip(offset.saturating_add(1)..).map(move |(at, next)| {
        match at.checked_sub(DOTS.len()) {
            None => (next, DOTS[at], None),
            Some(at) => {
                let (name, node) = &names[if backwards { count - 1 - at } else { at }];
                (next, &**name, Some(node))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Meta;

    #[test]
    fn every_name_comes_once_from_wherever_a_listing_goes_on_and_whichever_way() {
        let meta = Meta::bare_dir();
        let child = |ino| Node::Dir(Arc::new(Dir::empty(ino, meta)));
        let names = (2..9).map(|ino: u64| (ino.to_string().into_bytes().into(), child(ino))).collect();
        let dir = Dir::of(1, meta, names, []);
        let all = |backwards, piece| {
            let (mut seen, mut offset) = (Vec::new(), 0);
            loop {
                let before = seen.len();
                for (next, name, node) in entries(&dir, offset, backwards).take(piece) {
                    assert_eq!(node.map(|node| node.ino().to_string().into_bytes()), plain(name));
                    offset = next;
                    seen.push(name.to_vec());
                }
                if seen.len() == before {
                    return seen;
                }
            }
        };
        let plain_names = |names: &[Vec<u8>]| names.iter().filter_map(|name| plain(name)).collect::<Vec<_>>();
        let whole = all(false, 100);
        assert_eq!((&whole[0][..], &whole[1][..], whole.len()), (&b"."[..], &b".."[..], 9));
        for piece in 1..5 {
            assert_eq!(all(false, piece), whole);
            let mut back = plain_names(&all(true, piece));
            back.reverse();
            assert_eq!(back, plain_names(&whole));
        }
        assert_eq!(entries(&dir, u64::MAX, true).count(), 0);
    }

    /// A name that is not `.` or `..`.
    fn plain(name: &[u8]) -> Option<Vec<u8>> {
        (name != b"." && name != b"..").then(|| name.to_vec())
    }
}
