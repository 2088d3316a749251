//! Directory records (ECMA-119, 9.1), read where they lie.
//!
//! Of numbers that are there in both byte orders the little-endian one counts, as on Linux: there are programs
//! that write the other one wrong.

use super::tree::Range;

/// A directory.
const DIRECTORY: u8 = 2;
/// A file that belongs to the one of the same name, like a resource fork.
const ASSOCIATED: u8 = 4;
/// More records of the same file follow.
const NOT_FINAL: u8 = 0x80;
/// Bytes before the identifier.
const FIXED: usize = 33;
/// Records do not cross sectors, whatever a block is: padding ends at the next one.
const SECTOR: usize = 2048;

/// A directory record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record<'a> {
    bytes: &'a [u8],
    /// Its offset in the image.
    pub(super) at: u64,
}

impl<'a> Record<'a> {
    /// The record that begins at `at`; `None` when there is none, or it is damaged.
    pub(super) fn at(image: &'a [u8], at: u64) -> Option<Self> {
        Self::parse(image.get(usize::try_from(at).ok()?..)?, at)
    }

    fn parse(bytes: &'a [u8], at: u64) -> Option<Self> {
        let bytes = bytes.get(..usize::from(*bytes.first()?))?;
        let name = usize::from(*bytes.get(FIXED - 1)?);
        (name > 0 && FIXED + name <= bytes.len()).then_some(Self { bytes, at })
    }

    /// The first block of its content. An extended attribute record before it is not shown.
    pub(super) fn block(&self) -> u64 {
        u64::from(le32(&self.bytes[2..])) + u64::from(self.bytes[1])
    }

    /// Bytes of its content.
    pub(super) fn len(&self) -> u64 {
        le32(&self.bytes[10..]).into()
    }

    pub(super) fn date(&self) -> [u8; 7] {
        std::array::from_fn(|at| self.bytes[18 + at])
    }

    pub(super) fn is_dir(&self) -> bool {
        self.bytes[25] & DIRECTORY != 0
    }

    pub(super) fn is_associated(&self) -> bool {
        self.bytes[25] & ASSOCIATED != 0
    }

    pub(super) fn is_final(&self) -> bool {
        self.bytes[25] & NOT_FINAL == 0
    }

    /// Whether the content has gaps in it.
    pub(super) fn is_interleaved(&self) -> bool {
        self.bytes[27] != 0
    }

    /// The identifier.
    pub(super) fn name(&self) -> &'a [u8] {
        &self.bytes[FIXED..FIXED + usize::from(self.bytes[FIXED - 1])]
    }

    /// Whether it stands for the directory itself or its parent.
    pub(super) fn is_dot(&self) -> bool {
        matches!(self.name(), [0 | 1])
    }

    /// What stands behind the identifier.
    pub(super) fn system_use(&self) -> &'a [u8] {
        self.bytes.get((FIXED + self.name().len()).next_multiple_of(2)..).unwrap_or_default()
    }
}

/// The records of a directory, in order; `None` in place of a damaged one, which is then the last.
pub(super) struct Records<'a> {
    bytes: &'a [u8],
    start: u64,
    at: usize,
}

impl<'a> Records<'a> {
    /// The records in a range; none when the image is shorter.
    pub(super) fn of(image: &'a [u8], range: Range) -> Self {
        Self { bytes: range.of(image).unwrap_or_default(), start: range.start, at: 0 }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Option<Record<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = self.bytes.get(self.at..)?;
            if *rest.first()? == 0 {
                self.at = (self.at + 1).next_multiple_of(SECTOR);
                continue;
            }
            let record = Record::parse(rest, self.start + self.at as u64);
            self.at = record.map_or(usize::MAX, |record| self.at + record.bytes.len());
            return Some(record);
        }
    }
}

/// A little-endian number; `bytes` has at least four.
pub(super) fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|at| bytes[at]))
}
