//! What an image holds: names, attributes, and where the content is.

use super::zisofs::Zisofs;

/// A time as recorded in an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01 UTC, negative before.
    pub secs: i64,
    /// Nanoseconds, below 10⁹.
    pub nanos: u32,
}

/// A range of bytes in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    /// Offset of the first byte in the image.
    pub start: u64,
    /// Number of bytes, at least 1.
    pub len: u64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory with its entries, sorted by name.
    Dir(Vec<Entry>),
    /// A regular file: its content is these ranges of the image, in order. All lie inside it.
    File(Vec<Range>),
    /// A regular file that is stored compressed; its size is that of the content.
    Compressed(Box<Zisofs>),
    /// A symbolic link: its target, 1 to 4095 bytes without NUL.
    Symlink(Vec<u8>),
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// One name in the tree and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The name, as bytes; empty for the root.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits (`0o7777`).
    pub mode: u16,
    /// Owner; 0 when the image records none.
    pub uid: u32,
    /// Group; 0 when the image records none.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Bytes of a file or of a link's target, 0 for anything else.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// A file's number: its names share it, and nothing but the name differs between them. Other files have other numbers.
    /// Of a directory, where its own record is.
    pub id: u64,
}

/// The index of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The volume label, without padding.
    pub label: String,
    /// The root directory.
    pub root: Entry,
    /// Number of entries, the root not counted.
    pub entries: usize,
}

impl Entry {
    /// The entries of a directory; none for anything else.
    pub fn children(&self) -> &[Entry] {
        match &self.kind {
            Kind::Dir(children) => children,
            _ => &[],
        }
    }

    /// The entry at a `/`-separated path below this one; empty components are skipped.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        path.split('/').filter(|part| !part.is_empty()).try_fold(self, |dir, part| {
            let children = dir.children();
            let at = children.binary_search_by(|child| child.name.as_slice().cmp(part.as_bytes())).ok()?;
            Some(&children[at])
        })
    }

    /// The content of a file, gathered from `image`, the bytes it was indexed from, and decompressed
    /// where it is stored compressed; `None` when it is no file, is damaged, or `image` is another one.
    ///
    /// Takes `size` bytes of memory, for a compressed file up to 4 GiB: check that first.
    pub fn content(&self, image: &[u8]) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        match &self.kind {
            Kind::File(ranges) => {
                for range in ranges {
                    content.extend_from_slice(range.of(image)?);
                }
            }
            Kind::Compressed(zisofs) => {
                for block in zisofs.blocks(image, self.size) {
                    content.extend_from_slice(&block.ok()?);
                }
            }
            _ => return None,
        }
        Some(content)
    }
}

impl Range {
    /// These bytes of an image; `None` when it is shorter.
    pub fn of(self, image: &[u8]) -> Option<&[u8]> {
        let start = usize::try_from(self.start).ok()?;
        image.get(start..start.checked_add(usize::try_from(self.len).ok()?)?)
    }
}
