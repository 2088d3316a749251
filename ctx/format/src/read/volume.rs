//! Which tree of an image is shown: what its volume descriptors say, chosen as Linux's isofs chooses.
//!
//! The primary tree is shown where it has Rock Ridge, else Joliet's where there is one, else the primary one with its
//! names mapped, and with the Rock Ridge that its records have all the same. Descriptors of anything else are passed over: boot records (El Torito), enhanced volumes
//! (ISO 9660:1999), partitions. UDF beside ISO 9660 is not looked at.

use super::error::{ReadError, damaged, text, unsupported};
use super::limits::Account;
use super::record::{Record, Records, le32};
use super::susp;
use super::tree::Range;

/// Descriptors are in sectors of this size, whatever a block is.
const SECTOR: usize = 2048;
/// The sectors that are searched for descriptors; the sixteen before them are the system's.
const DESCRIPTORS: std::ops::Range<usize> = 16..100;

/// How names and attributes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    /// In system use entries, which begin so many bytes behind the identifier.
    RockRidge(usize),
    /// In UTF-16.
    Joliet,
    /// In few characters, all of them upper case; but a record that has system use entries is believed.
    Plain,
}

/// The tree that is shown.
#[derive(Debug, Clone)]
pub(super) struct Volume<'a> {
    image: &'a [u8],
    /// Bytes of a block.
    block: u64,
    /// Length in bytes, true or not.
    declared: u64,
    /// Where the root's own record is.
    pub(super) root: u64,
    pub(super) names: Names,
    /// The label, without padding.
    pub(super) label: String,
}

impl<'a> Volume<'a> {
    pub(super) fn find(image: &'a [u8], account: &mut Account) -> Result<Self, ReadError> {
        let (primary, joliet) = descriptors(image)?;
        let Some(first) = primary.or(joliet) else { return Err(ReadError::NotIso { len: image.len() }) };
        let block = u64::from(u16::from_le_bytes([first[128], first[129]]));
        if !matches!(block, 512 | 1024 | 2048) {
            return Err(damaged(&[], &format!("blocks of {block} bytes: only 512, 1024 and 2048 exist")));
        }
        let declared = u64::from(le32(&first[80..])) * block;
        let plain = |descriptor: &[u8]| Self {
            image,
            block,
            declared,
            root: root(descriptor) * block,
            names: Names::Plain,
            label: descriptor[40..72].iter().map(|byte| char::from(*byte)).collect(),
        };
        let mut volume = plain(first);
        if primary.is_some() {
            volume.names = volume.rock_ridge(account, joliet.is_some())?;
        }
        if let Some(joliet) = joliet.filter(|_| volume.names == Names::Plain) {
            volume = plain(joliet);
            volume.names = Names::Joliet;
            let units = joliet[40..72].chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            volume.label =
                char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
        }
        volume.label.truncate(volume.label.trim_end_matches([' ', '\0']).len());
        Ok(volume)
    }

    /// Whether the primary tree has Rock Ridge that is to be shown.
    fn rock_ridge(&self, account: &mut Account, joliet: bool) -> Result<Names, ReadError> {
        let own = self.record(&[], self.root)?;
        let Some(mark) = susp::detect(self, account, &own)? else { return Ok(Names::Plain) };
        // Where the extension is not announced, and on discs whose plain tree was left empty, Joliet has the names.
        let root = Records::of(self.image, Range { start: self.root, len: self.block });
        let use_joliet = joliet && (!mark.announced || root.take(3).count() < 3);
        Ok(if use_joliet { Names::Plain } else { Names::RockRidge(mark.skip) })
    }

    /// Length of the image.
    pub(super) fn len(&self) -> u64 {
        self.image.len() as u64
    }

    /// Where a block begins.
    pub(super) fn offset(&self, block: u64) -> u64 {
        block * self.block
    }

    /// Whether so many bytes fill whole blocks.
    pub(super) fn fills_blocks(&self, len: u64) -> bool {
        len.is_multiple_of(self.block)
    }

    /// A range of the image, of which `path` is told where it lies outside.
    pub(super) fn range(&self, path: &[Vec<u8>], start: u64, len: u64) -> Result<Range, ReadError> {
        let end = start.saturating_add(len);
        if end <= self.len() {
            return Ok(Range { start, len });
        }
        let declared = self.declared;
        Err(ReadError::OutOfRange { path: text(path), start, end, len: self.len(), declared })
    }

    /// Bytes of the image.
    pub(super) fn bytes(&self, path: &[Vec<u8>], start: u64, len: u64) -> Result<&'a [u8], ReadError> {
        let range = self.range(path, start, len)?;
        Ok(range.of(self.image).unwrap_or_default())
    }

    /// The records in a range of the image.
    pub(super) fn records(&self, range: Range) -> Records<'a> {
        Records::of(self.image, range)
    }

    /// The record at an offset, which is a directory's own.
    pub(super) fn record(&self, path: &[Vec<u8>], at: u64) -> Result<Record<'a>, ReadError> {
        self.range(path, at, 34)?;
        Record::at(self.image, at).ok_or_else(|| damaged(path, "the directory has no record of its own"))
    }
}

/// The block of a descriptor's root directory.
fn root(descriptor: &[u8]) -> u64 {
    u64::from(le32(&descriptor[158..])) + u64::from(descriptor[157])
}

type Found<'a> = (Option<&'a [u8]>, Option<&'a [u8]>);

/// The first primary descriptor and the first of a Joliet tree, which is looked for no further.
fn descriptors(image: &[u8]) -> Result<Found<'_>, ReadError> {
    let mut primary = None;
    for sector in DESCRIPTORS {
        let Some(descriptor) = image.get(sector * SECTOR..(sector + 1) * SECTOR) else {
            if image.get(sector * SECTOR + 1..sector * SECTOR + 6) == Some(b"CD001") {
                return Err(damaged(
                    &[],
                    "it ends within a volume descriptor: it is truncated, copy it again",
                ));
            }
            break;
        };
        if &descriptor[9..14] == b"CDROM" && &descriptor[1..6] != b"CD001" {
            return Err(unsupported(&[], "a High Sierra volume", "write it as ISO 9660"));
        }
        if &descriptor[1..6] != b"CD001" {
            continue;
        }
        match descriptor[0] {
            255 => break,
            1 => primary = primary.or(Some(descriptor)),
            // UCS-2 levels 1 to 3. Any other level is no Joliet and yet ends the search.
            2 if &descriptor[88..90] == b"%/" => {
                return Ok((primary, matches!(descriptor[90], b'@' | b'C' | b'E').then_some(descriptor)));
            }
            _ => {}
        }
    }
    Ok((primary, None))
}
