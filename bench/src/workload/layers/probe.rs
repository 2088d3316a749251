//! Probes of one thread: lookups, small reads, listings, one long read.
//!
//! Each measures a pass over many names with one clock reading before and one after, so that the
//! clock's own cost and resolution vanish. Nothing is allocated inside a pass. A warm value is the
//! median of several passes after one that does not count.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use rustix::fs::{CWD, Mode, OFlags, RawDir, open, openat, stat};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use super::tree;
use crate::stats::median;

/// What a small read takes at most, in bytes.
pub const SMALL_READ: usize = 4096;
/// What one call of the long read takes, in bytes.
const LONG_READ: usize = 1 << 20;

/// Lookups on a mount that nobody has looked at yet, in µs each.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cold {
    /// stat of a name that exists.
    pub stat: f64,
    /// stat of a name that does not.
    pub negative: f64,
}

/// The same again and more, with the kernel's caches filled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Warm {
    /// stat of a name that exists, in µs.
    pub stat: f64,
    /// stat of a name that does not, in µs.
    pub negative: f64,
    /// open, read of [`SMALL_READ`] bytes and close, in µs.
    pub open_read: f64,
    /// open, listing of all names and close, in µs.
    pub readdir: f64,
    /// First read of the large file, in GB/s (10⁹ bytes).
    pub seq_first: f64,
    /// Later reads of it, in GB/s.
    pub seq: f64,
}

/// Keeps this thread on the last processor that it may use: the file system's own program has the
/// others for itself, and nothing moves between caches.
///
/// # Errors
/// The system refuses.
pub fn pin() -> io::Result<()> {
    let allowed = sched_getaffinity(None)?;
    if let Some(last) = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)) {
        let mut one = CpuSet::new();
        one.set(last);
        sched_setaffinity(None, &one)?;
    }
    Ok(())
}

/// A path for the kernel.
///
/// # Errors
/// It has a NUL in it.
pub fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Names in an order that is neither the listing's nor random: the same for every file system.
fn names(root: &Path, prefix: &str, count: u32) -> io::Result<Vec<CString>> {
    // A prime beyond every count, so that each name comes once.
    const STRIDE: u64 = 1_000_003;
    (0..u64::from(count))
        .map(|index| {
            let number = index * STRIDE % u64::from(count);
            c_path(&root.join(tree::DIRECTORY).join(format!("{prefix}{number:05}")))
        })
        .collect()
}

/// Time of one item in µs.
fn each(began: Instant, count: usize) -> f64 {
    began.elapsed().as_secs_f64() * 1e6 / count.max(1) as f64
}

fn stat_all(names: &[CString]) -> io::Result<f64> {
    let began = Instant::now();
    for name in names {
        stat(name.as_c_str())?;
    }
    Ok(each(began, names.len()))
}

fn miss_all(names: &[CString]) -> io::Result<f64> {
    let began = Instant::now();
    for name in names {
        match stat(name.as_c_str()) {
            Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Err(io::Error::other(format!("{} exists", name.to_string_lossy()))),
        }
    }
    Ok(each(began, names.len()))
}

fn read_all(names: &[CString], buffer: &mut [u8]) -> io::Result<f64> {
    let began = Instant::now();
    for name in names {
        let file = open(name.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        if rustix::io::read(&file, &mut *buffer)? != buffer.len() {
            return Err(io::Error::other(format!(
                "{} is shorter than it was written",
                name.to_string_lossy()
            )));
        }
    }
    Ok(each(began, names.len()))
}

/// Time in µs, and how many names there were without `.` and `..`.
fn list(directory: &CString, buffer: &mut [MaybeUninit<u8>]) -> io::Result<(f64, usize)> {
    let began = Instant::now();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = openat(CWD, directory.as_c_str(), flags, Mode::empty())?;
    let mut entries = RawDir::new(&opened, buffer);
    let mut count = 0;
    while let Some(entry) = entries.next() {
        count += usize::from(!matches!(entry?.file_name().to_bytes(), b"." | b".."));
    }
    drop(opened);
    Ok((each(began, 1), count))
}

fn read_through(path: &CString, buffer: &mut [u8]) -> io::Result<f64> {
    let began = Instant::now();
    let file = open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut bytes = 0_usize;
    loop {
        match rustix::io::read(&file, &mut *buffer)? {
            0 => break,
            some => bytes += some,
        }
    }
    Ok(bytes as f64 / began.elapsed().as_secs_f64() / 1e9)
}

/// The median of `passes` values after one that does not count.
fn settled(passes: u32, mut pass: impl FnMut() -> io::Result<f64>) -> io::Result<f64> {
    pass()?;
    let values = (0..passes).map(|_| pass()).collect::<io::Result<Vec<_>>>()?;
    Ok(median(&values))
}

/// Looks names up on a mount that nobody has looked at.
///
/// # Errors
/// A name that is there cannot be looked up, or one that is not there can.
pub fn cold(root: &Path, files: u32) -> io::Result<Cold> {
    let (present, absent) = (names(root, "f", files)?, names(root, "none", files)?);
    Ok(Cold { stat: stat_all(&present)?, negative: miss_all(&absent)? })
}

/// Measures everything that a cache can help.
///
/// # Errors
/// A name that is there cannot be read, one that is not there can, or the listing has another number of names.
pub fn warm(root: &Path, files: u32, passes: u32) -> io::Result<Warm> {
    let (present, absent) = (names(root, "f", files)?, names(root, "none", files)?);
    let directory = c_path(&root.join(tree::DIRECTORY))?;
    let large = c_path(&root.join(tree::LARGE))?;
    let mut small = vec![0; SMALL_READ];
    let mut long = vec![0; LONG_READ];
    let mut entries = vec![MaybeUninit::uninit(); 32 << 10];
    let seq_first = read_through(&large, &mut long)?;
    Ok(Warm {
        stat: settled(passes, || stat_all(&present))?,
        negative: settled(passes, || miss_all(&absent))?,
        open_read: settled(passes, || read_all(&present, &mut small))?,
        // A listing is one item, so more of them make a pass.
        readdir: settled(passes.saturating_mul(4), || {
            let (micros, count) = list(&directory, &mut entries)?;
            if count == files as usize {
                Ok(micros)
            } else {
                Err(io::Error::other(format!("a listing has {count} names instead of {files}")))
            }
        })?,
        seq_first,
        seq: settled(passes, || read_through(&large, &mut long))?,
    })
}

/// Looks up the first `count` files of the large union, so that its program has seen them.
///
/// # Errors
/// A file cannot be looked up.
pub fn walk(root: &Path, many: tree::Many, count: u32) -> io::Result<()> {
    for number in 0..count {
        stat(c_path(&root.join(many.path(number)))?.as_c_str())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_once() {
        let mut all = names(Path::new("/x"), "f", 2000).unwrap();
        assert_ne!(all[1].to_bytes(), b"/x/d/f00001");
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 2000);
    }

    #[test]
    fn a_plain_folder_is_measured() {
        let folder = tempfile::tempdir().unwrap();
        let trees = tree::Trees::write(
            folder.path(),
            &tree::Shape { files: 50, large: 3 << 20, ..tree::Shape::SMALL },
        )
        .unwrap();
        let root = trees.native();
        let cold = cold(&root, 50).unwrap();
        let warm = warm(&root, 50, 3).unwrap();
        for micros in [cold.stat, cold.negative, warm.stat, warm.negative, warm.open_read, warm.readdir] {
            assert!(micros > 0.0, "{cold:?} {warm:?}");
        }
        assert!(warm.seq > 0.0 && warm.seq_first > 0.0);
        // One name too many is not overlooked.
        assert!(super::warm(&root, 49, 1).is_err());
    }
}
