//! How much memory images may hold.
//!
//! An image is held whole, so one that is too large could take the machine down. The limit counts
//! what is held at that moment by all generations; an image that would go over it is refused before
//! it is read, and what was shown stays.

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

    fn room(&self, in_use: u64) -> u64 {
        self.total.saturating_sub(in_use)
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

#[cfg(test)]
mod tests {
    use super::*;

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
