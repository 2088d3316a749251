//! Whether a process that asks over the control socket may change the mount.
//!
//! The socket's mode lets in whoever is root to the file system: also a service or a container that runs as uid 0 without
//! capabilities. Such a process must not command root's mount: it could have the daemon read what it cannot read itself, or start
//! a program of its choice with all capabilities. So a change is taken only from a process that could mount and unmount by
//! itself: with `CAP_SYS_ADMIN`, in the daemon's own user namespace (capabilities(7)).
//!
//! The process is the one that called connect(2) (`SO_PEERCRED`, unix(7)). That its number was not given to another meanwhile
//! is known from Linux 6.5 on (`SO_PEERPIDFD`).

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};

use crate::sys::effective_capabilities;

/// The number of `CAP_SYS_ADMIN` (linux/capability.h).
const CAP_SYS_ADMIN: u32 = 21;

/// Why a process may not change the mount.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    /// Root to the file system, and to nothing else.
    #[error(
        "process {0} may look at this mount and not change it: that takes CAP_SYS_ADMIN, which it does not have"
    )]
    Powerless(i32),
    /// Its capabilities are worth nothing here.
    #[error(
        "process {0} may look at this mount and not change it: it is in another user namespace than the daemon"
    )]
    Elsewhere(i32),
    /// It has ended, or is not in the daemon's process namespace.
    #[error(
        "who asked cannot be found among the daemon's processes, and only a process there that waits for the answer may \
         change this mount: ask from the namespaces that the daemon runs in"
    )]
    Unseen,
    /// What should tell cannot be had.
    #[error("cannot find out whether process {process} may change this mount: {source}")]
    Unknown {
        /// The process.
        process: i32,
        /// Why.
        source: std::io::Error,
    },
}

/// Whether the process at the other end of a connection may change a mount of root's. A user's mount is its user's: the socket's
/// mode says it all.
///
/// # Errors
/// [`Denied`].
pub(crate) fn may_change(stream: &UnixStream) -> Result<(), Denied> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    let process = getsockopt(stream, PeerCredentials).map_or(0, |peer| peer.pid());
    if process <= 0 {
        return Err(Denied::Unseen);
    }
    let held = match getsockopt(stream, PeerPidfd) {
        Ok(held) => Some(held),
        Err(Errno::ENOPROTOOPT) => None,
        Err(_) => return Err(Denied::Unseen),
    };
    judge(process).map_err(|error| match error {
        Denied::Unknown { source, .. }
            if source.kind() == std::io::ErrorKind::NotFound
                || source.raw_os_error() == Some(Errno::ESRCH as i32) =>
        {
            Denied::Unseen
        }
        error => error,
    })?;
    // While it lives, its number is its own: what was read is of this process.
    match held {
        Some(held) if has_ended(held.as_fd()) => Err(Denied::Unseen),
        _ => Ok(()),
    }
}

/// Whether the process of a pidfd has ended (`pidfd_open(2)`).
fn has_ended(held: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(held, PollFlags::POLLIN)], PollTimeout::ZERO) != Ok(0)
}

fn judge(process: i32) -> Result<(), Denied> {
    let unknown = |source| Denied::Unknown { process, source };
    let namespace = |of: &str| fs::metadata(format!("/proc/{of}/ns/user")).map(|at| (at.dev(), at.ino()));
    if namespace(&process.to_string()).map_err(unknown)? != namespace("self").map_err(unknown)? {
        return Err(Denied::Elsewhere(process));
    }
    if effective_capabilities(process).map_err(unknown)? & (1 << CAP_SYS_ADMIN) != 0 {
        Ok(())
    } else {
        Err(Denied::Powerless(process))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_what_proc_says() {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        let process = std::process::id().cast_signed();
        assert_eq!(effective_capabilities(process).unwrap(), u64::from_str_radix(set.trim(), 16).unwrap());
        // Of nobody: larger than any number of a process (linux/threads.h).
        let nobody = effective_capabilities(1 << 23).unwrap_err();
        assert_eq!(nobody.raw_os_error(), Some(Errno::ESRCH as i32));
    }
}
