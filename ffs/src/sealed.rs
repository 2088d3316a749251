//! Sealed memory: an image read once and unchangeable from then on.
//!
//! The bytes live in a memfd that is sealed against writing and resizing and mapped read-only, so a
//! slice of it is as immutable as a constant, for us and for the kernel; a little of them, on the heap. Nothing of
//! a context image ever reaches the guest's disk this way (swap aside; the units ask for none).

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// So many bytes are kept on the heap: a file for them costs as much as reading five files.
const LITTLE: usize = 1 << 18;

/// Bytes in all sealed memory of this process.
static IN_USE: AtomicU64 = AtomicU64::new(0);

/// Bytes that all [`Sealed`] of this process hold: those of every generation that somebody uses.
pub fn in_use() -> u64 {
    IN_USE.load(Ordering::Relaxed)
}

/// Immutable bytes in memory of their own.
#[derive(Debug)]
pub struct Sealed(Memory);

#[derive(Debug)]
enum Memory {
    /// A little.
    Heap(Box<[u8]>),
    File(Mapped),
}

/// A sealed memfd and its map.
#[derive(Debug)]
struct Mapped {
    fd: OwnedFd,
    map: NonNull<u8>,
    len: NonZeroUsize,
}

// SAFETY: the mapping is read-only and its pages cannot change (sealed): sharing it is sharing `&[u8]`.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Sealed {
    /// Reads everything that `from` has, at most `limit` bytes, and seals it.
    ///
    /// # Errors
    /// What reading returns; [`io::ErrorKind::FileTooLarge`] when there is more than `limit`;
    /// what `memfd_create(2)`, fcntl(2) or mmap(2) return.
    pub fn read_from(from: &mut impl Read, limit: u64) -> io::Result<Self> {
        let mut writer = Writer::default();
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

    fn heap(bytes: Vec<u8>) -> Self {
        IN_USE.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Self(Memory::Heap(bytes.into()))
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
        // An empty mapping does not exist.
        let Some(len) = NonZeroUsize::new(len) else { return Ok(Self::heap(Vec::new())) };
        // SAFETY: a new read-only mapping at an address of the kernel's choice aliases
        // nothing; the file has `len` bytes and is sealed against shrinking, so no access faults.
        let map = unsafe { mmap(None, len, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, &file, 0) }?.cast();
        IN_USE.fetch_add(len.get() as u64, Ordering::Relaxed);
        Ok(Self(Memory::File(Mapped { fd: file.into(), map, len })))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Memory::Heap(bytes) => bytes,
            // SAFETY: the mapping has `len` readable bytes, lives as long as `self`, and cannot
            // change: the file behind it is sealed against writing.
            Memory::File(Mapped { map, len, .. }) => unsafe {
                std::slice::from_raw_parts(map.as_ptr(), len.get())
            },
        }
    }

    /// A sealed file with the bytes, for another program.
    ///
    /// # Errors
    /// What `memfd_create(2)`, write(2) or fcntl(2) return.
    pub(crate) fn file(&self) -> io::Result<OwnedFd> {
        match &self.0 {
            Memory::File(mapped) => mapped.fd.try_clone(),
            Memory::Heap(bytes) => {
                let mut copy = unsealed()?;
                copy.write_all(bytes)?;
                seal(&copy)?;
                Ok(copy.into())
            }
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

fn unsealed() -> io::Result<File> {
    Ok(memfd_create(c"ffs-image", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?.into())
}

fn seal(file: &File) -> io::Result<()> {
    let seals =
        SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(())
}

/// Memory that is being filled.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// What is not in the file; a little needs none.
    buffer: Vec<u8>,
    file: Option<File>,
    len: u64,
}

impl Writer {
    /// Adds bytes and returns where they begin.
    ///
    /// # Errors
    /// What `memfd_create(2)` or write(2) return.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let at = self.len;
        self.len += bytes.len() as u64;
        if self.buffer.len() + bytes.len() <= LITTLE {
            self.buffer.extend_from_slice(bytes);
        } else {
            self.flush()?.write_all(bytes)?;
        }
        Ok(at)
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    fn flush(&mut self) -> io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => unsealed()?,
        };
        let file = self.file.insert(file);
        file.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(file)
    }

    /// # Errors
    /// What write(2), fcntl(2) or mmap(2) return.
    pub(crate) fn seal(mut self) -> io::Result<Sealed> {
        if self.file.is_some() {
            seal(self.flush()?)?;
        }
        match self.file {
            Some(file) => Sealed::map(file, self.len),
            None => Ok(Sealed::heap(self.buffer)),
        }
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        IN_USE.fetch_sub(self.bytes().len() as u64, Ordering::Relaxed);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`; no slice of it outlives `self`.
        let unmapped = unsafe { munmap(self.map.cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little, and more: with the limit, all that is kept in other ways.
    fn some() -> [Vec<u8>; 4] {
        [1, LITTLE, LITTLE + 1, 3 * LITTLE].map(|len| (0..251).cycle().take(len).collect())
    }

    #[test]
    fn sealed_bytes_cannot_change() {
        for bytes in some() {
            let sealed = Sealed::read_from(&mut &bytes[..], u64::MAX).unwrap();
            assert!(sealed.bytes() == bytes);
            let mut file = File::from(sealed.file().unwrap());
            assert_eq!(file.write(b"x").unwrap_err().raw_os_error(), Some(nix::libc::EPERM));
            assert!(file.set_len(0).is_err());
        }
    }

    #[test]
    fn what_is_added_in_pieces_comes_in_order() {
        for piece in [1000, LITTLE / 2 + 1, LITTLE + 1] {
            let mut writer = Writer::default();
            let bytes: Vec<u8> = (0..251).cycle().take(3 * LITTLE).collect();
            for (number, piece_bytes) in bytes.chunks(piece).enumerate() {
                assert_eq!(writer.append(piece_bytes).unwrap(), (number * piece) as u64);
            }
            assert_eq!(writer.len(), bytes.len() as u64);
            assert!(writer.seal().unwrap().bytes() == bytes);
        }
    }

    #[test]
    fn only_what_is_sealed_is_adopted() {
        for bytes in some() {
            let sealed = Sealed::read_from(&mut &bytes[..], u64::MAX).unwrap();
            let again = Sealed::adopt(sealed.file().unwrap()).unwrap();
            drop(sealed);
            assert!(again.bytes() == bytes);
        }
        assert_eq!(Sealed::adopt(unsealed().unwrap().into()).unwrap_err().kind(), io::ErrorKind::InvalidData);
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
