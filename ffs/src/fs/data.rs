//! Opening and reading files.

use std::os::unix::fs::FileExt;

use fuser::{Errno, FileHandle, FopenFlags, INodeNo, OpenAccMode, OpenFlags, ReplyData, ReplyOpen};

use super::Shared;
use crate::layer::Content;

impl Shared {
    pub(super) fn open(&self, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        if self.no_open {
            // ENOSYS is how FUSE says "never ask again".
            return reply.error(Errno::ENOSYS);
        }
        let cached = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
        match self.file(ino) {
            Err(error) => reply.error(error),
            Ok(file) => match &file.leaf.content {
                Content::Path { root, path, stamp } => match crate::layer::dir::open(root, path, stamp) {
                    Ok((open, true)) => reply.opened(FileHandle(self.files.insert(open)), cached),
                    // Another file than was scanned: shown as it is, past the caches of the one before.
                    Ok((open, false)) => {
                        self.found_stale();
                        let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NOFLUSH;
                        reply.opened(FileHandle(self.files.insert(open)), flags);
                    }
                    Err(error) => {
                        self.found_stale();
                        reply.error(error.into());
                    }
                },
                // No handle: the number stands for this content as long as anybody has it open.
                _ => reply.opened(FileHandle(0), cached),
            },
        }
    }

    pub(super) fn read(&self, ino: INodeNo, fh: FileHandle, offset: u64, size: u32, reply: ReplyData) {
        if let Some(open) = self.files.get(fh.0) {
            let mut buffer = vec![0; size as usize];
            return match read_full(&open, &mut buffer, offset) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(error.into()),
            };
        }
        match self.file(ino).map(|file| file.leaf.clone()) {
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
                        self.found_stale();
                        reply.error(Errno::ESTALE);
                    }
                    Err(error) => {
                        self.found_stale();
                        reply.error(error.into());
                    }
                },
                _ => reply.data(&[]),
            },
        }
    }
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
