//! How much an image may ask for, and the account of it.

use super::error::{ReadError, text};
use super::tree::{Entry, Kind, Range};
use super::zisofs::Zisofs;

/// How much an image may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries of all directories together, the root not counted.
    pub entries: usize,
    /// Directories below one another.
    pub depth: usize,
    /// Bytes of metadata read while indexing. Bounds the time: a crafted image can point each of its
    /// records at the same megabytes of continuation areas.
    pub work: u64,
    /// Bytes that the index takes, with the path of each directory, which those who work with the index
    /// make of it. Bounds the memory: names and targets can share continuation areas, so that few bytes say much.
    pub memory: u64,
}

impl Limits {
    /// Limits for an image of `len` bytes: a million entries, 128 levels, and work and memory in
    /// proportion to the image.
    ///
    /// Indexing an honest image reads each byte of its metadata once or twice; at most 2 GiB are read,
    /// about a second. An honest entry takes 112 bytes and its name here, and with Rock Ridge more than that in the
    /// image, so that any number of empty files, links and whiteouts is shown. A plain record can be as short as 40
    /// bytes: the constant is for 40,000 empty files of that kind.
    pub fn for_len(len: usize) -> Self {
        let len = len as u64;
        Self {
            entries: 1_000_000,
            depth: 128,
            work: (64 << 20) + len.min(1 << 25) * 64,
            memory: (4 << 20) + len,
        }
    }
}

/// What of [`Limits`] is spent.
#[derive(Debug)]
pub(super) struct Account {
    limits: Limits,
    pub(super) entries: usize,
    memory: u64,
    work: u64,
}

impl Account {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, entries: 0, memory: 0, work: 0 }
    }

    /// Charges for metadata that is read.
    pub(super) fn work(&mut self, path: &[Vec<u8>], bytes: u64) -> Result<(), ReadError> {
        self.work = self.work.saturating_add(bytes);
        if self.work > self.limits.work {
            let limit = self.limits.work;
            return Err(ReadError::Limit { what: "bytes of metadata to read", limit, path: text(path) });
        }
        Ok(())
    }

    /// Charges for what is kept of a file that says it has several names.
    pub(super) fn linked(&mut self, path: &[Vec<u8>], entry: &Entry) -> Result<(), ReadError> {
        let more = match &entry.kind {
            Kind::File(ranges) => size_of_val(&ranges[..]),
            Kind::Compressed(zisofs) => size_of::<Zisofs>() + size_of_val(&zisofs.ranges[..]),
            Kind::Symlink(target) => target.len(),
            _ => 0,
        };
        self.bytes(path, size_of::<(u32, Entry, u64)>() + more)
    }

    /// Charges for one more entry of the directory `dir`.
    pub(super) fn entry(&mut self, dir: &[Vec<u8>], name: &[u8]) -> Result<(), ReadError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let limit = self.limits.entries as u64;
            return Err(ReadError::Limit { what: "entries", limit, path: text(dir) });
        }
        self.bytes(dir, size_of::<Entry>() + name.len())
    }

    /// Charges for a directory's path.
    pub(super) fn directory(&mut self, path: &[Vec<u8>]) -> Result<(), ReadError> {
        self.bytes(path, path.iter().map(|part| part.len() + 1).sum())
    }

    /// Charges for a link's target.
    pub(super) fn target(&mut self, path: &[Vec<u8>], target: &[u8]) -> Result<(), ReadError> {
        self.bytes(path, target.len())
    }

    /// Charges for one more range of a file.
    pub(super) fn range(&mut self, path: &[Vec<u8>]) -> Result<(), ReadError> {
        self.bytes(path, size_of::<Range>())
    }

    fn bytes(&mut self, path: &[Vec<u8>], bytes: usize) -> Result<(), ReadError> {
        self.memory = self.memory.saturating_add(bytes as u64);
        if self.memory > self.limits.memory {
            let limit = self.limits.memory;
            return Err(ReadError::Limit { what: "bytes of names and attributes", limit, path: text(path) });
        }
        Ok(())
    }

    /// Checks that one more directory may be entered below `path`.
    pub(super) fn level(&self, path: &[Vec<u8>]) -> Result<(), ReadError> {
        if path.len() >= self.limits.depth {
            let limit = self.limits.depth as u64;
            return Err(ReadError::Limit { what: "nested directories", limit, path: text(path) });
        }
        Ok(())
    }
}
