//! Talking to a mounted `ffs`: one JSON line asked and one answered, over a Unix socket that only
//! its owner can open. Changes to a mount of root's need `CAP_SYS_ADMIN` besides: see `kernel/peer.rs`.
//!
//! The socket is `/run/ffs/NAME.sock`, NAME being the mount point with `-` for `/`
//! (`/mnt/context` → `mnt-context`), so that no state is needed to find it; for users other than root
//! it is below `$XDG_RUNTIME_DIR`. A name that would be too long for a socket, or is no text, ends with a digest of
//! the path.
//!
//! A request has at most 16 MiB and [`MOST`] operations, an answer at most 64 MiB; the client refuses what is more before it
//! connects, and the server whatever comes.

use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ctx_io::accept::Backoff;
use ctx_io::bounded::{self, Size};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::door::Door;
use crate::edit::{EditError, MOST, Op};
use crate::kernel::peer;
pub use crate::status::{DeviceStatus, LayerStatus, MemoryStatus, Status};

/// How long the server waits for a piece of a request, and for room for a piece of the answer: others wait meanwhile.
const HURRY: Duration = Duration::from_secs(5);
/// How long it waits for a whole request, however its pieces come.
const WHOLE: Duration = Duration::from_secs(30);
/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(60);

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// How it is.
    Status,
    /// Change the layers: all operations as one switch, or none.
    Apply {
        /// What to do, in order.
        ops: Vec<Op>,
        /// Only if the mount is at this generation.
        if_generation: Option<u64>,
    },
    /// Show the generation before again.
    Rollback {
        /// Only if that is this one.
        to: Option<u64>,
        /// Only if the mount is at this generation.
        if_generation: Option<u64>,
    },
    /// Read all layers again.
    Reload,
    /// Make the kernel forget all names and attributes.
    Invalidate,
    /// Unmount and end.
    Unmount,
    /// Let another program take over; the answer is its own.
    Upgrade {
        /// The program's file; the one that runs, as it is now, without it.
        program: Option<PathBuf>,
    },
}

impl Request {
    /// The request as a line.
    ///
    /// # Errors
    /// A sentence that names the limit that it exceeds.
    fn to_line(&self) -> Result<Vec<u8>, String> {
        if let Self::Apply { ops, .. } = self
            && ops.len() > MOST
        {
            return Err(EditError::TooMany(ops.len()).to_string());
        }
        let mut line = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        if line.len() as u64 > bounded::REQUEST {
            return Err(format!(
                "the request has more than {}, the limit: make several of it",
                Size(bounded::REQUEST)
            ));
        }
        line.push(b'\n');
        Ok(line)
    }
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Done; this is how it is now.
    Status(Box<Status>),
    /// Not done: the mount is at another generation than was asked for.
    Conflict(String),
    /// Not done.
    Error(String),
}

/// Where the socket of a mount is: in `/run/ffs` for root, in `$XDG_RUNTIME_DIR/ffs` for others;
/// `None` where that variable is not set.
pub fn socket_path(point: &Path) -> Option<PathBuf> {
    let dir = if nix::unistd::geteuid().is_root() {
        PathBuf::from("/run")
    } else {
        PathBuf::from(std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())?)
    };
    let dir = dir.join("ffs");
    let room = LONGEST_SOCKET.saturating_sub(dir.as_os_str().len() + "/.sock".len());
    Some(dir.join(format!("{}.sock", mount_name(point, room))))
}

/// The most bytes that the path of a socket has: `sockaddr_un` has 108, with a zero at the end (unix(7)).
pub const LONGEST_SOCKET: usize = 107;

/// The name of a mount in files of its own: its path with `-` for `/`. A path that is no text, or whose name would
/// have more than `room` bytes, is told apart by a digest, behind as much of it as fits.
pub(crate) fn mount_name(point: &Path, room: usize) -> String {
    let point = point.canonicalize().unwrap_or_else(|_| point.to_owned());
    let text = point.to_string_lossy();
    let name = text.trim_matches('/').replace('/', "-");
    if name.len() <= room && point.to_str().is_some() {
        return name;
    }
    let digest = Sha256::digest(point.as_os_str().as_bytes());
    let digest: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let mut shown = name.replace(|c: char| !c.is_ascii_graphic(), "_");
    shown.truncate(room.saturating_sub(digest.len() + 1));
    format!("{shown}-{digest}")
}

/// Asks a mounted `ffs`.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] for a request beyond the limits, before anything is asked; what connecting, writing and
/// reading return; [`io::ErrorKind::InvalidData`] for an answer that cannot be understood.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Response> {
    let line = request.to_line().map_err(|what| io::Error::new(io::ErrorKind::FileTooLarge, what))?;
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // One that refuses the request may answer before it has read it.
    let written = stream.write_all(&line);
    let answer = bounded::read_line(BufReader::new(stream), bounded::ANSWER)
        .map_err(|error| io::Error::new(error.kind(), format!("the answer cannot be read: {error}")))?;
    if answer.is_empty() {
        written?;
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// How a request is handed on: with the way to answer it and, where another program may be the one
/// to answer, the connection.
pub(crate) type Handle = dyn Fn(Request, Sender<Response>, Option<OwnedFd>) + Send + Sync;

/// The socket; when dropped, the answer under way is written, then it is removed.
pub(crate) struct Server {
    path: PathBuf,
    listener: Arc<UnixListener>,
    wake: Arc<EventFd>,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        let woken = self.wake.write(1).is_ok();
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Server {
    /// Listens, and hands each request on. A connection is taken from inside of `door`.
    ///
    /// # Errors
    /// What bind(2) returns; [`io::ErrorKind::AddrInUse`] when another `ffs` answers there.
    pub(crate) fn start(path: &Path, door: Door, handle: Box<Handle>) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            // Left behind by one that was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        Self::resume(path, listener, door, handle)
    }

    /// Goes on with a socket on which another program listened: who connected meanwhile is answered.
    ///
    /// # Errors
    /// What making a descriptor or starting a thread returns.
    pub(crate) fn resume(
        path: &Path,
        listener: UnixListener,
        door: Door,
        handle: Box<Handle>,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let listener = Arc::new(listener);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let stopping = Arc::new(AtomicBool::new(false));
        let (listens, woken, stop) = (listener.clone(), wake.clone(), stopping.clone());
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            crate::sys::short_turns_or_say();
            let mut backoff = Backoff::new("the control socket");
            loop {
                let mut wait = [listens.as_fd(), woken.as_fd()].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
                match poll(&mut wait, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return tracing::error!(%error, "no more requests are taken"),
                }
                if stop.load(Ordering::Acquire) {
                    return;
                }
                let inside = door.enter();
                // One after the other: requests are rare and quick.
                match listens.accept() {
                    Ok((stream, _)) => {
                        backoff.accepted();
                        if let Err(error) = serve(stream, &*handle) {
                            tracing::debug!(%error, "control connection");
                        }
                    }
                    Err(error) => {
                        drop(inside);
                        let wait = PollTimeout::try_from(backoff.failed(&error)).unwrap_or(PollTimeout::MAX);
                        // An end is not waited for; what poll(2) has to say, it says above.
                        let _ = poll(&mut [PollFd::new(woken.as_fd(), PollFlags::POLLIN)], wait);
                    }
                }
            }
        })?;
        Ok(Self { path: path.to_owned(), listener, wake, stopping, thread: Some(thread) })
    }

    /// Where it listens.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// With what.
    pub(crate) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// A connection that is read until a moment, however slowly its bytes come.
struct Until<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left.min(HURRY)))?;
        self.stream.read(bytes)
    }
}

fn serve(mut stream: UnixStream, handle: &Handle) -> io::Result<()> {
    // One who does not read the answer holds up nobody else for longer; on Linux the connection waits, although its listener
    // does not (accept(2)).
    stream.set_write_timeout(Some(HURRY))?;
    let asking = Until { stream: &stream, deadline: Instant::now() + WHOLE };
    let line = match bounded::read_line(BufReader::new(asking), bounded::REQUEST) {
        Ok(line) => line,
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            return respond(&mut stream, &Response::Error(format!("the request cannot be taken: {error}")));
        }
        Err(error) => return Err(error),
    };
    let request: Request = match serde_json::from_slice(&line) {
        Ok(request) => request,
        Err(error) => {
            let reason = format!("cannot understand the request: {error}");
            return respond(&mut stream, &Response::Error(reason));
        }
    };
    if request != Request::Status
        && let Err(denied) = peer::may_change(&stream)
    {
        return respond(&mut stream, &Response::Error(denied.to_string()));
    }
    let (answer, answers) = channel();
    if !matches!(request, Request::Upgrade { .. }) {
        handle(request, answer, None);
        let late = |_| Response::Error("no answer in time".to_owned());
        return respond(&mut stream, &answers.recv_timeout(PATIENCE).unwrap_or_else(late));
    }
    handle(request, answer, Some(stream.try_clone()?.into()));
    // It takes its time, and others are to be answered meanwhile.
    std::thread::Builder::new().name("asker".to_owned()).spawn(move || {
        if let Ok(response) = answers.recv() {
            let _ = respond(&mut stream, &response);
        }
    })?;
    Ok(())
}

/// Answers over a connection.
///
/// # Errors
/// What writing returns.
pub(crate) fn respond(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    if line.len() as u64 > bounded::ANSWER {
        let reason = format!("done, but the answer has more than {}, the limit", Size(bounded::ANSWER));
        line = serde_json::to_vec(&Response::Error(reason))?;
    }
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    fn name(path: &[u8]) -> String {
        mount_name(Path::new(OsStr::from_bytes(path)), 90)
    }

    #[test]
    fn a_mount_s_name_is_its_path_where_that_is_text_and_short() {
        assert_eq!(name(b"/none/mnt/context"), "none-mnt-context");
        assert_eq!(name(b"/none/a b"), "none-a b");
        let longest = [&b"/"[..], &[b'x'; 90]].concat();
        assert_eq!(name(&longest), "x".repeat(90));
    }

    #[test]
    fn two_mounts_that_cannot_be_named_by_their_paths_have_two_names() {
        let long = |end: u8| [&b"/"[..], &[b'x'; 200], &[end]].concat();
        let twins = [(b"/none/\xff".to_vec(), b"/none/\xfe".to_vec()), (long(b'1'), long(b'2'))];
        for (one, other) in twins {
            assert_ne!(name(&one), name(&other));
            assert_eq!(name(&one), name(&one));
            assert!(name(&one).len() <= 90 && name(&one).is_ascii(), "{}", name(&one));
        }
    }

    #[test]
    fn who_asks_slowly_is_not_waited_for_byte_by_byte() {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        let later = Instant::now() + Duration::from_secs(60);
        assert_eq!(Until { stream: &server, deadline: later }.read(&mut byte).unwrap(), 1);
        // There is one more, and it is too late for it.
        client.write_all(b"x").unwrap();
        let error = Until { stream: &server, deadline: Instant::now() }.read(&mut byte).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
