//! Talking to a mounted `ffs`: one JSON line asked and one answered, over a Unix socket that only
//! its owner can open.
//!
//! The socket is `/run/ffs/NAME.sock`, NAME being the mount point with `-` for `/`
//! (`/mnt/context` → `mnt-context`), so that no state is needed to find it; for users other than root
//! it is below `$XDG_RUNTIME_DIR`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::edit::Op;
pub use crate::status::{DeviceStatus, LayerStatus, MemoryStatus, Status};

/// The longest request, in bytes.
const REQUEST_MAX: u64 = 1 << 16;
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
    Some(dir.join("ffs").join(format!("{}.sock", mount_name(point))))
}

/// The name of a mount in files of its own: its path with `-` for `/`.
pub(crate) fn mount_name(point: &Path) -> String {
    let point = point.canonicalize().unwrap_or_else(|_| point.to_owned());
    point.to_string_lossy().trim_matches('/').replace('/', "-")
}

/// Asks a mounted `ffs`.
///
/// # Errors
/// What connecting, writing and reading return; [`io::ErrorKind::InvalidData`] for an answer that
/// cannot be understood.
pub fn ask(socket: &Path, request: &Request) -> io::Result<Response> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// The socket; when dropped, the answer under way is written, then it is removed.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread if it waits for a connection.
        let woken = UnixStream::connect(&self.path).is_ok();
        if let (true, Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Server {
    /// Listens, and hands each request on with the way to answer it.
    ///
    /// # Errors
    /// What bind(2) returns; [`io::ErrorKind::AddrInUse`] when another `ffs` answers there.
    pub fn start(
        path: &Path,
        handle: impl Fn(Request, Sender<Response>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
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
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::Acquire) {
                    return;
                }
                // One after the other: requests are rare and quick.
                if let Err(error) = stream.and_then(|stream| serve(stream, &handle)) {
                    tracing::debug!(%error, "control connection");
                }
            }
        })?;
        Ok(Self { path: path.to_owned(), stopping, thread: Some(thread) })
    }
}

fn serve(mut stream: UnixStream, handle: &impl Fn(Request, Sender<Response>)) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut line = String::new();
    BufReader::new(stream.try_clone()?.take(REQUEST_MAX)).read_line(&mut line)?;
    let response = match serde_json::from_str(&line) {
        Err(error) => Response::Error(format!("cannot understand the request: {error}")),
        Ok(request) => {
            let (answer, answers) = channel();
            handle(request, answer);
            answers.recv_timeout(PATIENCE).unwrap_or_else(|_| Response::Error("no answer in time".to_owned()))
        }
    };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    stream.write_all(&line)
}
