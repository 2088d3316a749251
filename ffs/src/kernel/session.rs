//! The session with the kernel, begun in the best way that these rights and this kernel allow.
//!
//! | who | how | then |
//! |---|---|---|
//! | root, Linux 5.4 | [`mounting`](super::mounting) | two mounts, of which nobody sees the writable one |
//! | root, older or confined | mount(2), which attaches at once | the file system itself is read-only; watchers are not told |
//! | a user | `fusermount3` | the daemon alone refuses writes; only this user sees the mount |

use std::io;
use std::path::Path;

use fuser::{Config, MountOption, SessionACL};
use nix::libc::{ENOSYS, EPERM};

use super::mounting::{self, Detached, Restrictions};
use crate::fs::Ffs;

/// How far the kernel reads ahead, in KiB: four requests, so that it has some to do while others are answered.
const READ_AHEAD_KIB: &str = "1024";

/// A way to mount, chosen before there is anything to show.
pub(crate) enum Way {
    /// Mounted, and to be attached.
    Own(std::os::fd::OwnedFd, Detached),
    /// By `fuser`, and why not so.
    Fuser(io::Error),
}

impl Way {
    /// Finds the best one.
    ///
    /// # Errors
    /// What is wrong with the mount point, `/dev/fuse` or what was asked for.
    pub(crate) fn find(point: &Path, acl: SessionACL, restrictions: &Restrictions) -> io::Result<Self> {
        match mounting::make(point, acl == SessionACL::All, restrictions) {
            Ok((fuse, detached)) => Ok(Self::Own(fuse, detached)),
            Err(error) if matches!(error.raw_os_error(), Some(EPERM | ENOSYS)) => Ok(Self::Fuser(error)),
            Err(error) => Err(error),
        }
    }

    /// Whether it is a user's mount, which the kernel does not hold read-only.
    pub(crate) fn is_users(&self) -> bool {
        matches!(self, Self::Fuser(_)) && !nix::unistd::geteuid().is_root()
    }

    /// Begins the session. With it comes what is to be attached, or why there is no such thing.
    ///
    /// # Errors
    /// What mounting and the first words with the kernel return.
    pub(crate) fn begin(
        self,
        fs: Ffs,
        point: &Path,
        restrictions: &Restrictions,
        mut config: Config,
    ) -> io::Result<(fuser::Session<Ffs>, Result<Detached, String>)> {
        let users = self.is_users();
        match self {
            Self::Own(fuse, detached) => {
                Ok((fuser::Session::from_fd(fs, fuse, config.acl, config)?, Ok(detached)))
            }
            Self::Fuser(why) => {
                config.mount_options = options(users, restrictions)?;
                let held = if users { "" } else { ", so the file system itself is read-only" };
                let why = format!("a second, private mount needs root and Linux 5.4: {why}{held}");
                Ok((fuser::Session::new(fs, point, &config)?, Err(why)))
            }
        }
    }
}

fn options(users: bool, restrictions: &Restrictions) -> io::Result<Vec<MountOption>> {
    if restrictions.nosymfollow {
        let message = "`nosymfollow` needs Linux 5.14 and root: leave it out";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut options = vec![
        MountOption::FSName("ffs".to_owned()),
        MountOption::Subtype("ffs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    options.extend((!users).then_some(MountOption::RO));
    options.extend(restrictions.noexec.then_some(MountOption::NoExec));
    options.extend(
        restrictions.labels.iter().map(|(name, value)| MountOption::CUSTOM(format!("{name}={value}"))),
    );
    Ok(options)
}

/// Lets the kernel read further ahead than the 128 KiB that it has for a FUSE mount: every request costs two switches
/// between threads. Not allowed to everybody, and not needed.
pub(crate) fn read_ahead(point: &Path) {
    use std::os::unix::fs::MetadataExt;
    let set = || {
        let device = std::fs::metadata(point)?.dev();
        let (major, minor) = (nix::libc::major(device), nix::libc::minor(device));
        std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), READ_AHEAD_KIB)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "reads ahead as far as the kernel does by itself");
    }
}
