//! Where a path leads, for a program that writes there: the folder, held open, and the name in it. Symbolic links are
//! followed only where nobody else can have planted them.
//!
//! Users keep links to where their files are, so links are followed, dangling ones included. But in a folder that everyone
//! may write, such as `/tmp`, anyone can put a link at the name that root is about to write, and root would replace the file
//! that it points to. The rule is that of the kernel's `protected_symlinks` (Documentation/admin-guide/sysctl/fs.rst), in force
//! whatever the sysctl says, and for folders without the sticky bit, too: in a folder that everyone may write, a link is
//! followed only when it belongs to the caller or to the owner of the folder. It holds for every link on the way, those in the
//! middle of the path included. As for the kernel, those who may write a folder by their group are trusted.
//!
//! The path is walked one name at a time, by descriptor. Each link is checked and read through the descriptor of the link
//! itself, and the file is then written by its name in the descriptor of the folder, so that nothing can be exchanged between
//! the check and the use: a link that appears at the last name later is replaced by the rename and not followed.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

/// So many links are followed, as by the kernel.
const MOST_LINKS: usize = 40;

/// A name in an open folder, with a regular file or nothing behind it.
#[derive(Debug)]
pub(crate) struct Place {
    /// The folder. It is open to find names in it, not to be read (`O_PATH`).
    pub(crate) folder: OwnedFd,
    /// The name.
    pub(crate) name: OsString,
}

/// A symbolic link that anyone could have planted is not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsafeLink {
    /// The link.
    pub link: PathBuf,
    /// The user whom it belongs to.
    pub owner: u32,
}

impl fmt::Display for UnsafeLink {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { link, owner } = self;
        write!(
            out,
            "not written through {}, a symbolic link of user {owner} in a folder that everyone may write: remove it, or give \
             the path that it points to",
            link.display()
        )
    }
}

impl Error for UnsafeLink {}

impl From<UnsafeLink> for io::Error {
    fn from(error: UnsafeLink) -> Self {
        io::Error::new(io::ErrorKind::PermissionDenied, error)
    }
}

impl Place {
    /// Walks `path` to the folder of its last name, at the end of all links.
    ///
    /// # Errors
    /// [`UnsafeLink`]; [`io::ErrorKind::InvalidInput`] where there is something that is no regular file, or no name; what
    /// the file system answers.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        // Names still to walk, the last one first.
        let mut rest = names(path);
        let mut walked = start(path);
        let mut folder = open(AT_FDCWD, walked.as_os_str(), OFlag::O_DIRECTORY)?;
        let mut links = 0;
        while let Some(name) = rest.pop() {
            let last = rest.is_empty();
            if last && (name == "." || name == "..") {
                break;
            }
            let found = match look(&folder, &name, last) {
                Err(error) if last && error == Errno::ENOENT => return Ok(Self { folder, name }),
                found => found?,
            };
            let about = fstat(&found)?;
            match SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFLNK => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    if fstatfs(&folder)?.filesystem_type() == PROC_SUPER_MAGIC {
                        // These are no names: what one says may be another file here. The kernel knows the way.
                        if last {
                            return Err(no_file());
                        }
                        folder = open(&folder, &name, OFlag::O_DIRECTORY)?;
                        walked.push(name);
                        continue;
                    }
                    if !may_follow(&fstat(&folder)?, &about, nix::unistd::geteuid().as_raw()) {
                        return Err(UnsafeLink { link: walked.join(name), owner: about.st_uid }.into());
                    }
                    let target = PathBuf::from(readlinkat(&found, "")?);
                    if target.is_absolute() {
                        walked = start(&target);
                        folder = open(AT_FDCWD, walked.as_os_str(), OFlag::O_DIRECTORY)?;
                    }
                    rest.extend(names(&target));
                }
                SFlag::S_IFREG if last => return Ok(Self { folder, name }),
                _ if last => return Err(no_file()),
                SFlag::S_IFDIR => {
                    folder = found;
                    walked.push(name);
                }
                _ => return Err(Errno::ENOTDIR.into()),
            }
        }
        Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))
    }
}

/// Whether a link in `folder` is followed for the user `caller`.
fn may_follow(folder: &FileStat, link: &FileStat, caller: u32) -> bool {
    folder.st_mode & Mode::S_IWOTH.bits() == 0 || link.st_uid == caller || link.st_uid == folder.st_uid
}

fn start(path: &Path) -> PathBuf {
    PathBuf::from(if path.is_absolute() { "/" } else { "." })
}

/// The names of a path, the last one first. A slash at the end stands for `.`: there must be a folder.
fn names(path: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = path.as_os_str().as_bytes().split(|byte| *byte == b'/').rev().collect();
    if let Some(last) = names.first_mut().filter(|last| last.is_empty()) {
        *last = b".";
    }
    names.retain(|name| !name.is_empty());
    names.into_iter().map(|name| OsString::from_vec(name.to_vec())).collect()
}

/// Opens a name, and a link itself. The name of a folder is opened as one: that mounts what is mounted at first use.
fn look(folder: &OwnedFd, name: &OsStr, last: bool) -> Result<OwnedFd, Errno> {
    if !last {
        match open(folder, name, OFlag::O_NOFOLLOW | OFlag::O_DIRECTORY) {
            Err(Errno::ENOTDIR | Errno::ELOOP) => {}
            other => return other,
        }
    }
    open(folder, name, OFlag::O_NOFOLLOW)
}

fn open(folder: impl AsFd, name: &OsStr, flags: OFlag) -> Result<OwnedFd, Errno> {
    open_with(folder, name, flags | OFlag::O_PATH, Mode::empty())
}

/// openat(2), again where a signal came in between.
pub(crate) fn open_with(folder: impl AsFd, name: &OsStr, flags: OFlag, mode: Mode) -> Result<OwnedFd, Errno> {
    loop {
        match openat(folder.as_fd(), name, flags | OFlag::O_CLOEXEC, mode) {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

fn no_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "there is something of this name that is no regular file")
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};

    use super::*;
    use crate::durable::write;

    const NOBODY: u32 = 65_534;

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refused(path: &Path) -> Option<UnsafeLink> {
        let error = write(path, b"new").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        error.into_inner()?.downcast().ok().map(|refused| *refused)
    }

    /// Only root can give a link to another user.
    fn root(test: &str) -> bool {
        let root = nix::unistd::geteuid().is_root();
        if !root {
            eprintln!("SKIPPED {test}: not root");
        }
        root
    }

    #[test]
    fn a_link_is_followed_by_the_rule_of_protected_symlinks() {
        let dir = tempfile::tempdir().unwrap();
        let about = |mode: u32, owner: u32| {
            let mut about = nix::sys::stat::stat(dir.path()).unwrap();
            (about.st_mode, about.st_uid) = (SFlag::S_IFDIR.bits() | mode, owner);
            about
        };
        let (caller, owner, other) = (1000, 0, 1001);
        for (mode, link, followed) in [
            (0o755, other, true),
            (0o1775, other, true),
            (0o1777, caller, true),
            (0o1777, owner, true),
            (0o1777, other, false),
            (0o777, caller, true),
            (0o777, owner, true),
            (0o777, other, false),
            (0o702, other, false),
        ] {
            let answer = may_follow(&about(mode, owner), &about(0o777, link), caller);
            assert_eq!(answer, followed, "a link of {link} in a folder {mode:o}");
        }
    }

    #[test]
    fn a_link_of_others_where_everyone_may_write_is_refused() {
        if !root("a_link_of_others_where_everyone_may_write_is_refused") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (public, victim) = (dir.path().join("public"), dir.path().join("victim"));
        let link = public.join("out.iso");
        fs::create_dir(&public).unwrap();
        fs::write(&victim, "old").unwrap();
        symlink(&victim, &link).unwrap();
        lchown(&link, Some(NOBODY), Some(NOBODY)).unwrap();
        for mode in [0o1777, 0o777] {
            chmod(&public, mode);
            assert_eq!(refused(&link), Some(UnsafeLink { link: link.clone(), owner: NOBODY }));
            assert_eq!(fs::read(&victim).unwrap(), b"old");
        }
        assert_eq!(fs::read_dir(&public).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        // Nobody's folder may have links of its owner, and a folder of our own those of anyone.
        lchown(&public, Some(NOBODY), None).unwrap();
        write(&link, b"1").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"1");
        lchown(&public, Some(0), None).unwrap();
        chmod(&public, 0o755);
        write(&link, b"2").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"2");
    }

    #[test]
    fn every_link_on_the_way_is_checked() {
        if !root("every_link_on_the_way_is_checked") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("public")).unwrap();
        fs::create_dir(at("private")).unwrap();
        chmod(&at("public"), 0o1777);
        // A folder; a file, by a safe link to the unsafe one; a file that is not there.
        for (name, target) in [("folder", "../private"), ("file", "../private/x"), ("new", "../private/new")]
        {
            symlink(target, at("public").join(name)).unwrap();
            lchown(at("public").join(name), Some(NOBODY), None).unwrap();
        }
        symlink("public/file", at("link")).unwrap();
        for (path, link) in [
            ("public/folder/x", "public/folder"),
            ("link", "public/file"),
            ("public/new", "public/new"),
            ("private/../public/folder/../private/x", "private/../public/folder"),
        ] {
            assert_eq!(refused(&at(path)), Some(UnsafeLink { link: at(link), owner: NOBODY }));
        }
        assert_eq!(fs::read_dir(at("private")).unwrap().count(), 0);
        let said = UnsafeLink { link: "/tmp/x".into(), owner: 1 }.to_string();
        assert!(said.contains("/tmp/x, a symbolic link of user 1") && said.contains("remove it"), "{said}");
    }

    #[test]
    fn the_callers_own_links_are_followed_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("public")).unwrap();
        fs::create_dir(at("private")).unwrap();
        chmod(&at("public"), 0o1777);
        symlink("../private", at("public/folder")).unwrap();
        symlink("folder/x", at("public/relative")).unwrap();
        symlink(at("public/relative"), at("absolute")).unwrap();
        for path in ["public/folder/x", "public/relative", "absolute", "private/../public/./relative"] {
            write(&at(path), path.as_bytes()).unwrap();
            assert_eq!(fs::read(at("private/x")).unwrap(), path.as_bytes());
        }
        assert!(fs::symlink_metadata(at("absolute")).unwrap().is_symlink());
        assert_eq!(fs::read_dir(at("private")).unwrap().count(), 1);
    }

    #[test]
    fn what_a_dangling_link_points_to_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        symlink("folder/new", at("link")).unwrap();
        write(&at("link"), b"x").unwrap();
        assert_eq!(fs::read(at("folder/new")).unwrap(), b"x");
        symlink("no-folder/new", at("astray")).unwrap();
        assert_eq!(write(&at("astray"), b"x").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_loop_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("link", &link).unwrap();
        assert_eq!(write(&link, b"x").unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
    }

    #[test]
    fn a_slash_at_the_end_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("folder/", at("link")).unwrap();
        for path in ["folder/", "folder/.", "folder/..", "link"] {
            fs::create_dir(at("folder")).unwrap();
            let error = write(&at(path), b"x").unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{path}: {error}");
            fs::remove_dir(at("folder")).unwrap();
            assert!(write(&at(path), b"x").is_err(), "{path}");
        }
        fs::write(at("file"), "old").unwrap();
        assert_eq!(write(&at("file/x"), b"x").unwrap_err().kind(), io::ErrorKind::NotADirectory);
        assert!(write(Path::new(""), b"x").is_err());
    }

    #[test]
    fn links_of_proc_lead_to_folders_and_are_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let folder = fs::File::open(dir.path()).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&folder);
        write(&Path::new("/proc/self/fd").join(number.to_string()).join("file"), b"x").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        let file = fs::File::open(&path).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let error = write(&Path::new("/proc/self/fd").join(number.to_string()), b"y").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }
}
