//! System use entries: what SUSP (IEEE P1281) carries, Rock Ridge (IEEE P1282) above all.
//!
//! Entries that Linux's isofs does not know are passed over, with one exception: those that say that the content is not
//! what is stored are refused. Entries that are damaged are refused, where Linux goes on with what it has.

use super::error::{ReadError, damaged, unsupported};
use super::limits::Account;
use super::record::{Record, le32};
use super::time;
use super::tree::Time;
use super::volume::Volume;

/// Areas in which the entries of one record may go on. Linux reads 31, and `xorriso` writes as many.
const CONTINUATIONS: usize = 256;
/// A name or target that is longer than any is: it is cut here, and refused by its length.
const TOO_LONG: usize = 4096;
/// What CD-ROM XA puts before the entries.
const XA: usize = 14;

/// What the entries of one record say.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// `NM`: the name; empty for none.
    pub(super) name: Vec<u8>,
    /// `PX`: mode, links, owner, group, and the file's serial number.
    pub(super) posix: Option<Posix>,
    /// `PN`: major and minor number.
    pub(super) device: (u32, u32),
    /// `TF`: when the content changed.
    pub(super) mtime: Option<Time>,
    /// `SL`: what the link points to; empty for nothing.
    pub(super) target: Vec<u8>,
    /// `CL`: the block of the directory that this record stands for.
    pub(super) child: Option<u64>,
    /// `RE`: it is shown elsewhere.
    pub(super) relocated: bool,
    /// `ZF`, `Z2`: how it is compressed.
    pub(super) compressed: Option<Compressed>,
    /// `SF`: it is stored without its holes.
    pub(super) sparse: bool,
    mark: Option<Mark>,
    /// `RR`: no `NM` counts from here on.
    nameless: bool,
}

/// What `PX` says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Posix {
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// 0 for none.
    pub(super) serial: u32,
}

/// What `ZF` says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Compressed {
    pub(super) algorithm: [u8; 2],
    pub(super) header: u8,
    pub(super) shift: u8,
    pub(super) size: u32,
}

/// How an image says that it has Rock Ridge.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Mark {
    /// `SP`: the bytes before the entries of every other record.
    pub(super) skip: usize,
    /// `ER`: by name.
    pub(super) announced: bool,
}

/// Where entries go on: all of them numbers of 32 bits.
struct Continuation {
    block: u64,
    /// From the block's beginning.
    offset: u64,
    len: u64,
}

/// Whether the record of the root directory begins a tree with Rock Ridge, also behind what CD-ROM XA has there.
pub(super) fn detect(
    volume: &Volume,
    account: &mut Account,
    own: &Record,
) -> Result<Option<Mark>, ReadError> {
    for skip in [0, XA] {
        let mut entries = Entries::default();
        let read = entries.read(volume, account, &[], own, skip);
        if let Some(mark) = entries.mark {
            read?;
            return Ok(Some(mark));
        }
        if entries.posix.is_some() && read.is_ok() {
            return Ok(Some(Mark { skip, announced: false }));
        }
    }
    Ok(None)
}

impl Entries {
    /// The entries of a record, which begin `skip` bytes behind its identifier.
    pub(super) fn of(
        volume: &Volume,
        account: &mut Account,
        path: &[Vec<u8>],
        record: &Record,
        skip: usize,
    ) -> Result<Self, ReadError> {
        let mut entries = Self::default();
        entries.read(volume, account, path, record, skip)?;
        Ok(entries)
    }

    /// The entries of a record in a tree that does not say that its records have any. What is no entry from the beginning
    /// on is something else, of which nothing is known.
    pub(super) fn unannounced(
        volume: &Volume,
        account: &mut Account,
        path: &[Vec<u8>],
        record: &Record,
    ) -> Result<Self, ReadError> {
        let mut entries = Self::default();
        match entries.read(volume, account, path, record, 0) {
            Ok(()) => Ok(entries),
            Err(limit @ ReadError::Limit { .. }) => Err(limit),
            Err(_) if entries.name.is_empty() && entries.posix.is_none() => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    fn read(
        &mut self,
        volume: &Volume,
        account: &mut Account,
        path: &[Vec<u8>],
        record: &Record,
        skip: usize,
    ) -> Result<(), ReadError> {
        let mut area = record.system_use().get(skip..).unwrap_or_default();
        for _ in 0..=CONTINUATIONS {
            let Some(Continuation { block, offset, len }) = self.area(path, area)? else { return Ok(()) };
            area = volume.bytes(path, volume.offset(block) + offset, len)?;
            account.work(path, len)?;
        }
        Err(damaged(path, "its system use entries go on in too many places"))
    }

    /// Takes the entries of one area and returns where they go on.
    fn area(&mut self, path: &[Vec<u8>], mut area: &[u8]) -> Result<Option<Continuation>, ReadError> {
        let (mut next, mut stopped) = (None, false);
        // Less than an entry, or nought, is padding.
        while area.len() >= 4 && area[0] != 0 {
            let len = usize::from(area[2]);
            if (len < 4 || len > area.len()) && stopped {
                break;
            }
            if len < 4 || len > area.len() {
                return Err(damaged(path, "a system use entry has a wrong length"));
            }
            let (entry, rest) = area.split_at(len);
            area = rest;
            let (signature, data) = ([entry[0], entry[1]], &entry[4..]);
            match (&signature, data) {
                // Linux does not know this one and reads on. Behind it there need not be entries.
                (b"ST", _) => stopped = true,
                (b"CE", _) if data.len() >= 24 => {
                    let [block, offset, len] = [0, 8, 16].map(|at| u64::from(le32(&data[at..])));
                    next = Some(Continuation { block, offset, len });
                }
                (b"SP", [0xbe, 0xef, skip, ..]) => {
                    self.mark.get_or_insert_default().skip = usize::from(*skip);
                }
                (b"ER", _) => self.mark.get_or_insert_default().announced = true,
                _ => {
                    if self.rock_ridge(signature, data).is_none() {
                        let [a, b] = signature.map(char::from);
                        return Err(damaged(path, &format!("its `{a}{b}` entry is too short")));
                    }
                }
            }
        }
        Ok(next)
    }

    /// Takes an entry; `None` when it is too short for what it is.
    fn rock_ridge(&mut self, signature: [u8; 2], data: &[u8]) -> Option<()> {
        let number = |at: usize| data.get(at..at + 4).map(le32);
        match &signature {
            b"PX" => {
                self.posix = Some(Posix {
                    mode: number(0)?,
                    links: number(8)?,
                    uid: number(16)?,
                    gid: number(24)?,
                    // Of version 1.12.
                    serial: number(32).unwrap_or_default(),
                });
            }
            b"PN" => {
                let (high, low) = (number(0)?, number(8)?);
                // Some programs put all of the number into the low half.
                self.device = if high == 0 && low > 0xff { (low >> 8, low & 0xff) } else { (high, low) };
            }
            b"TF" => self.times(*data.first()?, &data[1..])?,
            // Others stand for `.`, `..` and the host's name.
            b"NM" if matches!(data.first()?, 0 | 1) && !self.nameless => {
                let part = data[1..].split(|byte| *byte == 0).next().unwrap_or_default();
                push(&mut self.name, part);
            }
            // Which entries there are; of these bits Linux looks at one.
            b"RR" if data.first().is_some_and(|flags| flags & 8 == 0) => self.nameless = true,
            b"SL" => self.link(*data.first()?, &data[1..])?,
            b"CL" => self.child = Some(number(0)?.into()),
            b"RE" => self.relocated = true,
            b"SF" => self.sparse = true,
            // `Z2` is what `xorriso` can be told to write for zisofs 2.
            b"ZF" | b"Z2" => {
                let &[a, b, header, shift] = data.first_chunk()?;
                self.compressed = Some(Compressed { algorithm: [a, b], header, shift, size: number(4)? });
            }
            b"CE" | b"SP" => return None,
            _ => {}
        }
        Some(())
    }

    /// Of the times only that of the last modification is shown; the time of creation stands before it.
    fn times(&mut self, flags: u8, data: &[u8]) -> Option<()> {
        let (is_long, before) = (flags & 0x80 != 0, usize::from(flags & 1));
        if flags & 2 == 0 {
            return Some(());
        }
        self.mtime = Some(if is_long {
            time::long(*data.get(before * 17..)?.first_chunk()?)
        } else {
            time::short(*data.get(before * 7..)?.first_chunk()?)
        });
        Some(())
    }

    /// Adds the components of a link's target. A slash stands between two, unless the first one is the root or goes on.
    fn link(&mut self, flags: u8, mut rest: &[u8]) -> Option<()> {
        while rest.len() > 1 {
            let (component, len) = (rest[0], usize::from(rest[1]));
            let text = rest.get(2..2 + len)?;
            rest = &rest[2 + len..];
            let text = match component & !1 {
                0 => text,
                2 => b".",
                4 => b"..",
                8 => b"/",
                // Roots of volumes and names of hosts, which nobody writes.
                _ => b"",
            };
            push(&mut self.target, text);
            let is_last = rest.len() < 2 && flags & 1 == 0;
            if component & 9 == 0 && !is_last {
                push(&mut self.target, b"/");
            }
        }
        Some(())
    }

    /// Refuses what is not the content of a file.
    pub(super) fn check_content(&self, path: &[Vec<u8>]) -> Result<(), ReadError> {
        if self.sparse {
            return Err(unsupported(path, "a sparse file (Rock Ridge SF)", "store it whole"));
        }
        Ok(())
    }
}

fn push(text: &mut Vec<u8>, more: &[u8]) {
    text.extend_from_slice(&more[..more.len().min(TOO_LONG.saturating_sub(text.len()))]);
}
