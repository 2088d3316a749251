//! The bench's own namespaces, which make it leave nothing behind.
//!
//! Everything that the bench starts lives in a network, mount and PID namespace whose first
//! process is the bench itself. When that process ends, however it ends, the kernel kills all
//! others in the PID namespace, and bridges, TAP devices and the private folder (a tmpfs in the
//! mount namespace) go with their namespaces. `unshare --kill-child` ties the first process to the
//! one that the user started, so a SIGKILL to either has the same effect
//! (`pid_namespaces(7)`, `unshare(1)`).
//!
//! Root needs no user namespace for this; anybody else gets one, where the system allows it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use super::plain::{self, PlainPath, Private};

/// Set in the environment of the process that runs inside: where its private folder is to be.
const MARK: &str = "BENCH_INSIDE";

/// How long `unshare` may take. The kernel makes network namespaces one after the other, on a busy machine.
const TRIED: Duration = Duration::from_secs(60);

/// Why the namespaces could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// Neither root's nor a user namespace is allowed here.
    #[error(
        "this system lets {who} make no network and PID namespaces ({evidence}): run as root, or allow \
         unprivileged user namespaces (sysctl kernel.unprivileged_userns_clone, \
         kernel.apparmor_restrict_unprivileged_userns)"
    )]
    Refused {
        /// The user, for the sentence.
        who: &'static str,
        /// What `unshare` said.
        evidence: String,
    },
    /// No folder to mount the private one on.
    #[error(
        "no folder for sockets and keys ({}): empty /mnt, make /tmp writable, or set XDG_RUNTIME_DIR",
        refused.join("; ")
    )]
    NoAnchor {
        /// Each folder that was tried, with what is wrong with it.
        refused: Vec<String>,
    },
    /// A step of going in failed.
    #[error("{what}: {source}")]
    Io {
        /// Which step.
        what: String,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

/// Whether this process is the first one of the bench's namespaces.
pub fn inside() -> bool {
    std::env::var_os(MARK).is_some() && std::process::id() == 1
}

/// The `unshare` arguments that work for this user, found out by trying.
///
/// # Errors
/// [`NamespaceError::Refused`] when none does.
pub fn flags() -> Result<Vec<&'static str>, NamespaceError> {
    let common = ["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child=KILL"];
    let root = nix::unistd::geteuid().is_root();
    let mut evidence = String::new();
    for user in [false, true] {
        if !user && !root {
            continue;
        }
        let mut flags: Vec<&'static str> = if user { vec!["--user", "--map-root-user"] } else { vec![] };
        flags.extend(common);
        let mut command = Command::new("unshare");
        command.args(&flags).arg("true").stdin(Stdio::null());
        match crate::program::output(&mut command, TRIED) {
            Ok(out) if out.status.success() => return Ok(flags),
            Ok(out) => String::from_utf8_lossy(&out.stderr).trim().clone_into(&mut evidence),
            Err(e) => evidence = format!("cannot run unshare: {e}"),
        }
    }
    Err(NamespaceError::Refused { who: if root { "root" } else { "an ordinary user" }, evidence })
}

/// A command that runs this program again, inside, with the given arguments.
///
/// # Errors
/// When namespaces are refused, or this program's own path cannot be found out.
pub fn command(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, NamespaceError> {
    let exe = std::env::current_exe()
        .map_err(|source| NamespaceError::Io { what: "cannot find this program's path".into(), source })?;
    let anchor = match plain::system() {
        Some(folder) => folder,
        None => plain::anchor(plain::candidates()).map_err(|refused| NamespaceError::NoAnchor { refused })?,
    };
    let mut command = Command::new("unshare");
    command.args(flags()?).arg("--").arg(exe).args(arguments).env(MARK, anchor.as_str());
    Ok(command)
}

/// Replaces this process by one that runs the same command line inside; returns only on failure.
///
/// The process that the user started is `unshare` then, which blocks SIGTERM while it waits, so that it never reaches the one
/// inside. A blocked signal stays pending, and the status of a process says so: it is the standard input of the process
/// inside, which reads it again and again ([`terminated`]).
pub fn enter() -> NamespaceError {
    match command(std::env::args_os().skip(1)) {
        Ok(mut command) => {
            let status = std::fs::File::open(STATUS).map_or_else(|_| Stdio::null(), Stdio::from);
            let source = command.stdin(status).exec();
            NamespaceError::Io { what: "cannot run unshare".into(), source }
        }
        Err(e) => e,
    }
}

/// What the kernel says of this process.
const STATUS: &str = "/proc/self/status";

/// Whether somebody has sent SIGTERM to the process that the user started ([`enter`]).
pub fn terminated() -> bool {
    let mut text = [0; 4096];
    // Anything else as standard input (a terminal, a record) says nothing of signals.
    rustix::io::pread(std::io::stdin(), &mut text, 0)
        .is_ok_and(|length| term_is_pending(&String::from_utf8_lossy(&text[..length])))
}

/// Whether SIGTERM is among the pending signals of a process with this status (`proc_pid_status(5)`).
fn term_is_pending(status: &str) -> bool {
    let bit = 1_u64 << (nix::sys::signal::Signal::SIGTERM as u32 - 1);
    status
        .lines()
        .filter_map(|line| line.strip_prefix("ShdPnd:").or_else(|| line.strip_prefix("SigPnd:")))
        .filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .any(|mask| mask & bit != 0)
}

/// `nsenter` arguments that go into the namespaces of a process inside.
pub fn nsenter_flags(process: u32) -> Vec<String> {
    let user = !nix::unistd::geteuid().is_root();
    let mut flags = vec![format!("--target={process}"), "--mount".into(), "--net".into()];
    if user {
        flags.extend(["--user".into(), "--preserve-credentials".into()]);
    }
    flags
}

/// A folder in memory, of this mount namespace alone: it is gone when the namespace is, and no sooner ([`plain`]). Its path is
/// plain, so that every program can be handed the files in it.
///
/// # Errors
/// Outside the namespaces, or when it cannot be mounted.
pub fn private_folder() -> Result<Private, NamespaceError> {
    let io = |what: String| move |source| NamespaceError::Io { what, source };
    let mark = std::env::var_os(MARK).unwrap_or_default();
    let anchor = PlainPath::new(Path::new(&mark)).ok_or_else(|| {
        io("cannot make a private folder".into())(std::io::Error::other("not inside the bench's namespaces"))
    })?;
    let below = if plain::is_of_the_system(&anchor) {
        None
    } else {
        let locked = std::fs::File::open(&anchor).and_then(|folder| match folder.try_lock_shared() {
            Ok(()) => Ok(folder),
            Err(error) => Err(error.into()),
        });
        Some(locked.map_err(io(format!("cannot lock {anchor}")))?)
    };
    mount(
        Some("bench"),
        anchor.as_str(),
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=0700"),
    )
    .map_err(|e| io(format!("cannot mount a tmpfs on {anchor}"))(e.into()))?;
    Ok(Private::new(anchor, below))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_sigterm_is_told_from_others() {
        let own = std::fs::read_to_string(STATUS).unwrap();
        assert!(own.contains("\nShdPnd:\t"), "{own}");
        assert!(!term_is_pending(&own));
        let with = |mask: &str| {
            format!("Name:\tunshare\nSigPnd:\t0000000000000000\nShdPnd:\t{mask}\nSigBlk:\t4002\n")
        };
        assert!(term_is_pending(&with("0000000000004000")));
        assert!(term_is_pending(&with("0000000000004002")));
        // SIGINT alone: a Ctrl-C on a terminal reaches the process inside by itself.
        assert!(!term_is_pending(&with("0000000000000002")));
    }
}
