//! A session on a connection that has been opened before.
//!
//! The library begins every session with the kernel's INIT request; the kernel makes that once in the
//! life of a mount. So the library is given a socket on which we make it, with what was agreed on then,
//! and `/dev/fuse` takes the socket's place before the first thread reads from it. What is offered is
//! what was taken: a newer program cannot ask for more than the one that mounted, and sees that as it
//! would see an older kernel.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use fuser::{Config, Session};

use super::drain::header;
use super::state::Agreed;
use crate::fs::Ffs;
use crate::sys;

/// linux/fuse.h.
const FUSE_INIT: u32 = 26;
/// That the upper half of the flags counts (linux/fuse.h).
const FUSE_INIT_EXT: u32 = 1 << 30;
/// As much as a kernel offers; what it takes was agreed on before.
const READAHEAD: u32 = 1 << 20;

/// A session that answers on `fuse`.
///
/// # Errors
/// What the library says of the handshake; what socketpair(2) and dup3(2) return.
pub(crate) fn session(fs: Ffs, fuse: &OwnedFd, agreed: &Agreed, config: Config) -> io::Result<Session<Ffs>> {
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.write_all(&init(agreed))?;
    let acl = config.acl;
    let session = Session::from_fd(fs, theirs.into(), acl, config)?;
    // The answer is for nobody: the kernel has had one.
    sys::stand_for(session.as_fd().as_raw_fd(), fuse)?;
    Ok(session)
}

/// The request with which a session begins: `fuse_init_in` (linux/fuse.h).
fn init(agreed: &Agreed) -> Vec<u8> {
    // The two halves fit.
    let (low, high) = ((agreed.taken & 0xffff_ffff) as u32, (agreed.taken >> 32) as u32);
    let mut body = Vec::with_capacity(64);
    for number in [agreed.major, agreed.minor, READAHEAD, low | FUSE_INIT_EXT, high] {
        body.extend_from_slice(&number.to_ne_bytes());
    }
    body.resize(64, 0);
    header(FUSE_INIT, 2, 0, &body)
}
