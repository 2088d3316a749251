//! Talking to a mounted `ffs`: one JSON line asked and one answered, over a Unix socket that only
//! its owner can open.
//!
//! The socket is `/run/ffs/NAME.sock`, NAME being the mount point with `-` for `/`
//! (`/mnt/context` → `mnt-context`), so that no state is needed to find it.

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

use crate::hooks::Outcome;

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
    /// Add a layer, as `NAME=SOURCE[,priority=N]`; refused when there is one of its name.
    Add(String),
    /// Put a layer in place of the one of its name; refused when there is none.
    Replace(String),
    /// Remove the layer of this name.
    Remove(String),
    /// Read all layers again.
    Reload,
    /// Unmount and end.
    Unmount,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Done; this is how it is now.
    Status(Box<Status>),
    /// Not done.
    Error(String),
}

/// How a mount is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The mount point.
    pub mount: PathBuf,
    /// The version of the program.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The generation that is shown.
    pub generation: u64,
    /// Layers, highest priority first.
    pub layers: Vec<LayerStatus>,
    /// Names shown.
    pub names: u64,
    /// Bytes of the files shown.
    pub bytes: u64,
    /// Inodes that the kernel holds.
    pub known_inodes: u64,
    /// Drives that are followed.
    pub devices: Vec<DeviceStatus>,
    /// The last outcome of each hook that ran.
    pub hooks: Vec<Outcome>,
    /// What this kernel or these privileges do not allow.
    pub reduced: Vec<String>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStatus {
    /// Its name.
    pub name: String,
    /// Its rank.
    pub priority: u16,
    /// Where it came from.
    pub origin: String,
    /// The generation that its manifest states.
    pub generation: Option<u64>,
}

/// One drive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name, like `sr0`.
    pub device: String,
    /// What came of it last.
    pub state: String,
}

/// Where the socket of a mount is.
pub fn socket_path(point: &Path) -> PathBuf {
    let point = point.canonicalize().unwrap_or_else(|_| point.to_owned());
    let text = point.to_string_lossy();
    let name = text.trim_matches('/').replace('/', "-");
    Path::new("/run/ffs").join(format!("{name}.sock"))
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
