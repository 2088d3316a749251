//! From the root to every entry, each checked before anything is made of it.

use std::collections::HashSet;

use hadris_fs::sync::FileSystem as _;
use hadris_fs::{DirCursor, Extent, FileType, Metadata, NodeId};
use hadris_iso::sync::IsoFs;

use super::error::{ReadError, bad_name, damaged, parser, text};
use super::limits::{Account, Limits};
use super::memory::Memory;
use super::tree::{Entry, Image, Kind, Range, Time};

/// Linux's `NAME_MAX`: longer names could not be looked up.
const NAME_MAX: usize = 255;
/// Linux's `PATH_MAX` without the NUL: the longest symbolic link target.
const TARGET_MAX: usize = 4095;

/// The names from the root down to an entry.
type Path = [Vec<u8>];

/// A walk over an image.
pub(super) struct Walk<'a> {
    iso: IsoFs<Memory<'a>>,
    limits: Limits,
    account: Account,
    /// Length of the image.
    len: u64,
    /// Directories that were entered.
    seen: HashSet<NodeId>,
}

/// A directory that is being read: depth is bounded by [`Limits`], so the stack is a vector and not
/// the thread's.
struct Open {
    entry: Entry,
    /// Its place in its parent's `children`.
    at: usize,
    node: NodeId,
    cursor: DirCursor,
    children: Vec<Entry>,
    subdirs: Vec<(usize, NodeId)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(iso: IsoFs<Memory<'a>>, limits: Limits, len: usize) -> Self {
        Self { iso, limits, account: Account::new(limits), len: len as u64, seen: HashSet::new() }
    }

    pub(super) fn run(mut self) -> Result<Image, ReadError> {
        let mut buffer = [0; 384];
        let label = self.iso.label(&mut buffer).ok().flatten().unwrap_or_default().trim_end().to_owned();
        let root = self.root()?;
        Ok(Image { label, root, entries: self.account.entries })
    }

    fn root(&mut self) -> Result<Entry, ReadError> {
        let node = self.iso.root();
        let meta = self.iso.stat(node).map_err(|error| parser(self.limits, &[], error))?;
        let root = self.entry(Vec::new(), node, &meta, &[])?;
        let mut stack = vec![self.open(root, 0, node, &[])?];
        let mut path: Vec<Vec<u8>> = Vec::new();
        loop {
            // The stack starts with the root and the loop returns when that is popped.
            let Some(dir) = stack.last_mut() else { unreachable!("the root is popped last") };
            if self.next(dir, &mut path)? {
                continue;
            }
            if let Some((at, node)) = dir.subdirs.pop() {
                self.account.level(&path)?;
                let shell = dir.children[at].clone();
                path.push(shell.name.clone());
                let open = self.open(shell, at, node, &path)?;
                stack.push(open);
            } else if let Some(done) = stack.pop() {
                let (entry, at) = close(done, &path)?;
                let Some(parent) = stack.last_mut() else { return Ok(entry) };
                path.pop();
                parent.children[at] = entry;
            }
        }
    }

    /// Reads the next entry of a directory; `false` when it has no more.
    fn next(&mut self, dir: &mut Open, path: &mut Vec<Vec<u8>>) -> Result<bool, ReadError> {
        let found = self.iso.readdir(dir.node, dir.cursor).map_err(|e| parser(self.limits, path, e))?;
        let Some(found) = found else { return Ok(false) };
        if found.next_cursor() == dir.cursor {
            return Err(damaged(path, "the listing does not advance"));
        }
        dir.cursor = found.next_cursor();
        let name = found.name().as_bytes().to_vec();
        self.account.entry(path, &name)?;
        check_name(path, &name)?;
        let node = found.node();
        path.push(name.clone());
        // The listing shows a damaged entry without its attributes; stat refuses it.
        let meta = self.iso.stat(node).map_err(|e| parser(self.limits, path, e))?;
        let entry = self.entry(name, node, &meta, path)?;
        path.pop();
        if meta.file_type() == FileType::Dir {
            dir.subdirs.push((dir.children.len(), node));
        }
        dir.children.push(entry);
        Ok(true)
    }

    fn open(&mut self, entry: Entry, at: usize, node: NodeId, path: &Path) -> Result<Open, ReadError> {
        if !self.seen.insert(node) {
            return Err(ReadError::Loop { path: text(path) });
        }
        Ok(Open { entry, at, node, cursor: DirCursor::START, children: Vec::new(), subdirs: Vec::new() })
    }

    fn entry(
        &mut self,
        name: Vec<u8>,
        node: NodeId,
        meta: &Metadata,
        path: &Path,
    ) -> Result<Entry, ReadError> {
        let mut size = 0;
        let kind = match meta.file_type() {
            FileType::Dir => Kind::Dir(Vec::new()),
            FileType::File => {
                let ranges = self.ranges(node, meta.len(), path)?;
                size = meta.len();
                Kind::File(ranges)
            }
            FileType::Symlink => {
                let target = self.target(node, path)?;
                size = target.len() as u64;
                Kind::Symlink(target)
            }
            FileType::CharDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => return Err(damaged(path, "unknown file type")),
        };
        let owner = meta.owner();
        let mtime = meta.modified().map_or(Time::default(), |time| Time {
            secs: time.unix_seconds(),
            nanos: time.nanoseconds().min(999_999_999),
        });
        Ok(Entry {
            name,
            kind,
            // Permissions::MASK is 0o7777: the bits fit.
            mode: (meta.permissions().bits() & 0o7777) as u16,
            uid: owner.map_or(0, hadris_fs::Owner::uid),
            gid: owner.map_or(0, hadris_fs::Owner::gid),
            mtime,
            size,
            device: meta.device().map_or((0, 0), |device| (device.major(), device.minor())),
            id: node.get(),
        })
    }

    fn ranges(&mut self, node: NodeId, size: u64, path: &Path) -> Result<Vec<Range>, ReadError> {
        let outside = |start, end| ReadError::OutOfRange { path: text(path), start, end, len: self.len };
        if size > self.len {
            // A file could name the same bytes of the image again and again.
            return Err(outside(0, size));
        }
        let mut ranges = Vec::new();
        let mut from = 0;
        let mut found = [Extent::new(0, 0); 16];
        while from < size {
            let count = self.iso.extents(node, from, &mut found).map_err(|e| parser(self.limits, path, e))?;
            if count == 0 {
                return Err(damaged(path, "the file's extents end before its content"));
            }
            for extent in &found[..count] {
                let (start, end) = (extent.offset(), extent.end());
                if extent.is_empty() || extent.file_offset() != from {
                    return Err(damaged(path, "the file's extents have a gap"));
                }
                if end > self.len || end - start != extent.len() {
                    return Err(ReadError::OutOfRange { path: text(path), start, end, len: self.len });
                }
                from = from.saturating_add(extent.len());
                self.account.range(path)?;
                ranges.push(Range { start, len: extent.len() });
            }
        }
        if from == size { Ok(ranges) } else { Err(damaged(path, "the file's extents exceed its size")) }
    }

    fn target(&mut self, node: NodeId, path: &Path) -> Result<Vec<u8>, ReadError> {
        let mut buffer = [0; TARGET_MAX];
        let target = self.iso.readlink(node, &mut buffer).map_err(|e| parser(self.limits, path, e))?;
        if target.is_empty() || target.contains(&0) {
            return Err(damaged(path, "the symbolic link has no usable target"));
        }
        self.account.target(path, target)?;
        Ok(target.to_vec())
    }
}

/// Sorts what a directory has, and refuses names that are there twice.
fn close(mut dir: Open, path: &Path) -> Result<(Entry, usize), ReadError> {
    dir.children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    if let Some(twice) = dir.children.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(bad_name(path, &twice[0].name, "the name is there twice"));
    }
    dir.children.shrink_to_fit();
    dir.entry.kind = Kind::Dir(dir.children);
    Ok((dir.entry, dir.at))
}

fn check_name(dir: &Path, name: &[u8]) -> Result<(), ReadError> {
    let reason = match name {
        b"" => "it is empty",
        b"." | b".." => "it stands for a directory",
        long if long.len() > NAME_MAX => "it is longer than 255 bytes",
        _ if name.contains(&b'/') => "it has a slash",
        _ if name.contains(&0) => "it has a NUL",
        _ => return Ok(()),
    };
    Err(bad_name(dir, name, reason))
}
