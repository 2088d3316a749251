//! The image as the block device that the parser reads, which counts what is read.

use std::convert::Infallible;

use hadris_fs::{Error as IsoError, ErrorKind};
use hadris_io::ErrorType;
use hadris_storage::{BlockIndex, BlockSize};

/// The message of the error when the work is done that is allowed.
pub(super) const OVERWORK: &str = "metadata budget spent";

/// The image as a block device.
pub(super) struct Memory<'a> {
    bytes: &'a [u8],
    left: u64,
}

impl<'a> Memory<'a> {
    /// A device of these bytes that gives out at most `work` bytes.
    pub(super) fn new(bytes: &'a [u8], work: u64) -> Self {
        Self { bytes, left: work }
    }
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
