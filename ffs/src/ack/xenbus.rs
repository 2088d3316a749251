//! xenstore as a way to the host: a node for each class in the guest's own directory.
//!
//! A migration takes the domain to a store that has none of its values; its watches are set again by the
//! kernel, and each of them fires then. So a watch on a node that nobody writes tells of it, and
//! everything is written again.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use ctx_format::ack::{Ack, XENSTORE};
use ctx_format::xenstore::{Client, Request};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::EpollFlags;

use super::{News, Way};

/// The kernel's way to xenstored for programs.
const DEVICE: &str = "/dev/xen/xenbus";
/// A node that every domain has and none writes.
const WATCHED: &str = "domid";

pub(super) struct Xenbus<S = File>(Client<S>);

impl Xenbus {
    /// Opens the store of a guest. The control domain has one too, but there nobody reads it.
    pub(super) fn open() -> io::Result<Self> {
        let capabilities = std::fs::read_to_string("/proc/xen/capabilities").unwrap_or_default();
        if capabilities.contains("control_d") {
            return Err(io::ErrorKind::NotFound.into());
        }
        Self::on(OpenOptions::new().read(true).write(true).open(DEVICE)?)
    }
}

impl<S: Read + Write> Xenbus<S> {
    fn on(stream: S) -> io::Result<Self> {
        let mut client = Client::new(stream);
        client.call(Request::Watch(WATCHED))?;
        Ok(Self(client))
    }
}

impl<S: Read + Write + AsFd + Send> Way for Xenbus<S> {
    fn wait(&self) -> Option<(BorrowedFd<'_>, EpollFlags)> {
        Some((self.0.stream().as_fd(), EpollFlags::EPOLLIN))
    }

    fn news(&mut self) -> io::Result<News> {
        let mut news = News::None;
        loop {
            let mut fds = [PollFd::new(self.0.stream().as_fd(), PollFlags::POLLIN)];
            let readable = poll(&mut fds, PollTimeout::ZERO)? > 0;
            if !readable && !self.0.has_event() {
                return Ok(news);
            }
            self.0.event()?;
            news = News::All;
        }
    }

    fn tell(&mut self, state: &Ack, _: &[&Ack]) -> io::Result<bool> {
        let path = format!("{XENSTORE}/{}", state.node());
        let line = state.to_line();
        self.0.call(Request::Write(&path, line.trim_ascii_end()))?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// A message as xenstored sends it. xenstored itself does not run without Xen.
    fn message(kind: u32, id: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        [[kind, id, 0, len].map(u32::to_ne_bytes).concat().as_slice(), payload].concat()
    }

    #[test]
    fn each_class_has_its_node_and_a_migration_is_noticed() {
        const FIRED: &[u8] = b"domid\0ctx\0";
        let (mut store, stream) = UnixStream::pair().unwrap();
        // The answer to the watch, and the event with which every watch begins.
        store.write_all(&[message(4, 1, b"OK\0"), message(15, 0, FIRED)].concat()).unwrap();
        let mut way = Xenbus::on(stream).unwrap();
        assert_eq!(way.news().unwrap(), News::All);
        assert_eq!(way.news().unwrap(), News::None);
        let ack = Ack::applied("infrastructure".parse().unwrap(), 7).with_hooks(Vec::new());
        // As after a migration: the event comes while an answer is waited for.
        store.write_all(&[message(15, 0, FIRED), message(11, 2, b"OK\0")].concat()).unwrap();
        assert!(way.tell(&ack, &[]).unwrap());
        assert_eq!(way.news().unwrap(), News::All);

        let mut sent = vec![0; message(4, 1, b"domid\0ctx\0").len()];
        store.read_exact(&mut sent).unwrap();
        assert_eq!(sent, message(4, 1, b"domid\0ctx\0"));
        let line = ack.to_line();
        let value = [b"data/ctx-ack/infrastructure\0", line.trim_ascii_end()].concat();
        let mut sent = vec![0; message(11, 2, &value).len()];
        store.read_exact(&mut sent).unwrap();
        assert_eq!(sent, message(11, 2, &value));
        // The store is gone: so is the way, and another one is to be opened.
        drop(store);
        assert!(way.news().is_err());
    }
}
