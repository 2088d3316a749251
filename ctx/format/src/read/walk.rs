//! From the root to every entry, each checked before anything is made of it.

use std::collections::{BTreeMap, HashMap};

use super::error::{ReadError, bad_name, damaged, text, unsupported};
use super::limits::{Account, Limits};
use super::name;
use super::record::{Record, Records};
use super::susp::{Compressed, Entries};
use super::time;
use super::tree::{Entry, Image, Kind, Range};
use super::volume::{Names, Volume};
use super::zisofs::Zisofs;

/// Linux's `NAME_MAX`: longer names could not be looked up.
const NAME_MAX: usize = 255;
/// Linux's `PATH_MAX` without the NUL: the longest symbolic link target.
const TARGET_MAX: usize = 4095;
/// Extents that Linux reads of one file. Each block of a compressed file is looked for in all of them.
const COMPRESSED_EXTENTS: usize = 100;
/// The mode of what has no Rock Ridge: anything could be a program, and nothing can be written.
const PLAIN_MODE: u32 = 0o555;

/// The type of a file in its mode (inode(7)).
const TYPE: u32 = 0o170_000;
const DIR: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// The names from the root down to an entry.
type Path = [Vec<u8>];

/// A walk over an image.
pub(super) struct Walk<'a> {
    volume: Volume<'a>,
    account: Account,
    /// Where the directories that were entered begin and end.
    seen: BTreeMap<u64, u64>,
    /// The files so far, by which each gets its number.
    files: u64,
    /// Files that say they have several names, by their serial number and all that is shown of them: what
    /// differs in anything is not the same file, whatever the image says.
    linked: HashMap<(u32, Entry), u64>,
}

/// A directory whose subdirectories are being read: depth is bounded by [`Limits`], so the stack is a
/// vector and not the thread's.
struct Open {
    entry: Entry,
    /// Its place in its parent's `children`.
    at: usize,
    children: Vec<Entry>,
    /// The first child that may be a directory and was not entered.
    next: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(image: &'a [u8], limits: Limits) -> Result<Self, ReadError> {
        let mut account = Account::new(limits);
        let volume = Volume::find(image, &mut account)?;
        Ok(Self { volume, account, seen: BTreeMap::new(), files: 0, linked: HashMap::new() })
    }

    pub(super) fn run(mut self) -> Result<Image, ReadError> {
        let mut path: Vec<Vec<u8>> = Vec::new();
        let entry = self.directory(Vec::new(), self.volume.root, &path)?;
        let mut stack = vec![self.open(entry, 0, &path)?];
        loop {
            // The stack starts with the root and the loop returns when that is popped.
            let Some(dir) = stack.last_mut() else { unreachable!("the root is popped last") };
            let rest = &dir.children[dir.next..];
            if let Some(skipped) = rest.iter().position(|child| matches!(child.kind, Kind::Dir(_))) {
                let at = dir.next + skipped;
                dir.next = at + 1;
                self.account.level(&path)?;
                let shell = dir.children[at].clone();
                path.push(shell.name.clone());
                let open = self.open(shell, at, &path)?;
                stack.push(open);
            } else if let Some(Open { mut entry, at, children, .. }) = stack.pop() {
                entry.kind = Kind::Dir(children);
                let Some(parent) = stack.last_mut() else {
                    let entries = self.account.entries;
                    return Ok(Image { label: self.volume.label, root: entry, entries });
                };
                path.pop();
                parent.children[at] = entry;
            }
        }
    }

    fn open(&mut self, entry: Entry, at: usize, path: &Path) -> Result<Open, ReadError> {
        let own = self.volume.record(path, entry.id)?;
        let start = self.volume.offset(own.block());
        let range = self.volume.range(path, start, own.len())?;
        self.enter(range, path)?;
        self.account.work(path, range.len)?;
        self.account.directory(path)?;
        let mut path = path.to_vec();
        let mut children = Vec::new();
        let mut records = self.volume.records(range);
        while let Some(record) = records.next() {
            let record = record.ok_or_else(|| damaged(&path, "a directory record has a wrong length"))?;
            if let Some(child) = self.child(record, &mut records, &mut path)? {
                children.push(child);
            }
        }
        // Stable: of one name the first comes first.
        children.sort_by(|a, b| a.name.cmp(&b.name));
        self.unite_twins(&mut children, &path)?;
        children.shrink_to_fit();
        Ok(Open { entry, at, children, next: 0 })
    }

    /// Notes that a directory is entered. No honest image has two that overlap; in a forged one the same record could be
    /// the beginning of another file in each.
    fn enter(&mut self, range: Range, path: &Path) -> Result<(), ReadError> {
        if self.seen.contains_key(&range.start) {
            return Err(ReadError::Loop { path: text(path) });
        }
        // An empty one has a place, too.
        let end = range.start + range.len.max(1);
        // None of them overlap: of those that begin before the end, the last one ends last.
        if self.seen.range(..end).next_back().is_some_and(|(_, other)| *other > range.start) {
            return Err(damaged(path, "the directory overlaps another one"));
        }
        self.seen.insert(range.start, end);
        Ok(())
    }

    /// The entry of a record, and of those that follow it with more of the same file; `None` for one that is not shown.
    fn child(
        &mut self,
        record: Record<'a>,
        records: &mut Records<'a>,
        dir: &mut Vec<Vec<u8>>,
    ) -> Result<Option<Entry>, ReadError> {
        let mut extents = vec![record];
        let mut last = record;
        while !last.is_final() {
            last = records
                .next()
                .flatten()
                .filter(|next| next.name() == record.name())
                .ok_or_else(|| damaged(dir, "a file of several extents lacks one"))?;
            self.account.range(dir)?;
            extents.push(last);
        }
        if record.is_dot() || last.is_associated() {
            return Ok(None);
        }
        let (entries, name) = match self.volume.names {
            Names::Joliet => (Entries::default(), name::joliet(record.name())),
            Names::RockRidge(_) | Names::Plain => {
                let mut entries = self.entries(&record, dir)?;
                let name = std::mem::take(&mut entries.name);
                (entries, if name.is_empty() { name::plain(record.name()) } else { name })
            }
        };
        // Linux does not list what has no name. It lists names that are too long, but nobody can look them up.
        let unreachable = self.volume.names == Names::Joliet && name.len() > NAME_MAX;
        if entries.relocated || name.is_empty() || unreachable {
            return Ok(None);
        }
        check_name(dir, &name)?;
        self.account.entry(dir, &name)?;
        dir.push(name.clone());
        let entry = match entries.child {
            Some(block) => self.directory(name, self.volume.offset(block), dir),
            None if record.is_dir() => self.directory(name, self.volume.offset(record.block()), dir),
            None => self.file(name, &extents, &entries, dir),
        };
        dir.pop();
        entry.map(Some)
    }

    /// A directory by its own record, which is the first in it and has its attributes.
    fn directory(&mut self, name: Vec<u8>, at: u64, path: &Path) -> Result<Entry, ReadError> {
        let own = self.volume.record(path, at)?;
        let entries = if path.is_empty() { self.root_entries(&own)? } else { self.entries(&own, path)? };
        let mode = entries.posix.map_or(DIR | PLAIN_MODE, |posix| posix.mode);
        if !own.is_dir() || mode & TYPE != DIR || !own.is_final() || entries.child.is_some() {
            return Err(damaged(path, "its own record says that it is no directory"));
        }
        Ok(make(name, Kind::Dir(Vec::new()), 0, own.at, &own, &entries))
    }

    /// What the system use entries of a record say.
    fn entries(&mut self, record: &Record, path: &Path) -> Result<Entries, ReadError> {
        match self.volume.names {
            Names::RockRidge(skip) => Entries::of(&self.volume, &mut self.account, path, record, skip),
            Names::Plain => Entries::unannounced(&self.volume, &mut self.account, path, record),
            Names::Joliet => Ok(Entries::default()),
        }
    }

    /// The root's own record has the entry that says what all others skip, and skips nothing itself; except where
    /// something else stands before it too.
    fn root_entries(&mut self, own: &Record) -> Result<Entries, ReadError> {
        let Names::RockRidge(skip) = self.volume.names else { return self.entries(own, &[]) };
        let skip = if own.system_use().starts_with(b"SP") { 0 } else { skip };
        Entries::of(&self.volume, &mut self.account, &[], own, skip)
    }

    fn file(
        &mut self,
        name: Vec<u8>,
        extents: &[Record],
        entries: &Entries,
        path: &Path,
    ) -> Result<Entry, ReadError> {
        let first = extents[0];
        let mode = entries.posix.map_or(FILE | PLAIN_MODE, |posix| posix.mode);
        let (kind, size) = match mode & TYPE {
            FILE => {
                entries.check_content(path)?;
                let ranges = self.ranges(extents, path)?;
                let stored = ranges.iter().map(|range| range.len).sum();
                match entries.compressed {
                    Some(compressed) => (zisofs(compressed, ranges, path)?, compressed.size.into()),
                    None => (Kind::File(ranges), stored),
                }
            }
            0o120_000 => {
                let target = &entries.target;
                if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
                    return Err(damaged(path, "the symbolic link has no usable target"));
                }
                self.account.target(path, target)?;
                (Kind::Symlink(target.clone()), target.len() as u64)
            }
            0o020_000 => (Kind::CharDevice, 0),
            0o060_000 => (Kind::BlockDevice, 0),
            0o010_000 => (Kind::Fifo, 0),
            0o140_000 => (Kind::Socket, 0),
            DIR => return Err(damaged(path, "only its mode says that it is a directory")),
            other => return Err(damaged(path, &format!("there is no file type {other:#o}"))),
        };
        // A number of its own, and not the place of its record: whatever the image says, only `unite_links` makes two
        // names one file.
        self.files += 1;
        let mut entry = make(name, kind, size, self.files, &first, entries);
        if let Some(posix) = entries.posix.filter(|posix| posix.links > 1) {
            self.unite_links(&mut entry, posix.serial, path)?;
        }
        Ok(entry)
    }

    /// Gives the names of one file one number: those with its serial number, or without one, with its content.
    fn unite_links(&mut self, entry: &mut Entry, serial: u32, path: &Path) -> Result<(), ReadError> {
        if serial == 0 && entry.size == 0 {
            return Ok(());
        }
        let key = (serial, Entry { name: Vec::new(), id: 0, ..entry.clone() });
        if let Some(first) = self.linked.get(&key) {
            entry.id = *first;
            return Ok(());
        }
        self.account.linked(path, entry)?;
        self.linked.insert(key, entry.id);
        Ok(())
    }

    fn ranges(&mut self, extents: &[Record], path: &Path) -> Result<Vec<Range>, ReadError> {
        let mut ranges = Vec::new();
        let mut size = 0;
        for (at, extent) in extents.iter().enumerate() {
            if extent.len() == 0 {
                continue;
            }
            if extent.is_interleaved() {
                return Err(unsupported(path, "an interleaved file", "store it in one piece"));
            }
            if at + 1 < extents.len() && !self.volume.fills_blocks(extent.len()) {
                return Err(damaged(path, "an extent that is not the file's last ends within a block"));
            }
            let range = self.volume.range(path, self.volume.offset(extent.block()), extent.len())?;
            self.account.range(path)?;
            size += range.len;
            ranges.push(range);
        }
        if size > self.volume.len() {
            // A file could name the same bytes of the image again and again.
            return Err(damaged(path, "its extents together have more bytes than the image"));
        }
        Ok(ranges)
    }

    /// Keeps the first of those that got one name, as it is the one that Linux finds. Two that *have* one name are refused.
    fn unite_twins(&mut self, children: &mut Vec<Entry>, path: &Path) -> Result<(), ReadError> {
        if matches!(self.volume.names, Names::RockRidge(_)) {
            return match children.windows(2).find(|pair| pair[0].name == pair[1].name) {
                Some(pair) => Err(bad_name(path, &pair[0].name, "the name is there twice")),
                None => Ok(()),
            };
        }
        let before = children.len();
        children.dedup_by(|later, first| later.name == first.name);
        self.account.entries -= before - children.len();
        Ok(())
    }
}

fn zisofs(compressed: Compressed, ranges: Vec<Range>, path: &Path) -> Result<Kind, ReadError> {
    let Compressed { algorithm, header, shift, .. } = compressed;
    if ranges.len() > COMPRESSED_EXTENTS {
        let what = format!("a compressed file of more than {COMPRESSED_EXTENTS} extents");
        return Err(unsupported(path, what, "store it in one piece"));
    }
    if let Some(zisofs) = Zisofs::new(algorithm, header, shift, ranges) {
        return Ok(Kind::Compressed(Box::new(zisofs)));
    }
    let algorithm = String::from_utf8_lossy(&algorithm);
    let what = format!(
        "a file that is compressed in a way that Linux does not read either ({algorithm}, 2^{shift})"
    );
    Err(unsupported(path, what, "compress it with mkzftree, or not at all"))
}

fn make(name: Vec<u8>, kind: Kind, size: u64, id: u64, record: &Record, entries: &Entries) -> Entry {
    let mode = entries.posix.map_or(PLAIN_MODE, |posix| posix.mode);
    Entry {
        name,
        size,
        // Twelve bits: they fit.
        mode: (mode & 0o7777) as u16,
        uid: entries.posix.map_or(0, |posix| posix.uid),
        gid: entries.posix.map_or(0, |posix| posix.gid),
        mtime: entries.mtime.unwrap_or_else(|| time::short(record.date())),
        device: if matches!(kind, Kind::CharDevice | Kind::BlockDevice) { entries.device } else { (0, 0) },
        id,
        kind,
    }
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
