//! Reading files.
//!
//! Here the kernel asks for what its page cache lacks; files that it reads by itself are in `open`. The first read of a large
//! file of a directory layer runs at 2.2 to 2.9 GB/s (1.3 to 1.7 before requests were as large as now and read ahead); read
//! again, it comes from the page cache at 6 GB/s, as fast as from tmpfs and without a request.
//!
//! What is left of a first read is copies: out of the file (not of sealed memory, which the answer is written from), into
//! the page cache, to the program. The one out of the file could be saved by a mapping, but then a file that is cut
//! meanwhile would give readers an error.

use std::cell::RefCell;
use std::fs::File;
use std::sync::Arc;

use fuser::{Errno, INodeNo, ReplyData, ReplyLseek};
use nix::libc::{SEEK_DATA, SEEK_HOLE};
use nix::unistd::{Whence, lseek};

use super::Shared;
use crate::layer::{Content, Leaf, dir};
use crate::sys;

impl Shared {
    pub(super) fn read(self: &Arc<Self>, ino: INodeNo, offset: u64, size: u32, reply: ReplyData) {
        let leaf = match self.file(ino) {
            Ok(file) => file.leaf.clone(),
            Err(error) => return reply.error(error),
        };
        match &leaf.content {
            Content::Sealed { image, ranges } => match slice(image.chunks(ranges), offset, size as usize) {
                Piece::One(bytes) => reply.data(bytes),
                Piece::Joined(bytes) => reply.data(&bytes),
            },
            Content::Held { stamp, .. } => {
                if let Some((reply, unsure)) = read_at_hand(&leaf, offset, size, reply) {
                    self.readers.run(stamp.inode.0, move || read_held(&leaf, offset, size, reply, unsure));
                }
            }
            Content::Path { stamp, .. } => {
                let (this, device) = (self.clone(), stamp.inode.0);
                self.readers.run(device, move || this.read_path(&leaf, offset, size, reply));
            }
            _ => reply.data(&[]),
        }
    }

    fn read_path(&self, leaf: &Leaf, offset: u64, size: u32, reply: ReplyData) {
        match self.open_path(leaf) {
            Ok(file) => read_file(&file, offset, size, reply),
            Err(error) => reply.error(error.into()),
        }
    }

    /// Opens what could not be held. Another file than was found, or a changed one, is shown as it is until the layer was read
    /// again.
    pub(super) fn open_path(&self, leaf: &Leaf) -> std::io::Result<File> {
        let Content::Path { root, path, stamp } = &leaf.content else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        let opened = dir::open(root, path, stamp);
        if !matches!(opened, Ok((_, true))) {
            self.found_stale();
        }
        opened.map(|(file, _)| file)
    }

    /// Finds data and holes; the kernel asks for those alone.
    pub(super) fn lseek(&self, ino: INodeNo, offset: i64, whence: i32, reply: ReplyLseek) {
        let leaf = match self.file(ino) {
            Ok(file) => file.leaf.clone(),
            Err(error) => return reply.error(error),
        };
        let size = leaf.meta.size.cast_signed();
        match (&leaf.content, whence) {
            _ if !(0..size).contains(&offset) => reply.error(Errno::ENXIO),
            (Content::Held { stamp, .. }, SEEK_DATA | SEEK_HOLE) => {
                self.readers.run(stamp.inode.0, move || seek_held(&leaf, offset, whence, reply));
            }
            // What was copied has no holes.
            (_, SEEK_DATA) => reply.offset(offset),
            (_, SEEK_HOLE) => reply.offset(size),
            _ => reply.error(Errno::EINVAL),
        }
    }
}

/// Answers from memory; gives the reply back where that does not have it all, and whether that could not be told.
fn read_at_hand(leaf: &Leaf, offset: u64, size: u32, reply: ReplyData) -> Option<(ReplyData, bool)> {
    let Content::Held { file, in_memory, stamp } = &leaf.content else { return Some((reply, false)) };
    with_buffer(size, |buffer| {
        let read = match sys::read_cached(file, buffer, offset) {
            // The end is where it was, or a disk has to say where it is.
            Ok(read) if read == buffer.len() || offset + read as u64 == stamp.size => Ok(read),
            Err(nix::errno::Errno::EOPNOTSUPP) => match in_memory.get() {
                Some(true) => dir::read_at(file, buffer, offset),
                known => return Some((reply, known.is_none())),
            },
            _ => return Some((reply, false)),
        };
        answer(reply, read.map(|read| &buffer[..read]));
        None
    })
}

fn read_held(leaf: &Leaf, offset: u64, size: u32, reply: ReplyData, unsure: bool) {
    let Content::Held { file, in_memory, .. } = &leaf.content else { return reply.data(&[]) };
    if unsure {
        // Another thread may have found out meanwhile.
        let _ = in_memory.set(sys::in_memory(file));
    }
    read_file(file, offset, size, reply);
}

fn seek_held(leaf: &Leaf, offset: i64, whence: i32, reply: ReplyLseek) {
    let Content::Held { file, .. } = &leaf.content else { return reply.error(Errno::EINVAL) };
    let whence = if whence == SEEK_DATA { Whence::SeekData } else { Whence::SeekHole };
    // Its own position is nobody's: reads say where.
    match lseek(file, offset, whence) {
        Ok(found) => reply.offset(found),
        Err(errno) => reply.error(std::io::Error::from(errno).into()),
    }
}

fn read_file(file: &File, offset: u64, size: u32, reply: ReplyData) {
    with_buffer(size, |buffer| {
        let read = dir::read_at(file, buffer, offset);
        answer(reply, read.map(|read| &buffer[..read]));
    });
}

fn answer(reply: ReplyData, read: std::io::Result<&[u8]>) {
    match read {
        Ok(bytes) => reply.data(bytes),
        Err(error) => reply.error(error.into()),
    }
}

thread_local! {
    /// What a thread reads files into: memory that is fresh for each request costs more than the copy into it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_buffer<T>(size: u32, read: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        let size = size as usize;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        read(&mut buffer[..size])
    })
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
