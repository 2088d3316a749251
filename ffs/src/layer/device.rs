//! Reading the disc in a drive, or any block device, into sealed memory.
//!
//! The device is open only while it is read: nothing holds the tray, and an eject, forced or not,
//! later hurts nobody. It is opened without blocking, so that an empty drive is a state and not an
//! error; whether a failure is worth another try is part of the result.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use crate::sealed::Sealed;
use crate::sys::{self, DriveStatus};

/// The largest image that is read into memory unless the configuration says otherwise: 256 MiB.
pub const DEFAULT_LIMIT: u64 = 256 << 20;

/// Why a device gave no image.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No disc, or the tray is open: an event will tell of the next one.
    #[error("no disc in {}", device.display())]
    Empty {
        /// The device.
        device: PathBuf,
    },
    /// The drive is busy with the disc, or an error that passes.
    #[error("{} is not ready: {source}", device.display())]
    NotReady {
        /// The device.
        device: PathBuf,
        /// What it returned.
        source: io::Error,
    },
    /// An error that will not pass.
    #[error("cannot read {}: {source}", device.display())]
    Failed {
        /// The device.
        device: PathBuf,
        /// What it returned.
        source: io::Error,
    },
    /// More than the limit.
    #[error("{} has {len} bytes, more than the {limit} that may be held in memory", device.display())]
    TooLarge {
        /// The device.
        device: PathBuf,
        /// Bytes that its volume has.
        len: u64,
        /// Bytes allowed.
        limit: u64,
    },
}

impl DeviceError {
    /// Whether another try soon may succeed without any event.
    pub fn passes(&self) -> bool {
        matches!(self, Self::NotReady { .. } | Self::Empty { .. })
    }
}

/// Reads the volume on a device (or in a regular file), at most `limit` bytes.
///
/// # Errors
/// [`DeviceError`].
pub fn read(device: &Path, limit: u64) -> Result<Sealed, DeviceError> {
    read_first(device, limit, volume_len)
}

/// Reads all of a device (or of a regular file), at most `limit` bytes: for a volume that uses more than its
/// descriptor says.
///
/// # Errors
/// [`DeviceError`].
pub fn read_whole(device: &Path, limit: u64) -> Result<Sealed, DeviceError> {
    read_first(device, limit, |file| file.seek(SeekFrom::End(0)))
}

/// The length of a device or of a regular file; `None` where it cannot be opened.
pub(super) fn len(device: &Path) -> Option<u64> {
    open(device).ok()?.seek(SeekFrom::End(0)).ok()
}

fn open(device: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(device)
}

fn read_first(
    device: &Path,
    limit: u64,
    len: impl Fn(&mut File) -> io::Result<u64>,
) -> Result<Sealed, DeviceError> {
    let classify = |source: io::Error| {
        let device = device.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOMEDIUM) => DeviceError::Empty { device },
            // A drive that is still spinning up, or was just unplugged; ENXIO comes from both.
            Some(libc::EIO | libc::EBUSY | libc::EAGAIN | libc::ENXIO | libc::ENOENT) => {
                DeviceError::NotReady { device, source }
            }
            _ => DeviceError::Failed { device, source },
        }
    };
    let mut file = open(device).map_err(classify)?;
    if file.metadata().map_err(classify)?.file_type().is_block_device() {
        match sys::drive_status(&file) {
            DriveStatus::NoDisc | DriveStatus::TrayOpen => {
                return Err(DeviceError::Empty { device: device.to_owned() });
            }
            DriveStatus::NotReady => return Err(classify(io::Error::from_raw_os_error(libc::EBUSY))),
            DriveStatus::DiscOk | DriveStatus::Unknown => {}
        }
        sys::forget_pages(&file);
    }
    let len = len(&mut file).map_err(classify)?;
    if len == 0 {
        return Err(DeviceError::Empty { device: device.to_owned() });
    }
    if len > limit {
        return Err(DeviceError::TooLarge { device: device.to_owned(), len, limit });
    }
    file.seek(SeekFrom::Start(0)).map_err(classify)?;
    Sealed::read_from(&mut file.take(len), limit).map_err(classify)
}

/// The length of the ISO 9660 volume by its descriptor (ECMA-119, 8.4.8 and 8.4.12), or that of the
/// device where there is none or it claims more. A drive's size after a change of media lags behind;
/// and of a large disc only the volume is read.
fn volume_len(file: &mut File) -> io::Result<u64> {
    let device = file.seek(SeekFrom::End(0))?;
    if device == 0 {
        return Ok(0);
    }
    let mut descriptor = [0; 2048];
    file.seek(SeekFrom::Start(16 * 2048))?;
    if let Err(error) = file.read_exact(&mut descriptor) {
        // Too short to be an image: what there is, is read and refused by the one who knows why.
        return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(device) } else { Err(error) };
    }
    if &descriptor[1..6] != b"CD001" || descriptor[0] != 1 {
        return Ok(device);
    }
    // A volume has at least the system area, a descriptor and the end of descriptors: what says less says nothing.
    let least = 18 * 2048;
    let blocks = u32::from_le_bytes([descriptor[80], descriptor[81], descriptor[82], descriptor[83]]);
    let block = u16::from_le_bytes([descriptor[128], descriptor[129]]);
    let volume = u64::from(blocks) * u64::from(block);
    Ok(if volume < least { device } else { volume.min(device) })
}
