//! A file that is there whole or not at all, a power cut included: written beside its place, synced, renamed, and the
//! directory synced.
//!
//! The last step makes the new name durable, and some file systems have no way to do that: fsync(2) of a directory is
//! EINVAL on several network and FUSE file systems, and a directory that may be written but not listed cannot be opened
//! for it. There the new file is in place all the same, and nothing better can be had, so that is no error
//! ([`sync_dir`]). EIO and the like are errors.
//!
//! The temporary name begins with a dot and ends with `.tmp` ([`is_leftover`]), and is never longer than the file's own name
//! where that is long: a name that the file system takes has a temporary one that it takes.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{OFlag, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::place::{Place, open_with};

/// A temporary name may have so many bytes, whatever the file's own name is. Every file system takes that many.
const SHORT: usize = 64;
/// What temporary names end with.
const ENDING: &str = ".tmp";

/// Writes `bytes` to `path`, readable for its owner only (0600), so that `path` is at any time either what it was or all of
/// `bytes`.
///
/// # Errors
/// [`crate::place::UnsafeLink`]; [`io::ErrorKind::InvalidInput`] where there is something else than a regular file; what the
/// file system answers. No temporary file is left. `path` is unchanged, unless only the directory could not
/// be synced: the message says so.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with_mode(path, bytes, 0o600)
}

/// As [`write()`], with these permission bits, whatever the umask is.
///
/// # Errors
/// As [`write()`].
pub fn write_with_mode(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let Place { folder, name } = Place::of(path)?;
    let temporary = beside(&name);
    let new = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let mut file = File::from(open_with(&folder, &temporary, new, Mode::S_IRUSR | Mode::S_IWUSR)?);
    let written = (|| {
        file.write_all(bytes)?;
        if mode != 0o600 {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        sync(&file)?;
        Ok(renameat(&folder, temporary.as_os_str(), &folder, name.as_os_str())?)
    })();
    if let Err(error) = written {
        // Best effort: the error that matters is the first one.
        let _ = unlinkat(&folder, temporary.as_os_str(), UnlinkatFlags::NoRemoveDir);
        return Err(error);
    }
    let opened = open_with(&folder, OsStr::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty());
    sync_opened(opened.map(File::from).map_err(io::Error::from))
        .map_err(|error| io::Error::new(error.kind(), format!("written, but its name may be lost: {error}")))
}

/// Renames a file that was written under another name in the same directory into its place, durably. The file must have been
/// synced.
///
/// # Errors
/// What rename(2) and [`sync_dir`] return.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_dir(folder(to))
}

/// Syncs a file, where its file system can.
///
/// # Errors
/// What fsync(2) returns, unless that it is not supported.
pub fn sync(file: &File) -> io::Result<()> {
    forgive(file.sync_all())
}

/// Syncs what was written to a file, where its file system can.
///
/// # Errors
/// As [`sync`].
pub fn sync_data(file: &File) -> io::Result<()> {
    forgive(file.sync_data())
}

/// Makes the names in a directory durable, where its file system can.
///
/// # Errors
/// What open(2) and fsync(2) return, unless that it is not supported or that the directory may not be listed.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    sync_opened(File::open(dir))
}

fn sync_opened(dir: io::Result<File>) -> io::Result<()> {
    match dir {
        Ok(dir) => sync(&dir),
        // Names can be made in it, and it cannot be opened: mode 0300.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a file of this name is one that was being written when its program was killed.
pub fn is_leftover(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") && name.as_bytes().ends_with(ENDING.as_bytes())
}

/// "Cannot be synced" is no error: there is no file system to hold to it.
fn forgive(synced: io::Result<()>) -> io::Result<()> {
    match synced {
        Err(error) if cannot_sync(&error) => Ok(()),
        other => other,
    }
}

fn cannot_sync(error: &io::Error) -> bool {
    let unsupported = [Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENOSYS, Errno::EROFS, Errno::ENOTTY];
    error.raw_os_error().is_some_and(|number| unsupported.contains(&Errno::from_raw(number)))
}

/// The directory that a path's last component is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name in the same directory that no other writer has.
fn beside(name: &OsStr) -> OsString {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    temporary_name(name, &format!(".{}.{number}{ENDING}", std::process::id()))
}

/// `.NAME` and the suffix, NAME cut short where that would be longer than both NAME and [`SHORT`].
fn temporary_name(name: &OsStr, suffix: &str) -> OsString {
    let most = name.len().max(SHORT).saturating_sub(1 + suffix.len());
    let mut kept = name.as_bytes();
    if kept.len() > most {
        kept = &kept[..most];
        // Some file systems take only UTF-8: no half of a character.
        if let Some(text) = name.to_str() {
            let end = (0..=most).rfind(|end| text.is_char_boundary(*end)).unwrap_or(0);
            kept = &kept[..end];
        }
    }
    OsString::from_vec([b".", kept, suffix.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn the_new_file_is_alone_and_has_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.iso");
        for (bytes, mode) in [(&b"old"[..], 0o600), (b"new", 0o644)] {
            write_with_mode(&path, bytes, mode).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(names(dir.path()), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"x").is_err());
        assert_eq!(names(dir.path()), 1);
        assert!(write(Path::new("/"), b"x").is_err());
    }

    #[test]
    fn what_is_no_file_stays_and_a_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, file, link) = (dir.path().join("pipe"), dir.path().join("file"), dir.path().join("link"));
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = write(&pipe, b"x").unwrap_err().to_string();
        assert!(error.contains("no regular file"), "{error}");
        assert!(!fs::symlink_metadata(&pipe).unwrap().is_file());
        assert!(write(Path::new("/dev/null"), b"x").is_err());
        write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, b"new").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[test]
    fn a_name_of_255_bytes_is_written() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["n".repeat(255), "ä".repeat(127)] {
            let path = dir.path().join(name);
            write(&path, b"x").unwrap();
            write(&path, b"y").unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"y");
        }
        assert_eq!(names(dir.path()), 2);
    }

    #[test]
    fn only_what_cannot_be_synced_is_forgiven() {
        for errno in [Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENOSYS, Errno::EROFS] {
            assert!(forgive(Err(errno.into())).is_ok(), "{errno}");
        }
        for errno in [Errno::EIO, Errno::ENOSPC, Errno::EDQUOT] {
            assert!(forgive(Err(errno.into())).is_err(), "{errno}");
        }
    }

    proptest! {
        #[test]
        fn a_temporary_name_is_no_longer_than_the_name(name in "[a-zäß€]{1,255}", number: u64) {
            let suffix = format!(".4194304.{number}{ENDING}");
            let temporary = temporary_name(OsStr::new(&name), &suffix);
            prop_assert!(temporary.len() <= name.len().max(SHORT));
            prop_assert!(temporary.to_str().is_some() && is_leftover(&temporary));
            prop_assert!(temporary.as_bytes().ends_with(suffix.as_bytes()));
        }
    }
}
