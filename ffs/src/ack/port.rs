//! A virtio-serial port as a way to the host.
//!
//! The port says "hung up" while nobody on the host has its other side open. Waiting for that to end
//! needs the edge: a level would wake at once, again and again. When the host's side is opened (by a host
//! program that starts, or on another host after a migration) or asks, everything is told.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ctx_format::ack::{Ack, PORT, QUESTION};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::EpollFlags;

use super::{News, Way};
use crate::handover::state::{self, Bytes};

pub(super) struct Port {
    file: File,
    /// The host's side was open when last seen.
    connected: bool,
    /// What did not fit of the line under way.
    rest: Vec<u8>,
}

impl Port {
    /// Opens the port of our name, or the one at `path`.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => find(Path::new("/sys/class/virtio-ports"))?,
        };
        let flags = libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        Ok(Self { file, connected: false, rest: Vec::new() })
    }

    /// Goes on with a port that another program has opened: no two can have it open at a time.
    pub(super) fn resume(file: File, state: &state::Port) -> Self {
        Self { file, connected: state.connected, rest: state.rest.0.to_vec() }
    }

    /// Writes what is left of a line; whether all of it went.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.rest.is_empty() {
            match self.file.write(&self.rest) {
                Ok(0) => return Ok(false),
                Ok(written) => drop(self.rest.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The device of the port of our name. By sysfs: the links below `/dev/virtio-ports` are udev's, which
/// may not run yet.
fn find(class: &Path) -> io::Result<PathBuf> {
    for entry in std::fs::read_dir(class)? {
        let entry = entry?;
        if std::fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim_end() == PORT) {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

impl Way for Port {
    fn wait(&self) -> Option<(BorrowedFd<'_>, EpollFlags)> {
        Some((self.file.as_fd(), EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET))
    }

    fn news(&mut self) -> io::Result<News> {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN | PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO)?;
        let state = fds[0].revents().unwrap_or(PollFlags::empty());
        if state.contains(PollFlags::POLLHUP) {
            self.connected = false;
            // What was cut off is told from its start.
            self.rest.clear();
            return Ok(News::None);
        }
        let new = !std::mem::replace(&mut self.connected, true);
        let mut asked = false;
        let mut buffer = [0; 256];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => asked |= buffer[..read].contains(&QUESTION[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.flush()?;
        Ok(if new || asked { News::All } else { News::Room })
    }

    fn to_state(&self) -> Option<state::Port> {
        let (connected, rest) = (self.connected, Bytes::from(&self.rest));
        Some(state::Port { fd: self.file.as_raw_fd(), connected, rest })
    }

    fn tell(&mut self, state: &Ack, _: &[&Ack]) -> io::Result<bool> {
        if !self.connected || !self.flush()? {
            return Ok(false);
        }
        // A line that has begun is ended before another one begins; so it counts as told.
        self.rest = state.to_line();
        self.flush()?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "org.qemu.guest_agent.0"), ("vport1p2", PORT)] {
            std::fs::create_dir(dir.path().join(port)).unwrap();
            std::fs::write(dir.path().join(port).join("name"), format!("{name}\n")).unwrap();
        }
        assert_eq!(find(dir.path()).unwrap(), Path::new("/dev/vport1p2"));
        std::fs::remove_dir_all(dir.path().join("vport1p2")).unwrap();
        assert_eq!(find(dir.path()).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(find(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
