//! A file system that is up, with its program, until it is taken down.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ctx_io::bounded;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::peer::Start;
use crate::deadline::call_blocking;
use crate::program::ended_within;

/// How long a program may take to mount and to answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may take to end after it is unmounted, and again after it is killed: what it serves may keep it in the kernel.
const END: Duration = Duration::from_secs(5);

/// Why a file system did not come up.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The program ended, or did not mount in time.
    #[error("`{command}` {what}: {said}")]
    Program {
        /// The command.
        command: String,
        /// What it did.
        what: String,
        /// The last lines that it wrote.
        said: String,
    },
    /// The system refuses.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

fn refused<E: Into<io::Error>>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> MountError {
    let path = path.to_owned();
    move |source| MountError::Io { doing, path, source: source.into() }
}

/// A file system that is up; taken down when dropped.
#[derive(Debug)]
pub struct Mounted {
    root: PathBuf,
    on_top: bool,
    program: Option<Child>,
    took: Duration,
}

impl Mounted {
    /// Starts it on the empty folder `point`, and returns when a lookup of `known`, a path below it, was answered.
    ///
    /// # Errors
    /// [`MountError`], with what the program said in `log`.
    pub fn up(start: &Start, point: &Path, known: &Path, log: &Path) -> Result<Self, MountError> {
        if let Start::Plain(folder) = start {
            return Ok(Self { root: folder.clone(), on_top: false, program: None, took: Duration::ZERO });
        }
        fs::create_dir_all(point).map_err(refused("make", point))?;
        let below = look(point, PATIENCE).map_err(refused("look at", point))?.dev();
        let mut this = Self { root: point.to_owned(), on_top: true, program: None, took: Duration::ZERO };
        let mounts = File::open("/proc/self/mountinfo").map_err(refused("open", Path::new("/proc")))?;
        let began = Instant::now();
        match start {
            Start::Plain(_) => {}
            Start::Kernel { kind, options } => {
                mount(Some(*kind), point, Some(*kind), MsFlags::MS_RDONLY, Some(options.as_str()))
                    .map_err(refused("mount overlayfs on", point))?;
            }
            Start::Program { program, arguments } => {
                let open = || File::options().create(true).append(true).open(log);
                let (out, error) =
                    (open().map_err(refused("write", log))?, open().map_err(refused("write", log))?);
                let child = Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::null())
                    .stdout(out)
                    .stderr(error)
                    .spawn()
                    .map_err(refused("run", Path::new(program)))?;
                this.program = Some(child);
                this.wait(start, below, &mounts, log, began)?;
            }
        }
        look(&point.join(known), PATIENCE).map_err(refused("look at", &point.join(known)))?;
        this.took = began.elapsed();
        Ok(this)
    }

    /// Waits until something is mounted; the kernel says so, and a dead program is noticed soon.
    fn wait(
        &mut self,
        start: &Start,
        below: u64,
        mounts: &File,
        log: &Path,
        began: Instant,
    ) -> Result<(), MountError> {
        let fail = |what: String| MountError::Program {
            command: start.describe(),
            what,
            said: crate::exec::last_lines(&bounded::tail(log, bounded::TAIL).unwrap_or_default(), 5),
        };
        loop {
            // A FUSE mount answers when its program has said hello, which it may never do.
            match look(&self.root, PATIENCE.saturating_sub(began.elapsed())) {
                Ok(now) if now.dev() != below => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(fail(format!("mounted, and did not answer within {} s", PATIENCE.as_secs())));
                }
                _ => {}
            }
            let ended = self.program.as_mut().and_then(|child| child.try_wait().ok()).flatten();
            if let Some(status) = ended {
                return Err(fail(format!("ended with {status} before it had mounted")));
            }
            if began.elapsed() > PATIENCE {
                return Err(fail(format!("did not mount within {} s", PATIENCE.as_secs())));
            }
            let mut wait = [PollFd::new(mounts.as_fd(), PollFlags::POLLPRI)];
            match poll(&mut wait, PollTimeout::from(20_u16)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(refused("wait for", &self.root)(error)),
            }
        }
    }

    /// Where it is shown.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// From the start until it answered.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Memory of its program that is in RAM, in bytes; none without one.
    pub fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.program.as_ref()?.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
    }

    /// Unmounts it and waits for its program to end.
    ///
    /// # Errors
    /// The unmount is refused.
    pub fn down(mut self) -> Result<(), MountError> {
        self.end().map_err(refused("unmount", &self.root))
    }

    fn end(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.on_top) {
            match umount2(&self.root, MntFlags::MNT_DETACH) {
                // Not mounted: its program has never come so far, or is gone.
                Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let Some(mut child) = self.program.take() else { return Ok(()) };
        if ended_within(&mut child, END)?.is_some() {
            return Ok(());
        }
        child.kill()?;
        if ended_within(&mut child, END)?.is_some() {
            return Ok(());
        }
        let said =
            format!("its program, {}, was killed and did not end within {} s", child.id(), END.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, said))
    }
}

/// Looks at a path, which may be one of a file system whose program does not answer: in a thread of its own then, which is let go
/// when the program has ended.
fn look(path: &Path, limit: Duration) -> io::Result<fs::Metadata> {
    let owned = path.to_owned();
    call_blocking("this machine", "look at a file", limit, move || fs::symlink_metadata(owned)).map_err(
        |error| {
            let kind = if error.is_late() { io::ErrorKind::TimedOut } else { io::ErrorKind::Other };
            io::Error::new(kind, error)
        },
    )?
}

/// Unmounts all that is left on a folder.
///
/// # Errors
/// The system refuses, or it never ends.
pub fn clear(point: &Path) -> Result<(), MountError> {
    // A trial mounts one at a time; more than a few are no longer its own.
    for _ in 0..8 {
        match umount2(point, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            // Nothing is mounted there, or there is no such folder.
            Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(refused("unmount", point)(error)),
        }
    }
    Err(refused("unmount", point)(io::Error::other("something is mounted there again and again")))
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Only after an error, which is told already; the namespace ends what is left.
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    /// A FUSE mount whose program has not said hello: a look at it waits for as long as the descriptor is open.
    #[test]
    fn a_file_system_that_never_answers_is_not_waited_for() {
        const TEST: &str = "mounted::a_file_system_that_never_answers_is_not_waited_for";
        let folder = tempfile::tempdir().unwrap();
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            eprintln!("SKIPPED {TEST}: no /dev/fuse");
            return;
        };
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        if let Err(error) =
            mount(Some("test"), folder.path(), Some("fuse"), MsFlags::empty(), Some(options.as_str()))
        {
            eprintln!("SKIPPED {TEST}: cannot mount: {error}");
            return;
        }
        let looked = look(folder.path(), SOON).map(|seen| seen.dev());
        clear(folder.path()).unwrap();
        let error = looked.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "this machine: look at a file did not end within 0.05 s");
        drop(device);
        assert!(look(folder.path(), PATIENCE).is_ok(), "nothing is mounted there any more");
        clear(folder.path()).unwrap();
    }
}
