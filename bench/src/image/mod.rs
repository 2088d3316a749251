//! Disk images of hosts and guests, built from Debian packages and cached by digest.
//!
//! A [`Recipe`] is data under `bench/images/`. [`build`] turns it into an [`Image`]: one read-only ext4
//! file system without a journal, the kernel out of it, and a small [`initramfs`] that lays a memory file
//! system over the disk. So every machine of a testbed boots from the same file at the same time,
//! nothing is copied before a boot or in a migration, and whatever a machine writes is gone with it.
//!
//! What differs between machines (name, addresses, keys, and the project's own programs) comes on a
//! second small disk, the [`seed`], which is laid between the two: a change to our own programs never
//! rebuilds Debian.
//!
//! ```text
//! recipe ──mmdebstrap──▶ tar ──▶ tree ──mke2fs──▶ root.ext4     (digest of the recipe names the folder)
//!                                  ├──────────────▶ vmlinuz
//!                                  └─modules.dep──▶ initrd
//! ```

mod build;
mod cache;
pub mod cli;
pub mod cpio;
mod display;
mod ext4;
pub mod initramfs;
mod progress;
mod recipe;
pub mod seed;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::deadline::call_blocking;
pub use build::{build, build_all};
pub use cache::{Cache, Image, Manifest, Pruned};
pub use display::Display;
pub(crate) use ext4::{has_subordinate_ids, rehearse};
pub use progress::{Progress, Stage};
pub use recipe::{BUILDER_VERSION, File, Hook, Recipe, Symlink};

/// What machines that boot an image want on their kernel command line, beside `console=` and what the [`initramfs`] reads.
/// It saves a tenth of a boot under emulation; the test bench has no use for what it leaves out.
pub const KERNEL_ARGUMENTS: &str = "quiet panic=-1 mitigations=off nokaslr audit=0 apparmor=0 cryptomgr.notests \
    rcupdate.rcu_expedited=1 i8042.noaux i8042.nokbd";

/// What can go wrong between a recipe and an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("{action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried, as a verb: "read", "create".
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A recipe is not valid.
    #[error("{origin}: {message}")]
    Recipe {
        /// The recipe's file, or its name when it is built in.
        origin: String,
        /// What is wrong, where, and what is allowed.
        message: String,
    },
    /// No recipe of that name.
    #[error("there is no image recipe `{name}`; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Names of the recipes that are built in.
        known: String,
    },
    /// A program that a build needs is not installed.
    #[error("`{program}` is not installed; `ci/setup` installs it (Debian and Ubuntu: package {package})")]
    Missing {
        /// The program.
        program: String,
        /// Debian package that has it.
        package: &'static str,
    },
    /// A program that a build runs has failed.
    #[error("{program} failed ({status}) while building {image}:\n{stderr}")]
    Program {
        /// The program.
        program: &'static str,
        /// Name of the image or seed.
        image: String,
        /// Its exit status, in words.
        status: String,
        /// The last lines that it wrote on standard error.
        stderr: String,
    },
    /// A program that a build runs did not end.
    #[error("image {image}: {program} did not end within {} min: try again", limit.as_secs() / 60)]
    Late {
        /// The program, or what else was waited for.
        program: &'static str,
        /// Name of the image or seed.
        image: String,
        /// How long it had.
        limit: Duration,
    },
    /// The tree that was built lacks what an image needs.
    #[error("image {image}: {message}")]
    Incomplete {
        /// Name of the image.
        image: String,
        /// What is missing, and what the recipe must say.
        message: String,
    },
    /// A path of a seed cannot be laid over an image.
    #[error("seed: {path}: {message}", path = path.display())]
    Seed {
        /// The path inside the machine.
        path: PathBuf,
        /// Why.
        message: String,
    },
    /// No place for the cache.
    #[error("no cache folder: set BENCH_CACHE, XDG_CACHE_HOME or HOME")]
    NoCache,
}

/// How long a program may take that works on a whole tree, on a slow and busy disk.
const TREE: Duration = Duration::from_secs(1800);

/// Runs a program of Debian's `package` for an image to its end.
fn run(
    command: &mut Command,
    program: &'static str,
    package: &'static str,
    image: &str,
) -> Result<Output, Error> {
    crate::program::output(command, TREE).map_err(|error| match error.kind() {
        io::ErrorKind::TimedOut => Error::Late { program, image: image.to_owned(), limit: TREE },
        _ => Error::Missing { program: program.to_owned(), package },
    })
}

/// Waits for a lock that another program holds, whose end `whose` is.
fn wait_for(
    whose: &'static str,
    image: &str,
    folder: &Path,
    limit: Duration,
    lock: impl FnOnce() -> io::Result<fs::File> + Send + 'static,
) -> Result<fs::File, Error> {
    let late = |_| Error::Late { program: whose, image: image.to_owned(), limit };
    call_blocking("this machine", "lock a file", limit, lock)
        .map_err(late)?
        .map_err(Error::io("lock", folder))
}

impl Error {
    /// For `map_err`: an I/O error with what was tried and on what.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_never_let_go_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let open = || fs::File::options().create(true).append(true).open(&path).unwrap();
        let wait = |limit| {
            let lock = open();
            wait_for("another bench", "guest", folder.path(), limit, move || lock.lock().map(|()| lock))
        };
        let other = open();
        other.lock().unwrap();
        let error = wait(Duration::from_millis(50)).unwrap_err().to_string();
        assert_eq!(error, "image guest: another bench did not end within 0 min: try again");
        other.unlock().unwrap();
        wait(Duration::from_secs(600)).unwrap();
    }
}
