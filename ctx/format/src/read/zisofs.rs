//! Files that are stored compressed: zisofs, as `mkzftree` and `xorriso` write it and Linux reads it.
//!
//! A Rock Ridge entry `ZF` gives the size of the content and of its blocks. What is stored is a header, a table
//! of where each block begins and the last one ends (32 bits each, little-endian), and the blocks, each a zlib
//! stream of its own; a block of no bytes is all zero. So a few bytes can stand for 4 GiB: who decompresses checks
//! the size first.

use std::borrow::Cow;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

use super::record::le32;
use super::tree::Range;

/// Sizes of a block that Linux takes, as powers of two: from a page to 128 KiB.
const SHIFTS: std::ops::RangeInclusive<u8> = 12..=17;

/// What a last block that is padded with zeros to its whole size takes beside its content.
const PADDING: usize = 1024;

/// A compressed file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Zisofs {
    /// What is stored: these ranges of the image, in order. All lie inside it.
    pub ranges: Vec<Range>,
    /// Bytes before the table.
    header: u64,
    /// Bytes of a block's content.
    block: usize,
}

/// Why a compressed file cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ZisofsError {
    /// The table, or a block that it names, lies outside what is stored.
    #[error("block {block} lies outside what is stored")]
    Outside {
        /// The block's number.
        block: u64,
    },
    /// A block has more bytes than any of its content could need, or fewer than none.
    #[error("block {block} cannot have the size that the table says")]
    Size {
        /// The block's number.
        block: u64,
    },
    /// A zlib stream of more pieces than its content can need, each of which takes time.
    #[error("block {block} is compressed in too many pieces")]
    Pieces {
        /// The block's number.
        block: u64,
    },
    /// No zlib stream, one with a wrong checksum, or one that ends too early.
    #[error("block {block} cannot be decompressed")]
    Damaged {
        /// The block's number.
        block: u64,
    },
}

impl Zisofs {
    /// A file with this algorithm, words of header and size of a block; `None` for what Linux does not know.
    pub(super) fn new(algorithm: [u8; 2], header: u8, shift: u8, ranges: Vec<Range>) -> Option<Self> {
        (algorithm == *b"pz" && SHIFTS.contains(&shift)).then(|| Self {
            ranges,
            header: u64::from(header) * 4,
            block: 1 << shift,
        })
    }

    /// The content, block by block, of a file of `size` bytes, from the image that it was indexed from.
    pub fn blocks<'a>(
        &'a self,
        image: &'a [u8],
        size: u64,
    ) -> impl Iterator<Item = Result<Vec<u8>, ZisofsError>> + 'a {
        let mut inflater = Box::<DecompressorOxide>::default();
        self.lens(size).map(move |(number, len)| self.read(image, number, len, &mut inflater))
    }

    /// Bytes that are decompressed for a file of `size` bytes, which say how long [`Self::blocks`] takes. No two blocks
    /// share any, but files can.
    ///
    /// # Errors
    /// The first block that is not there, or has an impossible size.
    pub fn stored_len(&self, image: &[u8], size: u64) -> Result<u64, ZisofsError> {
        self.lens(size).map(|(number, len)| Ok(self.span(image, number, len)?.1 as u64)).sum()
    }

    /// How many bytes all files of an image may decompress together. Honest ones share none, unless they are the same
    /// file, and come to less than the image.
    pub fn may_store(image: &[u8]) -> u64 {
        2 * image.len() as u64
    }

    /// The blocks of a file of `size` bytes, each with the length of its content.
    fn lens(&self, size: u64) -> impl Iterator<Item = (u64, usize)> + use<> {
        let block = self.block;
        (0..size.div_ceil(block as u64)).map(move |number| {
            let rest = size - number * block as u64;
            (number, usize::try_from(rest).unwrap_or(usize::MAX).min(block))
        })
    }

    /// Where a block is stored, and in how many bytes: none for zeros.
    fn span(&self, image: &[u8], block: u64, len: usize) -> Result<(u64, usize), ZisofsError> {
        let table = self.stored(image, self.header + block * 4, 8).ok_or(ZisofsError::Outside { block })?;
        let (start, end) = (le32(&table), le32(&table[4..]));
        let most = most(self.block).min(most(len) + PADDING);
        let stored = end.checked_sub(start).map(|stored| stored as usize).filter(|stored| *stored <= most);
        Ok((start.into(), stored.ok_or(ZisofsError::Size { block })?))
    }

    fn read(
        &self,
        image: &[u8],
        block: u64,
        len: usize,
        inflater: &mut DecompressorOxide,
    ) -> Result<Vec<u8>, ZisofsError> {
        let (start, stored) = self.span(image, block, len)?;
        let mut content = vec![0; len];
        if stored == 0 {
            return Ok(content);
        }
        let stream = self.stored(image, start, stored).ok_or(ZisofsError::Outside { block })?;
        inflater.init();
        let flags = inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER
            | inflate_flags::TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY
            | inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        // Each piece of a stream brings tables that are built anew, for nothing in one that is crafted: an empty piece has
        // ten bits. Compressors end a piece after thousands of symbols; zlib with the least memory after 127.
        let mut pieces = 8 + stored / 32 + len / 64;
        let (mut consumed, mut written) = (0, 0);
        let status = loop {
            let rest = stream.get(consumed..).unwrap_or_default();
            let (status, took, gave) = decompress(inflater, rest, &mut content, written, flags);
            (consumed, written) = (consumed + took, written + gave);
            if status != TINFLStatus::BlockBoundary {
                break status;
            }
            pieces = pieces.checked_sub(1).ok_or(ZisofsError::Pieces { block })?;
        };
        // More than the content is there, like the end of a last block that is padded: Linux does not look.
        let done = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
        if done && written == len { Ok(content) } else { Err(ZisofsError::Damaged { block }) }
    }

    /// Bytes of what is stored; `None` when they are not there.
    fn stored<'a>(&self, image: &'a [u8], start: u64, len: usize) -> Option<Cow<'a, [u8]>> {
        let mut skip = start;
        let mut bytes = Cow::Borrowed(&[][..]);
        for range in &self.ranges {
            if skip >= range.len {
                skip -= range.len;
                continue;
            }
            let rest = range.of(image)?.get(usize::try_from(skip).ok()?..)?;
            skip = 0;
            let part = &rest[..rest.len().min(len - bytes.len())];
            if bytes.is_empty() {
                bytes = Cow::Borrowed(part);
            } else {
                bytes.to_mut().extend_from_slice(part);
            }
            if bytes.len() == len {
                return Some(bytes);
            }
        }
        None
    }
}

/// What zlib needs at most for so many bytes (`deflateBound` of the kernel).
fn most(len: usize) -> usize {
    len + len.div_ceil(8) + len.div_ceil(64) + 11
}

#[cfg(test)]
mod tests {
    use miniz_oxide::deflate::compress_to_vec_zlib;

    use super::*;

    /// Blocks of 4 KiB behind a header of 16 bytes, in an image of nothing else.
    fn stored(blocks: &[Vec<u8>]) -> Vec<u8> {
        let mut image = vec![0; 16 + 4 * (blocks.len() + 1)];
        for (number, block) in blocks.iter().enumerate() {
            let at = 16 + 4 * number;
            let start = u32::try_from(image.len()).unwrap();
            image[at..at + 4].copy_from_slice(&start.to_le_bytes());
            image.extend_from_slice(block);
            let end = u32::try_from(image.len()).unwrap();
            image[at + 4..at + 8].copy_from_slice(&end.to_le_bytes());
        }
        image
    }

    fn file(image: &[u8], cuts: &[u64]) -> Zisofs {
        let bounds: Vec<u64> =
            [0].into_iter().chain(cuts.iter().copied()).chain([image.len() as u64]).collect();
        let ranges = bounds.windows(2).map(|pair| Range { start: pair[0], len: pair[1] - pair[0] }).collect();
        Zisofs::new(*b"pz", 4, 12, ranges).unwrap()
    }

    fn read(image: &[u8], cuts: &[u64], size: u64) -> Result<Vec<u8>, ZisofsError> {
        Ok(file(image, cuts).blocks(image, size).collect::<Result<Vec<_>, _>>()?.concat())
    }

    #[test]
    fn blocks_are_decompressed_wherever_extents_end() {
        let text: Vec<u8> = (0..4096 + 100_u32).map(|at| (at % 251) as u8).collect();
        let deflated = |bytes: &[u8]| compress_to_vec_zlib(bytes, 6);
        let image = stored(&[deflated(&text[..4096]), vec![], deflated(&text[4096..])]);
        let expected = [&text[..4096], &[0; 4096], &text[4096..]].concat();
        let whole = image.len() as u64;
        for cuts in [&[][..], &[1], &[18, 20, 33], &[whole - 1]] {
            assert_eq!(read(&image, cuts, expected.len() as u64).as_ref(), Ok(&expected), "{cuts:?}");
        }
        // Less than is stored: the rest is not looked at.
        assert_eq!(read(&image, &[], 10).unwrap(), &text[..10]);
        assert_eq!(read(&image, &[], 0).unwrap(), b"");
    }

    /// A zlib stream of one byte behind so many empty pieces, four of which take five bytes.
    fn pieces(fours: usize) -> Vec<u8> {
        let checksum = adler32(b"x").to_be_bytes();
        let empty = [0x02, 0x08, 0x20, 0x80, 0x00].repeat(fours);
        [&b"\x78\x01"[..], &empty, b"\x01\x01\x00\xfe\xffx", &checksum].concat()
    }

    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes
            .iter()
            .fold((1_u32, 0_u32), |(a, b), byte| (a + u32::from(*byte), a + b + u32::from(*byte)));
        b << 16 | a
    }

    #[test]
    fn a_stream_that_only_takes_time_is_refused() {
        assert_eq!(read(&stored(&[pieces(2)]), &[], 1).unwrap(), b"x");
        assert_eq!(read(&stored(&[pieces(150)]), &[], 1), Err(ZisofsError::Pieces { block: 0 }));
        // No more is stored than the content needs, and as much as a last block that is padded with zeros.
        assert_eq!(read(&stored(&[pieces(300)]), &[], 1), Err(ZisofsError::Size { block: 0 }));
        let padded = [vec![7; 10], vec![0; 4086]].concat();
        for level in 1..10 {
            let image = stored(&[compress_to_vec_zlib(&padded, level)]);
            assert_eq!(read(&image, &[], 10).unwrap(), [7; 10]);
        }
    }

    #[test]
    fn what_does_not_compress_is_read() {
        // Stored by deflate as it is, in pieces, which takes more than the content has.
        let mut state = 1_u32;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        let noise: Vec<u8> = noise.take(4096 + 3).collect();
        for level in 0..10 {
            let deflated = |bytes: &[u8]| compress_to_vec_zlib(bytes, level);
            let image = stored(&[deflated(&noise[..4096]), deflated(&noise[4096..])]);
            assert_eq!(read(&image, &[], 4099).as_ref(), Ok(&noise), "{level}");
            let all = image.len() as u64 - 28;
            assert_eq!(file(&image, &[]).stored_len(&image, 4099), Ok(all));
        }
    }

    #[test]
    fn what_is_damaged_is_refused() {
        let good = compress_to_vec_zlib(&[7; 4096], 6);
        let image = stored(std::slice::from_ref(&good));
        // The table ends before the second block.
        assert_eq!(read(&image, &[], 5000), Err(ZisofsError::Size { block: 1 }));
        assert_eq!(read(&image[..20], &[], 4096), Err(ZisofsError::Outside { block: 0 }));
        assert_eq!(read(&image[..30], &[], 4096), Err(ZisofsError::Outside { block: 0 }));
        let mut backwards = image.clone();
        backwards.copy_within(16..20, 20);
        backwards[16] += 1;
        assert_eq!(read(&backwards, &[], 4096), Err(ZisofsError::Size { block: 0 }));
        let short = stored(&[compress_to_vec_zlib(&[7; 4000], 6)]);
        assert_eq!(read(&short, &[], 4096), Err(ZisofsError::Damaged { block: 0 }));
        let mut wrong = good;
        *wrong.last_mut().unwrap() ^= 1;
        assert_eq!(read(&stored(&[wrong]), &[], 4096), Err(ZisofsError::Damaged { block: 0 }));
        for (algorithm, shift) in [(*b"PZ", 15), (*b"pz", 11), (*b"pz", 18), (*b"pz", 255)] {
            assert_eq!(Zisofs::new(algorithm, 4, shift, Vec::new()), None);
        }
    }
}
