//! The system calls that neither the standard library nor nix wraps: extended attributes and the
//! CD-ROM and block device ioctls.

#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fuser::{FileHandle, FopenFlags, ReplyOpen};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::libc;
use nix::sys::stat::Mode;

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

/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` (linux/limits.h).
const XATTR_MAX: usize = 1 << 16;

/// Whose extended attributes are read.
#[derive(Debug, Clone, Copy)]
pub enum XattrsOf<'a> {
    /// Those of an open file or directory.
    Fd(BorrowedFd<'a>),
    /// Those of a path; a link at its end is not followed.
    Path(&'a CStr),
}

impl XattrsOf<'_> {
    fn list(self, names: &mut [u8]) -> libc::ssize_t {
        let (at, len) = (names.as_mut_ptr().cast(), names.len());
        match self {
            // SAFETY: the buffer has as many bytes as is said; 0 says that there is none.
            Self::Fd(fd) => unsafe { libc::flistxattr(fd.as_raw_fd(), at, len) },
            // SAFETY: as above, and the path ends in NUL.
            Self::Path(path) => unsafe { libc::llistxattr(path.as_ptr(), at, len) },
        }
    }

    fn get(self, name: &CStr, value: &mut [u8]) -> libc::ssize_t {
        let (at, len) = (value.as_mut_ptr().cast(), value.len());
        match self {
            // SAFETY: the name ends in NUL, and the buffer has as many bytes as is said.
            Self::Fd(fd) => unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), at, len) },
            // SAFETY: as above, and the path ends in NUL.
            Self::Path(path) => unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), at, len) },
        }
    }
}

/// Reads all extended attributes. What cannot be read is not there: attributes that need more
/// privileges than we have, or a file system without any.
pub fn xattrs(of: XattrsOf<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    // Nearly every file has none: that is found out without a buffer.
    if of.list(&mut []) <= 0 {
        return Vec::new();
    }
    let mut names = vec![0_u8; XATTR_MAX];
    let len = of.list(&mut names);
    names.truncate(usize::try_from(len).unwrap_or(0));
    let mut value = vec![0; XATTR_MAX];
    names
        .split_inclusive(|&byte| byte == 0)
        .filter_map(|name| {
            let name = CStr::from_bytes_with_nul(name).ok()?;
            let len = usize::try_from(of.get(name, &mut value)).ok()?;
            Some((name.to_bytes().to_vec(), value[..len].to_vec()))
        })
        .collect()
}

/// Reads one extended attribute of a file, without following a link at the end; `None` where it is not
/// there or cannot be read.
pub fn xattr(path: &Path, name: &CStr) -> Option<Vec<u8>> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut value = vec![0; XATTR_MAX];
    let len = usize::try_from(XattrsOf::Path(&path).get(name, &mut value)).ok()?;
    value.truncate(len);
    Some(value)
}

/// Reads what the page cache has of a file, from a place on, without waiting for a disk.
///
/// # Errors
/// What preadv2(2) returns: `EAGAIN` when something is not in the cache, `EOPNOTSUPP` from file systems
/// that cannot tell (tmpfs, network file systems).
pub fn read_cached(file: &impl AsFd, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let Ok(offset) = libc::off_t::try_from(offset) else { return Err(Errno::EINVAL) };
    let part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: one buffer, with as many bytes as is said.
    let read =
        unsafe { libc::preadv2(file.as_fd().as_raw_fd(), &raw const part, 1, offset, libc::RWF_NOWAIT) };
    // Not negative, so it fits.
    Errno::result(read).map(isize::unsigned_abs)
}

/// Whether a file has no disk behind it, only memory.
pub fn in_memory(file: &impl AsFd) -> bool {
    use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
    fstatfs(file).is_ok_and(|about| about.filesystem_type() == TMPFS_MAGIC)
}

/// Lets this process have as many descriptors as it may, and returns how many that is.
pub fn raise_descriptor_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 256 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// Has the kernel ask for a name again when it is next looked up (`FUSE_NOTIFY_INVAL_ENTRY` with `FUSE_EXPIRE_ONLY`, Linux
/// 6.2; older kernels forget it, and take away what is mounted there). A name that the kernel does not have is no error. `device`
/// is the connection's `/dev/fuse`.
///
/// # Errors
/// What write(2) returns.
pub(crate) fn expire_entry(device: &impl AsFd, parent: u64, name: &[u8]) -> io::Result<()> {
    /// linux/fuse.h; a notification is a `fuse_out_header` with the code for an error and no request, and then a
    /// `fuse_notify_inval_entry_out` and the name with a zero.
    const FUSE_NOTIFY_INVAL_ENTRY: i32 = 3;
    const FUSE_EXPIRE_ONLY: u32 = 1;
    let length = u32::try_from(16 + 16 + name.len() + 1).map_err(|_| io::ErrorKind::InvalidInput)?;
    let named = u32::try_from(name.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut message = Vec::with_capacity(length as usize);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&FUSE_NOTIFY_INVAL_ENTRY.to_ne_bytes());
    message.extend_from_slice(&0_u64.to_ne_bytes());
    message.extend_from_slice(&parent.to_ne_bytes());
    message.extend_from_slice(&named.to_ne_bytes());
    message.extend_from_slice(&FUSE_EXPIRE_ONLY.to_ne_bytes());
    message.extend_from_slice(name);
    message.push(0);
    match nix::unistd::write(device, &message) {
        Ok(_) | Err(nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Answers an open with a file that the kernel reads by itself, by the number that it gave it.
pub(crate) fn opened_passthrough(reply: ReplyOpen, number: u32) {
    // SAFETY: a number is closed when the kernel has forgotten the inode, which it has not while that is being opened; and
    // not by this object, which gives it back.
    let id = unsafe { reply.wrap_backing(number) };
    reply.opened_passthrough(FileHandle(0), FopenFlags::FOPEN_NOFLUSH, &id);
    id.into_raw();
}

/// Has the kernel let go of a file that it reads by itself (`FUSE_DEV_IOC_BACKING_CLOSE`, linux/fuse.h). Who has it open keeps
/// it. `device` is the connection's `/dev/fuse`.
///
/// # Errors
/// What ioctl(2) returns: `ENOENT` for a number that it did not give out.
pub(crate) fn close_backing(device: &impl AsFd, number: u32) -> io::Result<()> {
    mod raw {
        nix::ioctl_write_ptr!(backing_close, 229, 2, u32);
    }
    // SAFETY: this ioctl reads the number behind the pointer.
    unsafe { raw::backing_close(device.as_fd().as_raw_fd(), &raw const number) }?;
    Ok(())
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

/// The effective capabilities of a process, a bit for each (capabilities(7)).
///
/// # Errors
/// What capget(2) returns: `ESRCH` where there is no such process.
pub(crate) fn effective_capabilities(process: i32) -> io::Result<u64> {
    /// `struct __user_cap_header_struct` (linux/capability.h).
    #[repr(C)]
    struct Header {
        version: u32,
        process: libc::c_int,
    }
    /// `struct __user_cap_data_struct`: 32 capabilities of each set.
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    /// `_LINUX_CAPABILITY_VERSION_3`: two of those.
    const VERSION: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION, process };
    let mut sets = [Data::default(); 2];
    // SAFETY: both are what this version of the call reads and writes, and live until it returns.
    match unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) } {
        0 => Ok(u64::from(sets[0].effective) | u64::from(sets[1].effective) << 32),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for short turns on the processor, for this thread and those that it will start: it is then let in sooner when it has
/// been woken beside busy programs, and gets no more than its share (Linux 6.12; older kernels do not mind).
///
/// # Errors
/// What `sched_getattr(2)` and `sched_setattr(2)` return.
pub fn short_turns() -> io::Result<()> {
    /// The least that the kernel allows, in nanoseconds; 2.8 ms is usual.
    const TURN: u64 = 100_000;
    // SAFETY: numbers, for which zero is a value.
    let mut have: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = std::mem::size_of::<libc::sched_attr>();
    // SAFETY: the kernel writes at most as many bytes as is said; 0 stands for the calling thread.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut have, size, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // What somebody has set for a purpose stays.
    if have.sched_policy != libc::SCHED_OTHER.unsigned_abs() {
        return Ok(());
    }
    have.sched_runtime = TURN;
    // SAFETY: the attributes say their size, which the kernel has filled in.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const have, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// As [`short_turns`]; it works without them too.
pub fn short_turns_or_say() {
    if let Err(error) = short_turns() {
        tracing::debug!(%error, "no short turns on the processor");
    }
}

/// Opens a directory of a FUSE mount by its inode number, wherever it is in the tree. Needs
/// `CAP_DAC_READ_SEARCH`, and a file system that can be exported.
///
/// # Errors
/// What `open_by_handle_at(2)` returns.
pub fn open_inode(mount: &impl AsFd, ino: u64, root: bool) -> io::Result<OwnedFd> {
    /// A `struct file_handle` with its bytes (fcntl.h).
    #[repr(C)]
    struct Handle {
        bytes: libc::c_uint,
        kind: libc::c_int,
        ino: [u32; 2],
        generation: u32,
    }
    /// `FILEID_INO64_GEN` (linux/exportfs.h): high half, low half, generation, as fs/fuse encodes it.
    const FILEID_INO64_GEN: libc::c_int = 0x81;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    // A clone's own descriptor is of the kind that is good for paths only.
    let top = openat(mount, ".", flags, Mode::empty())?;
    if root {
        return Ok(top);
    }
    // The two halves fit.
    let halves = [(ino >> 32) as u32, (ino & 0xffff_ffff) as u32];
    let mut handle = Handle { bytes: 12, kind: FILEID_INO64_GEN, ino: halves, generation: 0 };
    let mount = top.as_raw_fd();
    // SAFETY: the handle is laid out as `struct file_handle`, with as many bytes behind it as it says.
    let fd = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount, &raw mut handle, flags.bits()) };
    match i32::try_from(fd) {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Bytes of a listing that are asked for at once.
const LISTED: usize = 1 << 17;

/// Lists a directory to its end, for what that leaves in the kernel's caches.
///
/// # Errors
/// What getdents64(2) returns.
pub fn list(dir: &impl AsFd) -> io::Result<()> {
    // One request each: some hundred names.
    let mut piece = vec![0_u8; LISTED];
    loop {
        let dir = dir.as_fd().as_raw_fd();
        // SAFETY: the buffer has as many bytes as is said.
        let read = unsafe { libc::syscall(libc::SYS_getdents64, dir, piece.as_mut_ptr(), piece.len()) };
        match read {
            0 => return Ok(()),
            1.. => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
}

/// A descriptor of our own for what an inherited number stands for; the number itself stays open, so
/// that another program can be given it again.
///
/// # Errors
/// What fcntl(2) returns: `EBADF` for a number that nothing was inherited under.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: this call takes integers, and fails for a number that is not open.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    // SAFETY: a new descriptor that nobody else owns.
    if fd >= 0 { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) } else { Err(io::Error::last_os_error()) }
}

/// Whether the programs that this process becomes or starts get a descriptor too.
///
/// # Errors
/// What fcntl(2) returns.
pub fn set_inherited(number: RawFd, inherited: bool) -> io::Result<()> {
    let flags = if inherited { 0 } else { libc::FD_CLOEXEC };
    // SAFETY: this call takes integers, and fails for a number that is not open.
    let done = unsafe { libc::fcntl(number, libc::F_SETFD, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets a number stand for what `by` stands for, in one step for all threads. A call under way
/// ends with what the number stood for when it began.
///
/// # Errors
/// What dup3(2) returns.
pub fn stand_for(number: RawFd, by: &impl AsFd) -> io::Result<()> {
    // SAFETY: this call takes integers. Whoever owns the number owns a descriptor afterwards as before.
    let done = unsafe { libc::dup3(by.as_fd().as_raw_fd(), number, libc::O_CLOEXEC) };
    if done >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes what was inherited under a number; nothing in this process owns it.
pub fn drop_inherited(number: RawFd) {
    // SAFETY: numbers that were inherited are owned by nobody here: `inherited` gives out others.
    unsafe { libc::close(number) };
}
