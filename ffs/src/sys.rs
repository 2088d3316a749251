//! The system calls that neither the standard library nor nix wraps: extended attributes and the
//! CD-ROM and block device ioctls.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;

/// `CDROM_DRIVE_STATUS` (linux/cdrom.h).
const CDROM_DRIVE_STATUS: libc::c_ulong = 0x5326;
/// Its argument for drives with one slot (`CDSL_CURRENT`).
const CDSL_CURRENT: libc::c_int = libc::c_int::MAX;
/// `BLKFLSBUF`: drop the device's cached pages (linux/fs.h).
const BLKFLSBUF: libc::c_ulong = 0x1261;

/// What a CD-ROM drive says of itself (linux/cdrom.h, `CDS_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriveStatus {
    /// Not a CD-ROM drive, or a drive that does not say.
    Unknown,
    /// No disc in it.
    NoDisc,
    /// The tray is open.
    TrayOpen,
    /// Busy: ask again.
    NotReady,
    /// A disc that can be read.
    DiscOk,
}

/// Asks a drive for its state.
pub fn drive_status(device: &impl AsRawFd) -> DriveStatus {
    // SAFETY: this ioctl takes an integer and touches no memory of ours.
    match unsafe { libc::ioctl(device.as_raw_fd(), CDROM_DRIVE_STATUS as _, CDSL_CURRENT) } {
        1 => DriveStatus::NoDisc,
        2 => DriveStatus::TrayOpen,
        3 => DriveStatus::NotReady,
        4 => DriveStatus::DiscOk,
        _ => DriveStatus::Unknown,
    }
}

/// Drops what the kernel has cached of a block device, so that a disc that was changed behind
/// somebody's open descriptor is not read from the cache of the one before. Needs `CAP_SYS_ADMIN`;
/// without it nothing happens.
pub fn forget_pages(device: &impl AsRawFd) {
    // SAFETY: this ioctl takes no argument.
    let _ = unsafe { libc::ioctl(device.as_raw_fd(), BLKFLSBUF as _, 0) };
}

/// Reads an extended attribute of a file, without following a link at the end; `None` when there is
/// none or it cannot be read.
pub fn xattr(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // XATTR_SIZE_MAX is 64 KiB.
    let mut value = vec![0; 1 << 16];
    // SAFETY: both strings end in NUL, and the buffer has as many bytes as is said.
    let len =
        unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(len).ok()?);
    Some(value)
}

/// Writes an extended attribute of a file, without following a link at the end.
///
/// # Errors
/// What `lsetxattr(2)` returns; `EROFS` on a mount that is read-only.
pub fn set_xattr(path: &Path, name: &CStr, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: both strings end in NUL, and the value has as many bytes as is said.
    let done =
        unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads from the start of `CLOCK_MONOTONIC` and `CLOCK_REALTIME`, in nanoseconds.
///
/// # Errors
/// What `clock_gettime(2)` returns; it cannot fail for these clocks.
pub fn clocks() -> io::Result<(u64, u64)> {
    use nix::time::{ClockId, clock_gettime};
    let nanos = |time: nix::sys::time::TimeSpec| {
        // Both clocks are positive on any machine that runs.
        u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
    };
    Ok((nanos(clock_gettime(ClockId::CLOCK_MONOTONIC)?), nanos(clock_gettime(ClockId::CLOCK_REALTIME)?)))
}

/// A detached, private clone of a mount (`open_tree(2)` with `OPEN_TREE_CLONE`): the descriptor of
/// its root. It is nowhere to be found by others and ends with the descriptor.
///
/// # Errors
/// What `open_tree(2)` returns: `EPERM` without `CAP_SYS_ADMIN`, `ENOSYS` before Linux 5.2.
pub fn clone_mount(point: &Path) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::{FromRawFd, OwnedFd};
    let path = CString::new(point.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: the path ends in NUL; the other arguments are integers.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
