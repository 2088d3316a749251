//! How much memory images may hold.
//!
//! An image is held whole, so one that is too large could take the machine down. The limit counts
//! what is held at that moment by all generations; an image that would go over it is refused before
//! it is read or decompressed, and what was shown stays.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::layer::device::DeviceError;
use crate::sealed;

/// Half of what there is: of the machine's memory, or of the control group's limit where that is
/// lower. Images are not all that a machine has memory for.
pub fn default_limit() -> u64 {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    // Names of groups are bytes.
    let groups = std::fs::read("/proc/self/cgroup").unwrap_or_default();
    let group = group_path(&groups).and_then(|path| {
        let limits = Path::new("/sys/fs/cgroup").join(path).join("memory.max");
        // `max` stands for no limit, and is no number.
        std::fs::read_to_string(limits).ok()?.trim().parse().ok()
    });
    // A kernel without /proc/meminfo does not exist; 1 GiB is then as good as any.
    machine.into_iter().chain(group).min().unwrap_or(2 << 30) / 2
}

/// The machine's memory in bytes, by `/proc/meminfo` (proc(5)).
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The path of the control group, version 2, by `/proc/self/cgroup` (cgroups(7)).
fn group_path(groups: &[u8]) -> Option<&Path> {
    let path = groups.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::/"))?;
    Some(Path::new(OsStr::from_bytes(path)))
}

/// What images may hold, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// One image.
    pub image: u64,
    /// All together.
    pub total: u64,
}

impl Limit {
    /// What the next image may hold.
    pub fn now(&self) -> u64 {
        self.image.min(self.room(sealed::in_use()))
    }

    /// Whether more is held than is allowed.
    pub fn is_exceeded(&self) -> bool {
        sealed::in_use() > self.total
    }

    /// Without any.
    pub const NONE: Self = Self { image: u64::MAX, total: u64::MAX };

    fn room(&self, in_use: u64) -> u64 {
        self.total.saturating_sub(in_use)
    }

    /// Checks that an image of `image` bytes, which is held already, may hold `more` beside it.
    ///
    /// # Errors
    /// [`TooMuch`].
    pub fn check(&self, image: u64, more: u64) -> Result<(), TooMuch> {
        self.check_beside(image, more, sealed::in_use())
    }

    fn check_beside(&self, image: u64, more: u64, in_use: u64) -> Result<(), TooMuch> {
        if more > self.image.saturating_sub(image) {
            return Err(TooMuch::Image { image, more, limit: self.image });
        }
        if more > self.room(in_use) {
            return Err(TooMuch::Total { more, in_use, total: self.total });
        }
        Ok(())
    }

    /// The reason for a refusal, if it is that of the total: then less elsewhere would help.
    pub fn refuses(&self, error: &DeviceError) -> Option<String> {
        let DeviceError::TooLarge { device, len, limit } = error else { return None };
        (*limit < self.image && *len <= self.image).then(|| {
            let (total, in_use) = (self.total, self.total - limit);
            format!(
                "{} has {len} bytes, and {in_use} of the {total} bytes that images may hold together are in use: \
                 raise `max_memory`, or remove a layer first",
                device.display()
            )
        })
    }
}

/// Why an image's compressed files are not decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// One image would hold too much.
    #[error(
        "the image has {image} bytes and its compressed files {more} when they are decompressed, more than the {limit} \
         that one may hold in memory: raise `image_limit`"
    )]
    Image {
        /// Bytes of the image.
        image: u64,
        /// Bytes of the content of its compressed files.
        more: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// All together would.
    #[error(
        "the image's compressed files have {more} bytes when they are decompressed, and {in_use} of the {total} bytes \
         that images may hold together are in use: raise `max_memory`, or remove a layer first"
    )]
    Total {
        /// Bytes of the content of its compressed files.
        more: u64,
        /// Bytes in use.
        in_use: u64,
        /// Bytes allowed.
        total: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_decompressed_counts() {
        let limit = Limit { image: 100, total: 150 };
        assert_eq!(limit.check_beside(40, 60, 90), Ok(()));
        assert_eq!(limit.check_beside(40, 61, 0), Err(TooMuch::Image { image: 40, more: 61, limit: 100 }));
        assert_eq!(limit.check_beside(40, 60, 91), Err(TooMuch::Total { more: 60, in_use: 91, total: 150 }));
        assert_eq!(limit.check_beside(101, 0, 151), Ok(()));
        assert_eq!(Limit::NONE.check(u64::MAX, 0), Ok(()));
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        assert_eq!(total("MemTotal:        2048 kB\nMemFree: 1 kB\n"), Some(2 << 20));
        assert_eq!(total("MemFree: 1 kB\n"), None);
        let path = Path::new("system.slice/ffs.service");
        assert_eq!(group_path(b"1:cpu:/x\n0::/system.slice/ffs.service\n"), Some(path));
        assert_eq!(group_path(b"1:cpu:/\xff\n0::/a\xfe\n"), Some(Path::new(OsStr::from_bytes(b"a\xfe"))));
        assert_eq!(group_path(b"1:cpu:/x\n"), None);
        assert!(default_limit() > 1 << 20);
    }

    #[test]
    fn a_refusal_says_which_limit_it_was() {
        let limit = Limit { image: 100, total: 50 };
        assert_eq!((limit.room(20), limit.room(60)), (30, 0));
        let too_large = |len, limit| DeviceError::TooLarge { device: "/x.iso".into(), len, limit };
        let reason = limit.refuses(&too_large(40, 30)).unwrap();
        assert!(reason.contains("40 bytes, and 20 of the 50"), "{reason}");
        // No room would be enough.
        assert_eq!(limit.refuses(&too_large(101, 30)), None);
        assert_eq!(Limit { image: 10, total: 50 }.refuses(&too_large(11, 10)), None);
    }
}
