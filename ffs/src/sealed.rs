//! Sealed memory: an image read once and unchangeable from then on.
//!
//! The bytes live in a memfd that is sealed against writing and resizing and mapped read-only, so a
//! slice of it is as immutable as a constant, for us and for the kernel. Nothing of a context image
//! ever reaches the guest's disk this way (swap aside; the units ask for none).

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes in all sealed memory of this process.
static IN_USE: AtomicU64 = AtomicU64::new(0);

/// Bytes that all [`Sealed`] of this process hold: those of every generation that somebody uses.
pub fn in_use() -> u64 {
    IN_USE.load(Ordering::Relaxed)
}

/// Immutable bytes in memory of their own.
#[derive(Debug)]
pub struct Sealed {
    fd: OwnedFd,
    /// `None` when there are no bytes: an empty mapping does not exist.
    map: Option<NonNull<u8>>,
    len: usize,
}

// SAFETY: the mapping is read-only and its pages cannot change (sealed): sharing it is sharing `&[u8]`.
unsafe impl Send for Sealed {}
// SAFETY: as above.
unsafe impl Sync for Sealed {}

impl Sealed {
    /// Reads everything that `from` has, at most `limit` bytes, and seals it.
    ///
    /// # Errors
    /// What reading returns; [`io::ErrorKind::FileTooLarge`] when there is more than `limit`;
    /// what `memfd_create(2)`, fcntl(2) or mmap(2) return.
    pub fn read_from(from: &mut impl Read, limit: u64) -> io::Result<Self> {
        let mut writer = Writer::new()?;
        // 1 MiB: large reads are what an emulated drive is fast at.
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if writer.len + read as u64 > limit {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            writer.append(&buffer[..read])?;
        }
        writer.seal()
    }

    fn seal(file: File, len: u64) -> io::Result<Self> {
        let seals =
            SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Self::map(file, len)
    }

    /// Sealed memory that another program made; refused unless nobody can change it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for memory that is not sealed; what fcntl(2), fstat(2) or mmap(2)
    /// return.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let have = SealFlag::from_bits_truncate(fcntl(&file, FcntlArg::F_GET_SEALS)?);
        if !have.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "memory that is not sealed"));
        }
        let len = file.metadata()?.len();
        Self::map(file, len)
    }

    /// Maps a file that is sealed against writing and shrinking.
    fn map(file: File, len: u64) -> io::Result<Self> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let map = match NonZeroUsize::new(len) {
            // SAFETY: a new read-only mapping at an address of the kernel's choice aliases
            // nothing; the file has `len` bytes and is sealed against shrinking, so no access faults.
            Some(len) => {
                Some(unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }?.cast())
            }
            None => None,
        };
        IN_USE.fetch_add(len as u64, Ordering::Relaxed);
        Ok(Self { fd: file.into(), map, len })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self.map {
            // SAFETY: the mapping has `len` readable bytes, lives as long as `self`, and cannot
            // change: the file behind it is sealed against writing.
            Some(map) => unsafe { std::slice::from_raw_parts(map.as_ptr(), self.len) },
            None => &[],
        }
    }

    /// Pieces of the bytes; ranges outside give empty pieces.
    pub fn chunks<'a>(&'a self, ranges: &'a [(u64, u64)]) -> impl Iterator<Item = &'a [u8]> {
        ranges.iter().map(|&(start, len)| {
            let range = usize::try_from(start).ok().zip(usize::try_from(start.saturating_add(len)).ok());
            range.and_then(|(start, end)| self.bytes().get(start..end)).unwrap_or_default()
        })
    }
}

/// Memory that is being filled.
#[derive(Debug)]
pub(crate) struct Writer {
    file: BufWriter<File>,
    len: u64,
}

impl Writer {
    /// # Errors
    /// What `memfd_create(2)` returns.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"ffs-image", flags)?);
        Ok(Self { file: BufWriter::with_capacity(1 << 18, file), len: 0 })
    }

    /// Adds bytes and returns where they begin.
    ///
    /// # Errors
    /// What write(2) returns.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.len;
        self.file.write_all(bytes)?;
        self.len += bytes.len() as u64;
        Ok(at)
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// # Errors
    /// What write(2), fcntl(2) or mmap(2) return.
    pub(crate) fn seal(self) -> io::Result<Sealed> {
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        Sealed::seal(file, self.len)
    }
}

impl AsFd for Sealed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        IN_USE.fetch_sub(self.len as u64, Ordering::Relaxed);
        if let Some(map) = self.map {
            // SAFETY: exactly the mapping made in `seal`; no slice of it outlives `self`.
            let unmapped = unsafe { munmap(map.cast(), self.len) };
            debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_cannot_change() {
        let sealed = Sealed::read_from(&mut &b"context"[..], 100).unwrap();
        assert_eq!(sealed.bytes(), b"context");
        let mut file = File::from(sealed.as_fd().try_clone_to_owned().unwrap());
        assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(nix::libc::EPERM));
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn only_what_is_sealed_is_adopted() {
        let sealed = Sealed::read_from(&mut &b"context"[..], 100).unwrap();
        let again = Sealed::adopt(sealed.as_fd().try_clone_to_owned().unwrap()).unwrap();
        drop(sealed);
        assert_eq!(again.bytes(), b"context");
        let open = Writer::new().unwrap().file.into_inner().unwrap();
        assert_eq!(Sealed::adopt(open.into()).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(Sealed::adopt(tempfile::tempfile().unwrap().into()).is_err());
    }

    #[test]
    fn the_limit_holds() {
        assert!(Sealed::read_from(&mut &b"12345"[..], 5).is_ok());
        let error = Sealed::read_from(&mut &b"123456"[..], 5).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(Sealed::read_from(&mut io::empty(), 5).unwrap().bytes(), b"");
    }

    #[test]
    fn pieces_outside_are_empty() {
        let sealed = Sealed::read_from(&mut &b"0123456789"[..], 100).unwrap();
        let pieces: Vec<_> = sealed.chunks(&[(2, 3), (9, 2), (u64::MAX, 2)]).collect();
        assert_eq!(pieces, [&b"234"[..], b"", b""]);
    }
}
