//! Two mounts of one file system, so that no copy of it was ever writable.
//!
//! Watchers get real inotify events because the daemon replays each change on its own file system (`watch`),
//! and for that it needs a mount that is not read-only. Everybody else gets a second mount, which is read-only before it is
//! attached: every copy that propagation, a bind mount or a new namespace makes of it inherits that. The first mount is never
//! attached anywhere; it exists as a descriptor of this process.
//!
//! | kernel | how the second mount is made |
//! |---|---|
//! | from Linux 5.15 | the same `/dev/fuse` given to a second file system context |
//! | from Linux 5.4 | in a private mount namespace of a short-lived thread: attach, clone, make read-only, clone again |
//! | older, or these calls are forbidden | none: the file system itself is read-only, and watchers are not told |
//!
//! `ffs/docs/mount.md` says what each of them protects against.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// What a mount forbids besides writing, set-id bits and device files, and the labels that its files get.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Restrictions {
    /// No file can be executed.
    pub noexec: bool,
    /// No symbolic link is followed (Linux 5.14).
    pub nosymfollow: bool,
    /// Mount options of a security module, by name: `context`, `fscontext`, `defcontext`, `rootcontext` (mount(8)).
    pub labels: Vec<(String, String)>,
}

impl Restrictions {
    /// The flags of the mount that everybody sees.
    fn attributes(&self) -> MountAttrFlags {
        let mut attributes = ALWAYS | MountAttrFlags::MOUNT_ATTR_RDONLY;
        attributes.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.noexec);
        attributes.set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, self.nosymfollow);
        attributes
    }
}

/// The flags that both mounts have.
const ALWAYS: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOATIME);

/// A file system that is mounted and not yet attached.
#[derive(Debug)]
pub(crate) struct Detached {
    /// Read-only, for everybody.
    public: OwnedFd,
    /// Writable, for the replay.
    private: OwnedFd,
}

/// Makes a FUSE file system with its two mounts: the kernel's end of the connection, and them. `point` is where it is to be
/// attached. The file system does not answer before somebody reads from the connection, and attaching does not ask it.
///
/// # Errors
/// What fsopen(2), fsconfig(2) and fsmount(2) return: `EPERM` without `CAP_SYS_ADMIN`, `ENOSYS` before Linux 5.2.
pub(crate) fn make(
    point: &Path,
    everybody: bool,
    restrictions: &Restrictions,
) -> io::Result<(OwnedFd, Detached)> {
    let fuse: OwnedFd = File::options().read(true).write(true).open("/dev/fuse").map_err(no_device)?.into();
    let mode = std::fs::metadata(point)?.permissions().mode();
    let context = || context(&fuse, mode, everybody, &restrictions.labels);
    let first = context()?;
    let public = match fsmount(&first, FsMountFlags::FSMOUNT_CLOEXEC, restrictions.attributes()) {
        Err(Errno::INVAL) if restrictions.nosymfollow => {
            let message = "`nosymfollow` needs Linux 5.14: leave it out";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        result => result?,
    };
    let second = context().and_then(|context| Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, ALWAYS)?));
    let (public, private) = match second {
        Ok(private) => (public, private),
        Err(error) => {
            tracing::debug!(%error, "the kernel does not take a connection twice: cloning in a namespace instead");
            clone_in_namespace(public, point)?
        }
    };
    Ok((fuse, Detached { public, private }))
}

fn no_device(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(error.kind(), "there is no /dev/fuse: try `modprobe fuse`"),
        _ => error,
    }
}

/// A file system context that was made into a superblock, or got the one that the connection has already.
fn context(fuse: &OwnedFd, mode: u32, everybody: bool, labels: &[(String, String)]) -> io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let (uid, gid) = (nix::unistd::getuid().to_string(), nix::unistd::getgid().to_string());
    let (number, mode) = (fuse.as_raw_fd().to_string(), format!("{mode:o}"));
    let own = [
        ("source", "ffs"),
        ("subtype", "ffs"),
        ("fd", &number),
        ("rootmode", &mode),
        ("user_id", &uid),
        ("group_id", &gid),
    ];
    let labels = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.into_iter().chain(labels) {
        fsconfig_set_string(&context, name, value)?;
    }
    fsconfig_set_flag(&context, "default_permissions")?;
    if everybody {
        fsconfig_set_flag(&context, "allow_other")?;
    }
    fsconfig_create(&context)?;
    Ok(context)
}

/// Turns one detached read-only mount into two, as before Linux 5.15: returns a read-only and a writable one. Only an
/// attached mount can be cloned, so it is attached in a mount namespace that only this thread is ever in, and that
/// receives from others and gives them nothing.
fn clone_in_namespace(public: OwnedFd, point: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let point = point.to_owned();
    let work = move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        attach(&public, &point)?;
        let clone =
            || open_tree(CWD, &point, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        let read_only = clone()?;
        let flags = MsFlags::MS_REMOUNT
            | MsFlags::MS_BIND
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOATIME;
        nix::mount::mount(none, &point, none, flags, none)?;
        Ok((read_only, clone()?))
    };
    // The namespace ends with the thread, and what is attached in it.
    let thread = std::thread::Builder::new().name("mounting".to_owned()).spawn(work)?;
    thread.join().map_err(|_| io::Error::other("the thread that mounts panicked"))?
}

fn attach(mount: &impl AsFd, point: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

impl Detached {
    /// Attaches the read-only mount, so that everybody sees it, and returns the private one.
    ///
    /// # Errors
    /// What `move_mount(2)` returns. The file system is gone then.
    pub(crate) fn attach(self, point: &Path) -> io::Result<OwnedFd> {
        attach(&self.public, point)?;
        Ok(self.private)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::mountinfo;

    /// The flags of mounts that are attached one over the other in a namespace of this thread's own: nobody answers for the
    /// file system, and the table does not ask it.
    fn flags(mounts: &[&OwnedFd]) -> Vec<MsFlags> {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            let look = || {
                unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
                let none = None::<&str>;
                nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
                let before: Vec<u64> = table().map(|entry| entry.id).collect();
                for (number, mount) in mounts.iter().enumerate() {
                    let point = dir.path().join(number.to_string());
                    std::fs::create_dir(&point).unwrap();
                    attach(mount, &point).unwrap();
                }
                table().filter(|entry| !before.contains(&entry.id)).map(|entry| entry.flags).collect()
            };
            scope.spawn(look).join().unwrap()
        })
    }

    fn table() -> impl Iterator<Item = mountinfo::Entry> {
        mountinfo::parse(&std::fs::read("/proc/thread-self/mountinfo").unwrap())
            .collect::<Vec<_>>()
            .into_iter()
    }

    #[test]
    fn only_the_private_mount_is_writable_however_the_two_are_made() {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            return eprintln!(
                "SKIPPED only_the_private_mount_is_writable_however_the_two_are_made: needs root and /dev/fuse"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        let usual = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        let noexec = Restrictions { noexec: true, ..Restrictions::default() };
        let (_open, made) = make(dir.path(), true, &noexec).unwrap();
        let wanted = [usual | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC, usual];
        assert_eq!(flags(&[&made.public, &made.private]), wanted);
        // As on kernels that give one mount for a connection.
        let (_open, made) = make(dir.path(), true, &Restrictions::default()).unwrap();
        let Detached { public, private } = made;
        drop(private);
        let (public, private) = clone_in_namespace(public, dir.path()).unwrap();
        assert_eq!(flags(&[&public, &private]), [usual | MsFlags::MS_RDONLY, usual]);
        assert!(!table().any(|entry| entry.point == dir.path()), "nothing is mounted where others see it");
    }
}
