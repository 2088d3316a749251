//! Who is to take over, whether it can, and becoming it.
//!
//! The successor is called as `PROGRAM take-over --state FD …`, a verb that no earlier version has, so
//! that a program which knows nothing of this ends with a usage error and does nothing.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::state::{Fd, State};
use crate::sys;

/// How long a program may take to say that it understands the state.
const REHEARSAL: Duration = Duration::from_secs(10);
/// So much of what it says is passed on.
const SAID: u64 = 2000;

/// Why a program does not take over. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("cannot find out which program this is ({0}): name one with --program")]
    Unknown(io::Error),
    #[error("cannot use `{}`: {source}", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error("`{}` is on this mount itself, which nobody answers for while it changes hands: copy it elsewhere", .0.display())]
    OnMount(PathBuf),
    #[error("`{}` was replaced after it had said that it can take over: try again", .0.display())]
    Replaced(PathBuf),
    #[error("`{}` does not take over ({status}): {said}", path.display())]
    Refused { path: PathBuf, status: ExitStatus, said: String },
    #[error("`{}` did not say within {REHEARSAL:?} that it can take over", .0.display())]
    Silent(PathBuf),
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
}

/// What a program says that can take over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Able {
    /// The format of the state that it has understood.
    pub(crate) takes_over: u32,
    /// Its version.
    pub(crate) version: String,
}

/// A program that may take over.
#[derive(Debug)]
pub(crate) struct Program {
    path: PathBuf,
    /// Device and inode number.
    file: (u64, u64),
}

/// Descriptors that another program gets too, until this is dropped.
pub(crate) struct Luggage(Vec<Fd>);

impl Luggage {
    /// # Errors
    /// What fcntl(2) returns.
    pub(crate) fn new(descriptors: Vec<Fd>) -> Result<Self, ProgramError> {
        let mut luggage = Self(Vec::with_capacity(descriptors.len()));
        for fd in descriptors {
            sys::set_inherited(fd, true).map_err(|source| ProgramError::System {
                what: "a descriptor cannot be handed over",
                source,
            })?;
            luggage.0.push(fd);
        }
        Ok(luggage)
    }
}

impl Drop for Luggage {
    fn drop(&mut self) {
        for fd in &self.0 {
            // They are open: it was just done in the other direction.
            let _ = sys::set_inherited(*fd, false);
        }
    }
}

/// Memory with a state in it.
///
/// # Errors
/// [`ProgramError::System`].
pub(crate) fn written(state: &State) -> Result<File, ProgramError> {
    let error = |source| ProgramError::System { what: "the state cannot be written", source };
    let file = memfd_create(c"ffs-state", MFdFlags::MFD_CLOEXEC).map_err(|errno| error(errno.into()))?;
    let mut writer = io::BufWriter::with_capacity(1 << 18, File::from(file));
    state.write(&mut writer).map_err(error)?;
    writer.into_inner().map_err(|failed| error(failed.into_error()))
}

/// What the path of a running program's file is now: the kernel adds ` (deleted)` when another took its
/// place, and that other is the one that is meant.
fn present(path: PathBuf) -> PathBuf {
    if path.exists() {
        return path;
    }
    match path.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(name) => PathBuf::from(OsString::from_vec(name.to_vec())),
        None => path,
    }
}

impl Program {
    /// The program at `path`, or the file of the one that runs as it is now. `mount` is the number of
    /// the mounted device.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub(crate) fn find(path: Option<PathBuf>, mount: u64) -> Result<Self, ProgramError> {
        let path = match path {
            Some(path) => path,
            None => present(std::fs::read_link("/proc/self/exe").map_err(ProgramError::Unknown)?),
        };
        let unusable = |source| ProgramError::Unusable { path: path.clone(), source };
        let metadata = path.metadata().map_err(unusable)?;
        if !metadata.is_file() || metadata.mode() & 0o111 == 0 {
            return Err(unusable(io::Error::other("not a program")));
        }
        if metadata.dev() == mount {
            return Err(ProgramError::OnMount(path));
        }
        Ok(Self { file: (metadata.dev(), metadata.ino()), path })
    }

    fn arguments(state: RawFd, more: &[&OsStr]) -> Vec<OsString> {
        let fixed = ["take-over", "--state"].map(OsString::from);
        let more = more.iter().map(|word| (*word).to_owned());
        fixed.into_iter().chain([state.to_string().into()]).chain(more).collect()
    }

    /// Lets it try, as a child; returns its version.
    ///
    /// # Errors
    /// [`ProgramError`] with what it said.
    pub(crate) fn rehearse(
        &self,
        state: &File,
        mut luggage: Vec<Fd>,
        point: &Path,
    ) -> Result<Able, ProgramError> {
        let system = |what| move |source| ProgramError::System { what, source };
        let mut said = File::from(
            memfd_create(c"ffs-said", MFdFlags::MFD_CLOEXEC)
                .map_err(|errno| system("no memory for what it says")(errno.into()))?,
        );
        luggage.push(state.as_raw_fd());
        let _luggage = Luggage::new(luggage)?;
        let words = Self::arguments(state.as_raw_fd(), &["--rehearse".as_ref(), point.as_os_str()]);
        let mut child = Command::new(&self.path)
            .args(words)
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(said.try_clone().map_err(system("dup"))?)
            .spawn()
            .map_err(|source| ProgramError::Unusable { path: self.path.clone(), source })?;
        let deadline = Instant::now() + REHEARSAL;
        let answer = child.stdout.take().and_then(|from| to_end(from, deadline).ok());
        let status = answer.as_ref().and_then(|_| ended(&mut child, deadline));
        let Some(status) = status else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(ProgramError::Silent(self.path.clone()));
        };
        let able = answer.and_then(|text| serde_json::from_slice::<Able>(&text).ok());
        if let (true, Some(able)) = (status.success(), able) {
            return Ok(able);
        }
        let mut text = Vec::new();
        let read = said.seek(SeekFrom::Start(0)).and_then(|_| said.take(SAID).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        let text = if read.is_err() || text.is_empty() { "it did not say why".to_owned() } else { text };
        Err(ProgramError::Refused { path: self.path.clone(), status, said: text })
    }

    /// Becomes it. Returns only if that fails, and then nothing has changed.
    pub(crate) fn become_it(&self, state: &File, mut luggage: Vec<Fd>, point: &Path) -> ProgramError {
        let system = |what| move |source| ProgramError::System { what, source };
        match self.path.metadata() {
            Ok(now) if (now.dev(), now.ino()) == self.file => {}
            Ok(_) => return ProgramError::Replaced(self.path.clone()),
            Err(source) => return ProgramError::Unusable { path: self.path.clone(), source },
        }
        // Its file lives as long as this is open.
        let own = match File::open("/proc/self/exe") {
            Ok(own) => own,
            Err(source) => return system("cannot open the program that runs")(source),
        };
        luggage.extend([state.as_raw_fd(), own.as_raw_fd()]);
        let _luggage = match Luggage::new(luggage) {
            Ok(luggage) => luggage,
            Err(error) => return error,
        };
        let own = own.as_raw_fd().to_string();
        let words =
            Self::arguments(state.as_raw_fd(), &["--predecessor".as_ref(), own.as_ref(), point.as_os_str()]);
        let source = execute(&self.path, words);
        ProgramError::Unusable { path: self.path.clone(), source }
    }
}

/// Becomes the program before again, with the state that it wrote. Returns only if that fails.
pub(crate) fn go_back(predecessor: RawFd, state: RawFd, reason: &str) -> io::Error {
    let words = Program::arguments(state, &["--returned".as_ref(), reason.as_ref()]);
    execute(Path::new(&format!("/proc/self/fd/{predecessor}")), words)
}

fn execute(path: &Path, words: Vec<OsString>) -> io::Error {
    let words = std::iter::once(OsString::from("ffs")).chain(words);
    // Paths and reasons that came as arguments or from the kernel have no NUL in them.
    let words: Vec<CString> = words.map(|word| CString::new(word.into_vec()).unwrap_or_default()).collect();
    let path = CString::new(path.as_os_str().as_bytes()).unwrap_or_default();
    match nix::unistd::execv(&path, &words) {
        Err(errno) => errno.into(),
        Ok(never) => match never {},
    }
}

/// Everything that a program writes until it ends.
fn to_end(mut from: ChildStdout, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || text.len() as u64 > SAID {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(from.as_fd(), PollFlags::POLLIN)], wait) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        match from.read(&mut piece)? {
            0 => return Ok(text),
            read => text.extend_from_slice(&piece[..read]),
        }
    }
}

/// The end of a program that has closed its output, which is nearly the same moment; `None` when it
/// goes on beyond the deadline.
fn ended(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().ok()? {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    None
}

/// Says that this program can take over.
///
/// # Errors
/// What writing returns.
pub(crate) fn say_able() -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let able = serde_json::to_vec(&Able { takes_over: super::state::FORMAT, version })?;
    ctx_io::output::bytes(&able);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_is_found_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ffs");
        let gone = |path: &Path| PathBuf::from(format!("{} (deleted)", path.display()));
        assert_eq!(present(gone(&path)), path);
        // A program may be called like that.
        std::fs::write(gone(&path), "").unwrap();
        assert_eq!(present(gone(&path)), gone(&path));
        assert_eq!(present(path.clone()), path);
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ffs");
        let find = |mount| Program::find(Some(path.clone()), mount).unwrap_err().to_string();
        assert!(find(0).contains("No such file"));
        std::fs::write(&path, "").unwrap();
        assert!(find(0).contains("not a program"));
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        assert!(find(path.metadata().unwrap().dev()).contains("on this mount itself"));
        assert!(Program::find(Some(path.clone()), 0).is_ok());
    }
}
