//! Reading an ISO 9660 image that is in memory, from whoever made it.
//!
//! An image is indexed once, whole, into an immutable [`Image`]: names, attributes, and for each
//! file the byte ranges that hold it. Nothing is extracted and nothing is read later, so the device
//! that the bytes came from can be gone. The tree is Rock Ridge's where there is one, else Joliet's,
//! else the plain one.
//!
//! Images may be hostile. `hadris-iso` parses the records; this module is what makes the result safe
//! to show to programs: every range lies inside the image, no directory is reached twice (no loops),
//! names are names (no `/`, no NUL, no `.` or `..`, none twice), and depth, number of entries,
//! lengths and the work of parsing are bounded ([`Limits`]). An image that breaks a rule is refused
//! whole: a half-read configuration is worse than the one before.

use std::collections::HashSet;
use std::convert::Infallible;

use hadris_fs::sync::FileSystem as _;
use hadris_fs::{DirCursor, Error as IsoError, ErrorKind, FileType, Metadata, MountOptions, NodeId};
use hadris_io::ErrorType;
use hadris_iso::CacheOptions;
use hadris_iso::sync::IsoFs;
use hadris_storage::{BlockIndex, BlockSize};

/// Linux's `NAME_MAX`: longer names could not be looked up.
const NAME_MAX: usize = 255;
/// Linux's `PATH_MAX` without the NUL: the longest symbolic link target.
const TARGET_MAX: usize = 4095;
/// Byte offset of the first volume descriptor (ECMA-119, 7.1.1: sixteen 2048-byte sectors before it).
const DESCRIPTORS: usize = 16 * 2048;

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
}

impl Limits {
    /// Limits for an image of `len` bytes: a million entries, 128 levels, and work in proportion to
    /// the image (indexing an honest one reads each metadata block a few dozen times).
    pub fn for_len(len: usize) -> Self {
        let work = (64 << 20) + (len as u64).min(1 << 27) * 64;
        Self { entries: 1_000_000, depth: 128, work }
    }
}

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No ISO 9660 volume descriptor where one belongs.
    #[error("not an ISO 9660 image ({len} bytes)")]
    NotIso {
        /// Length of the image in bytes.
        len: usize,
    },
    /// A structure in the image is damaged.
    #[error("damaged ISO 9660 image at `/{path}`: {reason}")]
    Damaged {
        /// Path in the image, empty for the volume itself.
        path: String,
        /// What the parser found.
        reason: String,
    },
    /// A directory that is its own ancestor, or is reached by two paths.
    #[error("directory `/{path}` of the image is reached twice")]
    Loop {
        /// The second path.
        path: String,
    },
    /// A name that no directory may hold.
    #[error("directory `/{dir}` of the image has an entry named {name:?}: {reason}")]
    Name {
        /// The directory.
        dir: String,
        /// The name, with replacement characters where it is not UTF-8.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// File content that would lie outside the image.
    #[error("`/{path}` lies outside the image: bytes {start} to {end} of {len}")]
    OutOfRange {
        /// Path of the file.
        path: String,
        /// First byte.
        start: u64,
        /// Byte after the last one.
        end: u64,
        /// Length of the image in bytes.
        len: u64,
    },
    /// One of [`Limits`].
    #[error("the image has more {what} than the {limit} allowed (at `/{path}`)")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
        /// Where it was reached.
        path: String,
    },
}

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory with its entries, sorted by name.
    Dir(Vec<Entry>),
    /// A regular file: its content is these ranges of the image, in order. All lie inside it.
    File(Vec<Range>),
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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Where the first directory record is: the same for the names of one hard-linked file.
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

    /// The content of a file, gathered from `image`, the bytes it was indexed from; `None` when it
    /// is no file or `image` is another one.
    pub fn content(&self, image: &[u8]) -> Option<Vec<u8>> {
        let Kind::File(ranges) = &self.kind else { return None };
        let mut content = Vec::new();
        for range in ranges {
            let start = usize::try_from(range.start).ok()?;
            let len = usize::try_from(range.len).ok()?;
            content.extend_from_slice(image.get(start..start.checked_add(len)?)?);
        }
        Some(content)
    }
}

/// Indexes an image under the limits of [`Limits::for_len`].
///
/// # Errors
/// [`ReadError`]; never panics, whatever the bytes are.
pub fn index(image: &[u8]) -> Result<Image, ReadError> {
    index_within(image, Limits::for_len(image.len()))
}

/// Indexes an image.
///
/// # Errors
/// [`ReadError`]; never panics, whatever the bytes are.
pub fn index_within(image: &[u8], limits: Limits) -> Result<Image, ReadError> {
    if image.get(DESCRIPTORS + 1..DESCRIPTORS + 6) != Some(b"CD001") {
        return Err(ReadError::NotIso { len: image.len() });
    }
    let memory = Memory { bytes: image, left: limits.work };
    let iso = IsoFs::mount(memory, MountOptions::new())
        .map_err(|error| damaged(limits, &[], error.into_error()))?
        // Only the hard-link index: cached blocks would be work that is not counted.
        .with_cache(
            CacheOptions::new().with_blocks(0).with_records(0).with_links(2 * limits.entries.min(1 << 20)),
        );
    let mut indexer = Indexer { iso, limits, len: image.len() as u64, entries: 0, seen: HashSet::new() };
    let mut buffer = [0; 384];
    let label = indexer.iso.label(&mut buffer).ok().flatten().unwrap_or_default().trim_end().to_owned();
    let root = indexer.root()?;
    Ok(Image { label, root, entries: indexer.entries })
}

struct Indexer<'a> {
    iso: IsoFs<Memory<'a>>,
    limits: Limits,
    len: u64,
    entries: usize,
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

impl Indexer<'_> {
    fn root(&mut self) -> Result<Entry, ReadError> {
        let node = self.iso.root();
        let meta = self.iso.stat(node).map_err(|error| damaged(self.limits, &[], error))?;
        let root = self.entry(Vec::new(), node, &meta, &[])?;
        let mut stack = vec![self.open(root, 0, node, &[])?];
        let mut path: Vec<Vec<u8>> = Vec::new();
        loop {
            // The stack starts with the root and the loop returns when that is popped.
            let Some(dir) = stack.last_mut() else { unreachable!("the root is popped last") };
            let next = self.iso.readdir(dir.node, dir.cursor).map_err(|e| damaged(self.limits, &path, e))?;
            if let Some(found) = next {
                if found.next_cursor() == dir.cursor {
                    return Err(damaged_because(&path, "the listing does not advance"));
                }
                dir.cursor = found.next_cursor();
                let name = found.name().as_bytes().to_vec();
                self.check_name(&path, &name)?;
                let id = found.node();
                path.push(name.clone());
                // The listing shows a damaged entry without its attributes; stat refuses it.
                let meta = self.iso.stat(id).map_err(|e| damaged(self.limits, &path, e))?;
                let entry = self.entry(name, id, &meta, &path)?;
                path.pop();
                if meta.file_type() == FileType::Dir {
                    dir.subdirs.push((dir.children.len(), id));
                }
                dir.children.push(entry);
            } else if let Some((at, node)) = dir.subdirs.pop() {
                if path.len() >= self.limits.depth {
                    let limit = self.limits.depth as u64;
                    return Err(ReadError::Limit { what: "nested directories", limit, path: text(&path) });
                }
                let shell = dir.children[at].clone();
                path.push(shell.name.clone());
                let open = self.open(shell, at, node, &path)?;
                stack.push(open);
            } else if let Some(mut done) = stack.pop() {
                done.children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
                if let Some(twice) = done.children.windows(2).find(|pair| pair[0].name == pair[1].name) {
                    return Err(bad_name(&path, &twice[0].name, "the name is there twice"));
                }
                done.entry.kind = Kind::Dir(done.children);
                let Some(parent) = stack.last_mut() else { return Ok(done.entry) };
                path.pop();
                parent.children[done.at] = done.entry;
            }
        }
    }

    fn open(&mut self, entry: Entry, at: usize, node: NodeId, path: &[Vec<u8>]) -> Result<Open, ReadError> {
        if !self.seen.insert(node) {
            return Err(ReadError::Loop { path: text(path) });
        }
        Ok(Open { entry, at, node, cursor: DirCursor::START, children: Vec::new(), subdirs: Vec::new() })
    }

    fn check_name(&mut self, dir: &[Vec<u8>], name: &[u8]) -> Result<(), ReadError> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let limit = self.limits.entries as u64;
            return Err(ReadError::Limit { what: "entries", limit, path: text(dir) });
        }
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

    fn entry(
        &mut self,
        name: Vec<u8>,
        node: NodeId,
        meta: &Metadata,
        path: &[Vec<u8>],
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
            _ => return Err(damaged_because(path, "unknown file type")),
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

    fn ranges(&mut self, node: NodeId, size: u64, path: &[Vec<u8>]) -> Result<Vec<Range>, ReadError> {
        let mut ranges = Vec::new();
        let mut from = 0;
        let mut found = [hadris_fs::Extent::new(0, 0); 16];
        while from < size {
            let count =
                self.iso.extents(node, from, &mut found).map_err(|e| damaged(self.limits, path, e))?;
            if count == 0 {
                return Err(damaged_because(path, "the file's extents end before its content"));
            }
            for extent in &found[..count] {
                let (start, end) = (extent.offset(), extent.end());
                if extent.is_empty() || extent.file_offset() != from {
                    return Err(damaged_because(path, "the file's extents have a gap"));
                }
                if end > self.len || end - start != extent.len() {
                    return Err(ReadError::OutOfRange { path: text(path), start, end, len: self.len });
                }
                from = from.saturating_add(extent.len());
                ranges.push(Range { start, len: extent.len() });
            }
        }
        if from == size {
            Ok(ranges)
        } else {
            Err(damaged_because(path, "the file's extents exceed its size"))
        }
    }

    fn target(&mut self, node: NodeId, path: &[Vec<u8>]) -> Result<Vec<u8>, ReadError> {
        let mut buffer = [0; TARGET_MAX];
        let target = self.iso.readlink(node, &mut buffer).map_err(|e| damaged(self.limits, path, e))?;
        if target.is_empty() || target.contains(&0) {
            return Err(damaged_because(path, "the symbolic link has no usable target"));
        }
        Ok(target.to_vec())
    }
}

fn text(path: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&path.join(&b'/')).into_owned()
}

fn bad_name(dir: &[Vec<u8>], name: &[u8], reason: &'static str) -> ReadError {
    ReadError::Name { dir: text(dir), name: String::from_utf8_lossy(name).into_owned(), reason }
}

fn damaged_because(path: &[Vec<u8>], reason: &str) -> ReadError {
    ReadError::Damaged { path: text(path), reason: reason.to_owned() }
}

#[allow(clippy::needless_pass_by_value)] // Made to be called from `map_err`.
fn damaged(limits: Limits, path: &[Vec<u8>], error: IsoError<Infallible>) -> ReadError {
    if error.message() == OVERWORK {
        return ReadError::Limit { what: "bytes of metadata to read", limit: limits.work, path: text(path) };
    }
    ReadError::Damaged { path: text(path), reason: error.to_string() }
}

const OVERWORK: &str = "metadata budget spent";

/// The image as a block device that counts what is read.
struct Memory<'a> {
    bytes: &'a [u8],
    left: u64,
}

impl ErrorType for Memory<'_> {
    type Error = Infallible;
}

impl hadris_storage::sync::BlockDevice for Memory<'_> {
    fn block_size(&self) -> BlockSize {
        const BLOCK: BlockSize = match BlockSize::new(512) {
            Some(size) => size,
            None => unreachable!(),
        };
        BLOCK
    }

    fn block_count(&self) -> u64 {
        self.bytes.len() as u64 / 512
    }

    fn read_blocks(&mut self, first: BlockIndex, buf: &mut [u8]) -> Result<(), IsoError<Infallible>> {
        let Some(left) = self.left.checked_sub(buf.len() as u64) else {
            return Err(IsoError::new(ErrorKind::LimitExceeded, OVERWORK));
        };
        self.left = left;
        let range = first
            .get()
            .checked_mul(512)
            .and_then(|start| usize::try_from(start).ok())
            .and_then(|start| Some(start..start.checked_add(buf.len())?))
            .and_then(|range| self.bytes.get(range));
        match range {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(IsoError::new(ErrorKind::Corrupt, "a block lies outside the image")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::process::Command;

    use hadris_fs::{Content, Node, Tree};
    use hadris_iso::{IsoOptions, plan};
    use proptest::prelude::*;

    use super::*;

    fn written(tree: &Tree) -> Vec<u8> {
        let options = IsoOptions::default().with_rock_ridge();
        let size = usize::try_from(plan(tree, &options).unwrap().size()).unwrap();
        let mut image = vec![0; size];
        let device = hadris_storage::MemDevice::new(&mut image[..], BlockSize::new(2048).unwrap());
        let mut device = device;
        hadris_iso::sync::write(&mut device, tree, &options).unwrap();
        image
    }

    fn sample() -> Vec<u8> {
        let mut tree = Tree::new();
        tree.insert(".ctx/manifest.json", Node::file(Content::bytes("{}"))).unwrap();
        tree.insert("data/endpoints/storage", Node::file(Content::bytes("198.18.2.10\n"))).unwrap();
        tree.insert("data/empty", Node::file(Content::bytes(""))).unwrap();
        let long = "x".repeat(200);
        tree.insert(format!("data/{long}").as_str(), Node::file(Content::bytes(vec![7u8; 5000]))).unwrap();
        tree.insert("data/link", Node::symlink("endpoints/storage")).unwrap();
        written(&tree)
    }

    #[test]
    fn what_our_writer_wrote_is_indexed() {
        let bytes = sample();
        let image = index(&bytes).unwrap();
        let storage = image.root.get("data/endpoints/storage").unwrap();
        assert_eq!(storage.content(&bytes).unwrap(), b"198.18.2.10\n");
        assert_eq!(image.root.get("data/empty").unwrap().content(&bytes).unwrap(), b"");
        let long = image.root.get(&format!("/data/{}", "x".repeat(200))).unwrap();
        assert_eq!(long.content(&bytes).unwrap(), vec![7; 5000]);
        let link = image.root.get("data/link").unwrap();
        assert_eq!(link.kind, Kind::Symlink(b"endpoints/storage".to_vec()));
        assert!(image.root.get("data/nothing").is_none());
        assert_eq!(image.entries, 8);
    }

    #[test]
    fn other_bytes_are_not_an_image() {
        for bytes in [&b""[..], &vec![0; 32774], &vec![0xff; 100_000]] {
            assert!(matches!(index(bytes), Err(ReadError::NotIso { len }) if len == bytes.len()));
        }
    }

    #[test]
    fn limits_refuse() {
        let bytes = sample();
        let all = Limits::for_len(bytes.len());
        let few = index_within(&bytes, Limits { entries: 3, ..all });
        assert!(matches!(few, Err(ReadError::Limit { what: "entries", limit: 3, .. })), "{few:?}");
        let flat = index_within(&bytes, Limits { depth: 1, ..all });
        assert!(matches!(flat, Err(ReadError::Limit { what: "nested directories", .. })), "{flat:?}");
        let idle = index_within(&bytes, Limits { work: 20_000, ..all });
        assert!(matches!(idle, Err(ReadError::Limit { what: "bytes of metadata to read", .. })), "{idle:?}");
    }

    /// The offset of the directory record whose identifier is `name`.
    fn record(bytes: &[u8], name: &[u8]) -> usize {
        bytes.windows(name.len()).position(|window| window == name).unwrap() - 33
    }

    fn set_extent(bytes: &mut [u8], record: usize, block: u32) {
        bytes[record + 2..record + 6].copy_from_slice(&block.to_le_bytes());
        bytes[record + 6..record + 10].copy_from_slice(&block.to_be_bytes());
    }

    #[test]
    fn a_directory_that_contains_itself_is_refused() {
        let mut bytes = sample();
        let data = record(&bytes, b"DATA");
        let block = u32::from_le_bytes(bytes[data + 2..data + 6].try_into().unwrap());
        let inner = record(&bytes, b"ENDPOINT");
        set_extent(&mut bytes, inner, block);
        let error = index(&bytes).unwrap_err();
        assert!(matches!(error, ReadError::Loop { .. }), "{error}");
    }

    #[test]
    fn content_outside_the_image_is_refused() {
        let mut bytes = sample();
        let file = record(&bytes, b"STORAGE");
        set_extent(&mut bytes, file, u32::MAX / 2);
        let error = index(&bytes).unwrap_err();
        assert!(matches!(error, ReadError::OutOfRange { .. }), "{error}");
    }

    #[test]
    fn names_with_a_slash_are_never_shown() {
        let mut bytes = sample();
        // The NM entry: signature, length, version 1, no flags, then the name (RRIP 4.1.4).
        let at = bytes.windows(12).position(|w| w.starts_with(b"NM") && w.ends_with(b"storage")).unwrap();
        bytes[at + 7] = b'/';
        // Refused, or shown under the plain ISO 9660 name: never as it stands.
        if let Ok(image) = index(&bytes) {
            let mut stack = vec![&image.root];
            while let Some(entry) = stack.pop() {
                assert!(!entry.name.contains(&b'/'), "{entry:?}");
                stack.extend(entry.children());
            }
        }
    }

    /// Runs a mastering program over a tree with everything that Rock Ridge can say.
    fn mastered(program: &str, args: &[&str], target: &str) -> Option<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let deep = (0..12).fold(tree.clone(), |path, level| path.join(format!("level{level}")));
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::write(deep.join("bottom"), "deep").unwrap();
        std::fs::write(tree.join("Case"), "upper").unwrap();
        std::fs::write(tree.join("case"), "lower").unwrap();
        std::fs::write(tree.join("gr\u{fc}n"), "utf-8").unwrap();
        std::fs::write(tree.join("big"), vec![42; 3_000_000]).unwrap();
        std::fs::hard_link(tree.join("big"), tree.join("big-again")).unwrap();
        std::fs::write(tree.join("secret"), "s").unwrap();
        std::fs::set_permissions(tree.join("secret"), PermissionsExt::from_mode(0o600)).unwrap();
        symlink(target, tree.join("far")).unwrap();
        std::fs::create_dir(tree.join("many")).unwrap();
        for i in 0..300 {
            std::fs::write(tree.join(format!("many/file-{i:03}")), i.to_string()).unwrap();
        }
        let out = dir.path().join("out.iso");
        let run = Command::new(program).args(args).arg("-o").arg(&out).arg(&tree).output().ok()?;
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        Some(std::fs::read(&out).unwrap())
    }

    fn check_mastered(bytes: &[u8], target: &str) {
        let image = index(bytes).unwrap();
        let read = |path: &str| image.root.get(path).unwrap().content(bytes).unwrap();
        let deep = (0..12).fold(String::new(), |path, level| path + &format!("level{level}/"));
        assert_eq!(read(&(deep + "bottom")), b"deep");
        assert_eq!((read("Case"), read("case")), (b"upper".to_vec(), b"lower".to_vec()));
        assert_eq!(read("gr\u{fc}n"), b"utf-8");
        assert_eq!(read("big"), vec![42; 3_000_000]);
        assert_eq!(read("big-again"), vec![42; 3_000_000]);
        assert_eq!(read("many/file-217"), b"217");
        assert_eq!(image.root.get("many").unwrap().children().len(), 300);
        assert_eq!(image.root.get("secret").unwrap().mode, 0o600);
        assert_eq!(image.root.get("far").unwrap().kind, Kind::Symlink(target.into()));
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let mtime = image.root.get("secret").unwrap().mtime.secs;
        assert!(now.abs_diff(u64::try_from(mtime).unwrap()) < 86_400, "{mtime}");
    }

    #[test]
    fn reads_what_xorriso_makes() {
        let args = ["-as", "mkisofs", "-quiet", "-R", "-J", "-V", "CTX"];
        let target = "a directory/".repeat(30) + "b";
        match mastered("xorriso", &args, &target) {
            Some(bytes) => check_mastered(&bytes, &target),
            None => eprintln!("SKIPPED reads_what_xorriso_makes: no xorriso"),
        }
    }

    #[test]
    fn reads_what_genisoimage_makes() {
        // genisoimage never ends on targets of hundreds of components, and damages long ones.
        match mastered("genisoimage", &["-quiet", "-R", "-J", "-V", "CTX"], "../elsewhere/file") {
            Some(bytes) => {
                check_mastered(&bytes, "../elsewhere/file");
                assert_eq!(index(&bytes).unwrap().label, "CTX");
            }
            None => eprintln!("SKIPPED reads_what_genisoimage_makes: no genisoimage"),
        }
    }

    #[test]
    fn joliet_and_plain_images_are_read() {
        for (name, joliet) in [("Readable name.txt", true), ("READABLE.TXT", false)] {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(name), "content").unwrap();
            let out = tempfile::NamedTempFile::new().unwrap();
            let mut command = Command::new("genisoimage");
            command.args(["-quiet", "-V", "CTX"]).args(joliet.then_some("-J")).arg("-o").arg(out.path());
            let Ok(run) = command.arg(dir.path()).output() else {
                eprintln!("SKIPPED joliet_and_plain_images_are_read: no genisoimage");
                return;
            };
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            let bytes = std::fs::read(Path::new(out.path())).unwrap();
            let image = index(&bytes).unwrap();
            assert_eq!(image.root.get(name).unwrap().content(&bytes).unwrap(), b"content", "{image:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// Whatever bits are wrong: no panic, and what is accepted can be read.
        #[test]
        fn flipped_bits_never_panic(flips in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..40), cut in any::<prop::sample::Index>()) {
            thread_local!(static SAMPLE: Vec<u8> = sample());
            let mut bytes = SAMPLE.with(Clone::clone);
            // The system area is not read: aim behind it.
            let len = bytes.len() - DESCRIPTORS;
            for (at, bit) in flips {
                bytes[DESCRIPTORS + at.index(len)] ^= 1 << bit;
            }
            if cut.index(4) == 0 {
                bytes.truncate(DESCRIPTORS + cut.index(len));
            }
            if let Ok(image) = index(&bytes) {
                let mut stack = vec![&image.root];
                while let Some(entry) = stack.pop() {
                    if let Kind::File(_) = entry.kind {
                        prop_assert_eq!(entry.content(&bytes).map(|c| c.len() as u64), Some(entry.size));
                    }
                    stack.extend(entry.children());
                }
            }
        }
    }
}
