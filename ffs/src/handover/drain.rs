//! Stopping those who answer the kernel, with no request lost.
//!
//! Each thread of a session reads requests from `/dev/fuse` descriptors of its own and writes its answers
//! to it; the library has no way to stop one between the two. So under each such number a socket is put
//! in the place of `/dev/fuse` (dup3(2) is one step for all threads):
//!
//! 1. A thread that waits in a read still waits at the kernel's end. Requests of our own (statfs(2)
//!    always asks) wake one such thread after the other.
//! 2. A thread that has a request answers into the socket. From there the answer goes to the descriptor
//!    that the request came from: the kernel looks for the request there alone.
//! 3. Its next read is one from the socket, where a harmless request of ours waits. The answer to it
//!    proves that the thread has nothing in its hands any more.
//!
//! No signal is involved, and nothing that depends on the kernel's version. Requests that programs make
//! from then on wait in the kernel's queue for whoever reads next.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{fstat, major, minor};

use crate::merge::ROOT;
use crate::sys;

/// `/dev/fuse` (Documentation/admin-guide/devices.txt).
const FUSE: (u64, u64) = (10, 229);
/// The number of our own requests: the kernel counts up from 2 and will not get there.
const OURS: u64 = u64::MAX;
/// linux/fuse.h.
const FUSE_FORGET: u32 = 2;
const FUSE_ACCESS: u32 = 34;
/// A `fuse_out_header`: length, error, number of the request.
const OUT_HEADER: usize = 16;

/// Why those who answer the kernel could not be stopped; they go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DrainError {
    /// Somebody is answering for too long.
    #[error("a request of a program was not answered within {0:?}: try again")]
    Busy(Duration),
    /// Anything else.
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// A session whose threads have nothing in their hands and wait at sockets. Must be ended by
/// [`Stopped::resume`], or with the process.
pub(crate) struct Stopped(Vec<Reader>);

/// One `/dev/fuse` descriptor, and the thread that reads from it.
struct Reader {
    /// The number that the thread knows it by.
    number: RawFd,
    /// What it stood for.
    device: OwnedFd,
    /// The other end of what it stands for now.
    socket: UnixStream,
    /// An answer that has not come to its end.
    answer: Vec<u8>,
    idle: bool,
}

/// Stops all sessions of this process. `root` is the root of the mount. `aside` is a descriptor of the
/// connection that nobody reads from.
///
/// # Errors
/// [`DrainError`]; everything goes on as before then.
pub(crate) fn stop(root: OwnedFd, aside: RawFd, patience: Duration) -> Result<Stopped, DrainError> {
    let system = |what| move |error| DrainError::System(what, error);
    let mut stopped = Stopped(Vec::new());
    let numbers = sessions(aside, Instant::now() + patience).map_err(system("the session"))?;
    for number in numbers {
        match Reader::divert(number) {
            Ok(reader) => stopped.0.push(reader),
            Err(error) => {
                stopped.resume();
                return Err(DrainError::System("cannot divert the session", error));
            }
        }
    }
    let over = Arc::new(AtomicBool::new(false));
    let waker = {
        let over = over.clone();
        std::thread::Builder::new().name("waker".to_owned()).spawn(move || {
            while !over.load(Ordering::Acquire) && nix::sys::statvfs::fstatvfs(&root).is_ok() {}
        })
    };
    let result = match waker {
        Ok(_) => stopped.wait(patience),
        Err(error) => Err(DrainError::System("cannot start a thread", error)),
    };
    // The last of its requests waits for whoever reads next.
    over.store(true, Ordering::Release);
    match result {
        Ok(()) => Ok(stopped),
        Err(error) => {
            stopped.resume();
            Err(error)
        }
    }
}

/// The descriptors that threads read from, once all of these threads are there: a session opens all
/// descriptors before it starts the first thread, each with one.
fn sessions(aside: RawFd, deadline: Instant) -> io::Result<Vec<RawFd>> {
    loop {
        let numbers = connections(aside)?;
        let mut threads = 0;
        for entry in std::fs::read_dir("/proc/self/task")? {
            // One that has just ended has no name any more.
            let name = std::fs::read(entry?.path().join("comm")).unwrap_or_default();
            threads += usize::from(name.starts_with(b"fuser-"));
        }
        if !numbers.is_empty() && threads >= numbers.len() {
            return Ok(numbers);
        }
        if Instant::now() > deadline {
            let what = format!("{} descriptors, {threads} threads", numbers.len());
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The numbers of all descriptors of `/dev/fuse`, by what they are. Only those of that name are looked at: a file on a disk
/// that does not answer may not even be closed.
pub(crate) fn connections(aside: RawFd) -> io::Result<Vec<RawFd>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // In a container it may be elsewhere.
        let name = std::fs::read_link(entry.path()).unwrap_or_default();
        if !name.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"fuse")) {
            continue;
        }
        // Closed meanwhile by another thread.
        let Ok(fd) = sys::inherited(number) else { continue };
        let device = fstat(&fd)?.st_rdev;
        if (major(device), minor(device)) == FUSE && number != aside {
            found.push(number);
        }
    }
    Ok(found)
}

impl Stopped {
    /// A descriptor of the connection.
    pub(crate) fn device(&self) -> Option<BorrowedFd<'_>> {
        self.0.first().map(|reader| reader.device.as_fd())
    }

    /// Passes answers on until all threads are idle.
    fn wait(&mut self, patience: Duration) -> Result<(), DrainError> {
        let deadline = Instant::now() + patience;
        while self.0.iter().any(|reader| !reader.idle) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DrainError::Busy(patience));
            }
            let mut wait: Vec<PollFd<'_>> =
                self.0.iter().map(|reader| PollFd::new(reader.socket.as_fd(), PollFlags::POLLIN)).collect();
            match poll(&mut wait, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(DrainError::System("poll", error.into())),
            }
            let ready: Vec<bool> = wait.iter().map(|fd| fd.any().unwrap_or(false)).collect();
            for (reader, _) in self.0.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
                reader.pass_on().map_err(|error| DrainError::System("cannot pass an answer on", error))?;
            }
        }
        Ok(())
    }

    /// Lets the threads go on as before.
    pub(crate) fn resume(self) {
        for mut reader in self.0 {
            if let Err(error) = sys::stand_for(reader.number, &reader.device) {
                // dup3 to a number that is open has no other reason to fail than a signal.
                tracing::error!(%error, "a thread of the session is lost");
                continue;
            }
            // Wakes the thread if it waits at the socket, and needs no answer.
            match reader.socket.write_all(&request(FUSE_FORGET, 0, u64::MAX)) {
                Ok(()) => {}
                // It does not wait there, and has let go. Its last answer may still lie in the socket.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) => tracing::error!(%error, "a thread of the session is not woken"),
            }
            // What it is still writing into the socket is passed on; this ends when it has let go.
            let passing = std::thread::Builder::new()
                .name("late-answers".to_owned())
                .spawn(move || while reader.pass_on().is_ok_and(|more| more) {});
            if let Err(error) = passing {
                tracing::error!(%error, "an answer may be lost");
            }
        }
    }
}

impl Reader {
    fn divert(number: RawFd) -> io::Result<Self> {
        let device = sys::inherited(number)?;
        let (mut socket, theirs) = UnixStream::pair()?;
        socket.write_all(&request(FUSE_ACCESS, OURS, ROOT))?;
        sys::stand_for(number, &theirs)?;
        Ok(Self { number, device, socket, answer: Vec::new(), idle: false })
    }

    /// Reads what the thread has written, and passes on what is whole. Whether there may be more.
    fn pass_on(&mut self) -> io::Result<bool> {
        let mut piece = vec![0; 1 << 17];
        match self.socket.read(&mut piece) {
            Ok(0) => return Ok(false),
            Ok(read) => self.answer.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        while let Some(len) = whole(&self.answer)? {
            let (answer, unique) = (&self.answer[..len], u64_at(&self.answer, 8));
            if unique == OURS {
                self.idle = true;
            } else if let Err(error) = nix::unistd::write(&self.device, answer) {
                // ENOENT: whoever asked was interrupted and has gone.
                tracing::debug!(%error, "an answer was not taken");
            }
            self.answer.drain(..len);
        }
        Ok(true)
    }
}

/// The length of the answer with which `bytes` begin, if it is there to its end.
fn whole(bytes: &[u8]) -> io::Result<Option<usize>> {
    let Some(len) = bytes.first_chunk::<4>() else { return Ok(None) };
    let len = usize::try_from(u32::from_ne_bytes(*len)).unwrap_or(usize::MAX);
    if len < OUT_HEADER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not the answer to a request"));
    }
    Ok((len <= bytes.len()).then_some(len))
}

/// A number of an answer that is whole.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|eight| eight.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

/// A request with 8 bytes of zeros after its header: access(2) for nothing, or no reference to forget.
fn request(opcode: u32, unique: u64, ino: u64) -> Vec<u8> {
    let body = [0; 8];
    header(opcode, unique, ino, &body)
}

/// A request as the kernel writes it (`fuse_in_header`, linux/fuse.h), of this process.
pub(super) fn header(opcode: u32, unique: u64, ino: u64, body: &[u8]) -> Vec<u8> {
    // Bodies are some bytes long.
    let len = u32::try_from(40 + body.len()).unwrap_or(u32::MAX);
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let mut request = Vec::with_capacity(40 + body.len());
    request.extend_from_slice(&len.to_ne_bytes());
    request.extend_from_slice(&opcode.to_ne_bytes());
    request.extend_from_slice(&unique.to_ne_bytes());
    request.extend_from_slice(&ino.to_ne_bytes());
    for number in [uid, gid, std::process::id(), 0] {
        request.extend_from_slice(&number.to_ne_bytes());
    }
    request.extend_from_slice(body);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_cut_where_they_end() {
        let answer = |len: u32| [len.to_ne_bytes(), [0; 4]].concat();
        assert_eq!(whole(&answer(16)).unwrap(), None);
        assert_eq!(whole(&[answer(16), vec![0; 8]].concat()).unwrap(), Some(16));
        assert_eq!(whole(&[answer(20), vec![0; 30]].concat()).unwrap(), Some(20));
        assert_eq!(whole(&[1, 2]).unwrap(), None);
        assert!(whole(&answer(3)).is_err());
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_does_it() {
        let request = request(FUSE_ACCESS, OURS, ROOT);
        assert_eq!(request.len(), 48);
        assert_eq!(u32::from_ne_bytes(*request.first_chunk().unwrap()), 48);
        assert_eq!((u64_at(&request, 8), u64_at(&request, 16)), (OURS, ROOT));
    }
}
