//! The kernel's own events about devices (netlink, `KOBJECT_UEVENT`): no udev needed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, setsockopt,
    socket, sockopt,
};

/// What happened to a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uevent {
    /// The device's name, like `sr0`.
    pub device: String,
    /// What happened.
    pub action: Action,
}

/// What happened to a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It came.
    Add,
    /// It went.
    Remove,
    /// Its medium was changed: a disc in, or out.
    MediaChange,
    /// Something else about it changed: what a loop device tells when it gets a file.
    Change,
    /// Somebody wants the tray open.
    EjectRequest,
}

impl Action {
    /// The word in the event log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::MediaChange => "media_change",
            Self::Change => "change",
            Self::EjectRequest => "eject_request",
        }
    }
}

/// What the kernel told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// Of a device.
    Event(Uevent),
    /// More than was read in time: look at all devices again.
    Lost,
    /// Nothing more for now.
    Nothing,
}

/// The socket on which the kernel tells of devices.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Listens. Events from now on are kept until they are read.
    ///
    /// # Errors
    /// What socket(2) and bind(2) return: in a network namespace that belongs to another user
    /// namespace than the first the kernel is silent, and a container may forbid it.
    pub fn listen() -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        // 1 MiB: a burst of other devices' events must not push out the one that matters. The larger
        // of the two ways works for root only, and the smaller has the system's maximum.
        if setsockopt(&fd, sockopt::RcvBufForce, &(1 << 20)).is_err() {
            let _ = setsockopt(&fd, sockopt::RcvBuf, &(1 << 20));
        }
        // Group 1 is the kernel's own; group 2 is udev's, in another format.
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self(fd))
    }

    /// The socket that another program listened on, with what it has not read.
    pub(crate) fn resume(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Waits until there is something to read.
    ///
    /// # Errors
    /// What poll(2) returns.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads on to the next event about a block device, without waiting for one.
    ///
    /// # Errors
    /// What recvfrom(2) returns, a full buffer aside.
    pub fn next(&self) -> io::Result<Heard> {
        let mut buffer = [0; 8192];
        loop {
            match recvfrom::<NetlinkAddr>(self.0.as_raw_fd(), &mut buffer) {
                // Port 0 is the kernel: anybody else's messages are not believed.
                Ok((len, Some(from))) if from.pid() == 0 => {
                    if let Some(event) = parse(&buffer[..len.min(8192)]) {
                        return Ok(Heard::Event(event));
                    }
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(Heard::Nothing),
                Err(Errno::ENOBUFS) => return Ok(Heard::Lost),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Parses a message: `ACTION@PATH`, then `KEY=VALUE`s, each ended by NUL.
fn parse(message: &[u8]) -> Option<Uevent> {
    let text = std::str::from_utf8(message).ok()?;
    let keys: BTreeMap<&str, &str> = text.split('\0').filter_map(|part| part.split_once('=')).collect();
    if keys.get("SUBSYSTEM") != Some(&"block") || keys.get("DEVTYPE") != Some(&"disk") {
        return None;
    }
    let device = keys.get("DEVNAME")?.rsplit('/').next()?.to_owned();
    let action = match *keys.get("ACTION")? {
        "add" => Action::Add,
        "remove" => Action::Remove,
        "change" if keys.contains_key("DISK_MEDIA_CHANGE") => Action::MediaChange,
        "change" if keys.contains_key("DISK_EJECT_REQUEST") => Action::EjectRequest,
        "change" => Action::Change,
        _ => return None,
    };
    Some(Uevent { device, action })
}

// `MsgFlags` is what a reader of netlink(7) looks for; this socket is read without any.
const _: MsgFlags = MsgFlags::empty();

#[cfg(test)]
mod tests {
    use super::*;

    fn message(lines: &[&str]) -> Vec<u8> {
        let mut all = b"change@/devices/pci0000:00/host2/block/sr0\0".to_vec();
        for line in lines {
            all.extend_from_slice(line.as_bytes());
            all.push(0);
        }
        all
    }

    #[test]
    fn events_of_drives() {
        let block = ["SUBSYSTEM=block", "DEVTYPE=disk", "DEVNAME=sr0", "SEQNUM=3"];
        for (extra, action) in [
            (&["ACTION=add"][..], Some(Action::Add)),
            (&["ACTION=remove"], Some(Action::Remove)),
            (&["ACTION=change", "DISK_MEDIA_CHANGE=1"], Some(Action::MediaChange)),
            (&["ACTION=change", "DISK_EJECT_REQUEST=1"], Some(Action::EjectRequest)),
            (&["ACTION=change"], Some(Action::Change)),
            (&["ACTION=bind"], None),
        ] {
            let event = parse(&message(&[&block[..], extra].concat()));
            assert_eq!(event, action.map(|action| Uevent { device: "sr0".to_owned(), action }));
        }
    }

    #[test]
    fn other_subsystems_and_garbage_are_ignored() {
        assert_eq!(parse(&message(&["ACTION=add", "SUBSYSTEM=net", "DEVNAME=x", "DEVTYPE=disk"])), None);
        assert_eq!(
            parse(&message(&["ACTION=add", "SUBSYSTEM=block", "DEVNAME=vda1", "DEVTYPE=partition"])),
            None
        );
        assert_eq!(parse(&[0xff, 0, 1]), None);
        assert_eq!(parse(b""), None);
    }
}
