//! The wire protocol of xenstore, as much of it as an acknowledgement needs.
//!
//! It is the same on the guest's `/dev/xen/xenbus` and on the socket of the host's xenstored (Xen's
//! `docs/misc/xenstore.txt`, `xen/include/public/io/xs_wire.h`): a header of four 32-bit words in the
//! machine's order, then the payload. No library is linked for it: ffs is static, and the host's library
//! would have to fit the running Xen.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The socket of xenstored on the host.
pub const SOCKET: &str = "/run/xenstored/socket";

/// The longest payload in bytes (`XENSTORE_PAYLOAD_MAX`).
pub const MAX_PAYLOAD: usize = 4096;

const HEADER: usize = 16;

/// Message types (`enum xsd_sockmsg_type`).
const READ: u32 = 2;
const WATCH: u32 = 4;
const WRITE: u32 = 11;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;

/// What is asked. A path that does not start with `/` is from the asking domain's own directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// The value of a node.
    Read(&'a str),
    /// Set a node, and make the directories to it.
    Write(&'a str, &'a [u8]),
    /// Tell of every change at or below a path, starting with one event at once.
    Watch(&'a str),
}

/// The token of watches: one connection has one purpose.
const TOKEN: &str = "ctx";

impl Request<'_> {
    fn kind(self) -> u32 {
        match self {
            Self::Read(_) => READ,
            Self::Write(..) => WRITE,
            Self::Watch(_) => WATCH,
        }
    }

    /// The message, header and payload in one piece.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when it is too long or a path has a NUL.
    pub fn encode(self, id: u32) -> io::Result<Vec<u8>> {
        let (path, rest) = match self {
            Self::Read(path) => (path, Vec::new()),
            Self::Write(path, value) => (path, value.to_vec()),
            Self::Watch(path) => (path, [TOKEN.as_bytes(), b"\0"].concat()),
        };
        let len = path.len() + 1 + rest.len();
        if len > MAX_PAYLOAD || path.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut message = Vec::with_capacity(HEADER + len);
        // No transaction: its id is 0. The length fits, being at most MAX_PAYLOAD.
        for word in [self.kind(), id, 0, u32::try_from(len).unwrap_or(u32::MAX)] {
            message.extend_from_slice(&word.to_ne_bytes());
        }
        message.extend_from_slice(path.as_bytes());
        message.push(0);
        message.extend_from_slice(&rest);
        Ok(message)
    }
}

/// A message from xenstored.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reply {
    kind: u32,
    id: u32,
    payload: Vec<u8>,
}

fn receive(from: &mut impl Read) -> io::Result<Reply> {
    let mut header = [0; HEADER];
    from.read_exact(&mut header)?;
    let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let len = word(12) as usize;
    if len > MAX_PAYLOAD {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("xenstore sent {len} bytes at once")));
    }
    let mut payload = vec![0; len];
    from.read_exact(&mut payload)?;
    Ok(Reply { kind: word(0), id: word(4), payload })
}

/// One connection to xenstore.
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    id: u32,
    /// Events that came while an answer was waited for: paths.
    events: VecDeque<String>,
}

impl Client<UnixStream> {
    /// A client of the xenstored that listens on a socket; neither side of a call waits longer than
    /// `patience`.
    ///
    /// # Errors
    /// What connect(2) returns.
    pub fn connect(socket: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        let patience = Some(patience.max(Duration::from_millis(1)));
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(patience)?;
        Ok(Self::new(stream))
    }
}

impl<S: Read + Write> Client<S> {
    /// A client on an open device or socket.
    pub fn new(stream: S) -> Self {
        Self { stream, id: 0, events: VecDeque::new() }
    }

    /// What it talks over, to wait for it.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// What the stream returns, and what xenstored answers: [`io::ErrorKind::NotFound`] for a node that
    /// is not there, [`io::ErrorKind::PermissionDenied`], or another with xenstored's word for it.
    pub fn call(&mut self, request: Request<'_>) -> io::Result<Vec<u8>> {
        self.id = self.id.wrapping_add(1);
        self.stream.write_all(&request.encode(self.id)?)?;
        loop {
            let reply = receive(&mut self.stream)?;
            match reply.kind {
                WATCH_EVENT => self.keep(&reply),
                _ if reply.id != self.id => {}
                ERROR => return Err(refusal(&reply.payload)),
                kind if kind == request.kind() => return Ok(reply.payload),
                kind => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("xenstore answered {} with {kind}", request.kind()),
                    ));
                }
            }
        }
    }

    /// The path of the next event of a watch; waits for one.
    ///
    /// # Errors
    /// What the stream returns.
    pub fn event(&mut self) -> io::Result<String> {
        loop {
            if let Some(path) = self.events.pop_front() {
                return Ok(path);
            }
            let reply = receive(&mut self.stream)?;
            if reply.kind == WATCH_EVENT {
                self.keep(&reply);
            }
        }
    }

    /// Whether an event came while an answer was waited for, so that the stream will not tell of it.
    pub fn has_event(&self) -> bool {
        !self.events.is_empty()
    }

    fn keep(&mut self, reply: &Reply) {
        let path = reply.payload.split(|byte| *byte == 0).next().unwrap_or_default();
        self.events.push_back(String::from_utf8_lossy(path).into_owned());
    }
}

fn refusal(payload: &[u8]) -> io::Error {
    let word = String::from_utf8_lossy(payload.strip_suffix(b"\0").unwrap_or(payload)).into_owned();
    let kind = match word.as_str() {
        "ENOENT" => io::ErrorKind::NotFound,
        "EACCES" => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, format!("xenstore answers {word}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u32, id: u32, payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap();
        let words = [kind, id, 0, len].map(u32::to_ne_bytes).concat();
        [words.as_slice(), payload].concat()
    }

    #[test]
    fn requests_on_the_wire() {
        assert_eq!(Request::Read("domid").encode(7).unwrap(), message(2, 7, b"domid\0"));
        assert_eq!(Request::Write("data/a", b"v").encode(8).unwrap(), message(11, 8, b"data/a\0v"));
        assert_eq!(Request::Watch("domid").encode(9).unwrap(), message(4, 9, b"domid\0ctx\0"));
        let long = vec![b'x'; MAX_PAYLOAD];
        assert!(Request::Write("a", &long).encode(1).is_err());
        assert!(Request::Read("a\0b").encode(1).is_err());
    }

    #[test]
    fn answers_and_events_are_told_apart() {
        let (mut server, stream) = UnixStream::pair().unwrap();
        let mut client = Client::new(stream);
        server.write_all(&message(WATCH_EVENT, 0, b"domid\0ctx\0")).unwrap();
        server.write_all(&message(READ, 1, b"5")).unwrap();
        assert_eq!(client.call(Request::Read("domid")).unwrap(), b"5");
        assert!(client.has_event());
        assert_eq!(client.event().unwrap(), "domid");
        server.write_all(&message(ERROR, 2, b"ENOENT\0")).unwrap();
        assert_eq!(client.call(Request::Read("x")).unwrap_err().kind(), io::ErrorKind::NotFound);
        server.write_all(&message(READ, 3, b"")[..12]).unwrap();
        server.write_all(&u32::MAX.to_ne_bytes()).unwrap();
        assert_eq!(client.call(Request::Read("x")).unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(server);
        assert!(client.event().is_err());
    }
}
