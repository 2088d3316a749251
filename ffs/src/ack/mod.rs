//! The acknowledgement: the host is told what became of each image.
//!
//! What happens is taken from the steps of the event log, so that nothing is told that is not also
//! written there. A thread of its own tells it: a host that does not listen keeps nobody waiting. It
//! holds the newest state of each class and tells all of them again whenever the host's side is new.
//!
//! | module | one idea |
//! |---|---|
//! | `book` | steps in, the state of each class out; pure |
//! | `port` | a virtio-serial port |
//! | `xenbus` | the guest's own directory in xenstore |

mod book;
mod port;
mod xenbus;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::Duration;

use ctx_format::ack::Ack;
use ctx_io::durable;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

use crate::events::{Log, Step};
use crate::handover::state;
use book::Book;

/// Where the state lies when there is no way to the host.
pub const DEFAULT_FILE: &str = "/run/ffs/ack.json";

/// How often a way to the host is looked for while there is none: the driver of a port may be loaded
/// long after the start.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How the host is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AckMode {
    /// By the first of virtio-serial, xenstore and [`DEFAULT_FILE`] that there is.
    #[default]
    Auto,
    /// By the virtio-serial port named [`PORT`](ctx_format::ack::PORT), or the one at this path.
    VirtioSerial(Option<PathBuf>),
    /// By xenstore, below [`XENSTORE`](ctx_format::ack::XENSTORE).
    Xenstore,
    /// In a file: a line for each class.
    File(PathBuf),
    /// Not at all.
    Off,
}

impl FromStr for AckMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "virtio-serial" => Ok(Self::VirtioSerial(None)),
            None if text == "xenstore" => Ok(Self::Xenstore),
            None if text == "off" => Ok(Self::Off),
            Some(("virtio-serial", path)) if path.starts_with('/') => {
                Ok(Self::VirtioSerial(Some(path.into())))
            }
            Some(("file", path)) if path.starts_with('/') => Ok(Self::File(path.into())),
            _ => Err(format!(
                "`{text}` is not `auto`, `virtio-serial[:/PATH]`, `xenstore`, `file:/PATH` or `off`"
            )),
        }
    }
}

impl TryFrom<String> for AckMode {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AckMode> for String {
    fn from(mode: AckMode) -> Self {
        match mode {
            AckMode::Auto => "auto".to_owned(),
            AckMode::VirtioSerial(None) => "virtio-serial".to_owned(),
            AckMode::VirtioSerial(Some(path)) => format!("virtio-serial:{}", path.display()),
            AckMode::Xenstore => "xenstore".to_owned(),
            AckMode::File(path) => format!("file:{}", path.display()),
            AckMode::Off => "off".to_owned(),
        }
    }
}

/// What the host's side of a way needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// Nothing.
    None,
    /// It can take what it could not take before.
    Room,
    /// It is new, or asks: everything.
    All,
}

/// A way to the host.
trait Way: Send {
    /// What to wait for, if the host's side can have news.
    fn wait(&self) -> Option<(BorrowedFd<'_>, EpollFlags)>;

    /// Finds out the news. An error means that the way is gone.
    fn news(&mut self) -> io::Result<News>;

    /// Tells one state; `false` when there is no room now. `all` is every state. An error means that the
    /// way is gone.
    fn tell(&mut self, state: &Ack, all: &[&Ack]) -> io::Result<bool>;

    /// What another program must be handed to go on with it; nothing when it can open it by itself.
    fn to_state(&self) -> Option<state::Port> {
        None
    }
}

/// A file: replaced as a whole, so that a reader never sees half of it.
struct File(PathBuf);

impl Way for File {
    fn wait(&self) -> Option<(BorrowedFd<'_>, EpollFlags)> {
        None
    }

    fn news(&mut self) -> io::Result<News> {
        Ok(News::None)
    }

    fn tell(&mut self, _: &Ack, all: &[&Ack]) -> io::Result<bool> {
        if let Some(dir) = self.0.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let lines: Vec<u8> = all.iter().flat_map(|state| state.to_line()).collect();
        durable::write(&self.0, &lines)?;
        Ok(true)
    }
}

/// Opens the way that a mode asks for. Whether it is the best one of its mode: another may come up later.
fn open(mode: &AckMode) -> (Option<Box<dyn Way>>, bool) {
    let said = |way: &str, result: io::Result<Box<dyn Way>>| match result {
        Ok(way) => Some(way),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            // Busy with another program's: it is tried again, and must not fill a log.
            tracing::debug!(%error, way, "the host cannot be told this way");
            None
        }
    };
    let port = |path: Option<&Path>| {
        said("virtio-serial", port::Port::open(path).map(|port| Box::new(port) as Box<dyn Way>))
    };
    let xenbus = || said("xenstore", xenbus::Xenbus::open().map(|bus| Box::new(bus) as Box<dyn Way>));
    let (way, last) = match mode {
        AckMode::Off => return (None, true),
        AckMode::File(path) => return (Some(Box::new(File(path.clone()))), true),
        AckMode::VirtioSerial(path) => (port(path.as_deref()), None),
        AckMode::Xenstore => (xenbus(), None),
        AckMode::Auto => {
            (port(None).or_else(xenbus), Some(Box::new(File(DEFAULT_FILE.into())) as Box<dyn Way>))
        }
    };
    let best = way.is_some();
    (way.or(last), best)
}

/// What the thread that tells is told.
enum Message {
    Step(Step),
    /// Says what it knows, and does nothing until this is dropped.
    Rest(Sender<state::Acks>, Receiver<()>),
}

/// The way to the thread that tells. The thread does not end with it.
#[derive(Debug)]
pub struct Teller {
    to: Sender<Message>,
    wake: Arc<EventFd>,
}

impl Teller {
    /// What it knows; nothing is told until the second is dropped. `None` when it has ended.
    pub(crate) fn rest(&self) -> Option<(state::Acks, Sender<()>)> {
        let ((to, state), (end, rests)) = (channel(), channel());
        self.to.send(Message::Rest(to, rests)).ok()?;
        let _ = self.wake.write(1);
        Some((state.recv().ok()?, end))
    }
}

/// Starts to tell the host, as `mode` says, about what is written to `log` from now on.
///
/// # Errors
/// What making a descriptor or starting a thread returns.
pub fn start(mode: &AckMode, log: &Arc<Log>) -> io::Result<Option<Teller>> {
    resume(mode, log, None)
}

/// As [`start`], with what another program knew and had open.
///
/// # Errors
/// As there.
pub(crate) fn resume(
    mode: &AckMode,
    log: &Arc<Log>,
    before: Option<(&state::Acks, Option<std::fs::File>)>,
) -> io::Result<Option<Teller>> {
    if *mode == AckMode::Off {
        return Ok(None);
    }
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let (steps, received) = channel();
    let (mode, woken) = (mode.clone(), wake.clone());
    let book = before.as_ref().map_or_else(Book::default, |(state, _)| Book::resume(state));
    let way = before.and_then(|(state, file)| {
        let port = port::Port::resume(file?, state.port.as_ref()?);
        Some(Box::new(port) as Box<dyn Way>)
    });
    std::thread::Builder::new().name("ack".to_owned()).spawn(move || {
        if let Err(error) = serve(&mode, &received, &woken, book, way) {
            tracing::error!(%error, "the host is not told any more");
        }
    })?;
    let teller = Teller { to: steps.clone(), wake: wake.clone() };
    log.observe(move |step| {
        if Book::minds(step) && steps.send(Message::Step(step.clone())).is_ok() {
            // Full is as good: it wakes.
            let _ = wake.write(1);
        }
    });
    Ok(Some(teller))
}

fn serve(
    mode: &AckMode,
    messages: &Receiver<Message>,
    wake: &EventFd,
    mut book: Book,
    mut way: Option<Box<dyn Way>>,
) -> io::Result<()> {
    const WAKE: u64 = 0;
    const HOST: u64 = 1;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
    let mut best = way.is_some();
    if let Some((fd, flags)) = way.as_ref().and_then(|way| way.wait()) {
        epoll.add(fd, EpollEvent::new(flags, HOST))?;
    }
    loop {
        if !best {
            // A way that falls back to another: what is better takes its place with all there is to tell.
            (way, best) = open(mode);
            if let Some((fd, flags)) = way.as_ref().and_then(|way| way.wait()) {
                epoll.add(fd, EpollEvent::new(flags, HOST))?;
            }
            if best {
                book.all_anew();
            }
        }
        let mut lost = false;
        if let Some(way) = &mut way {
            match tell(way.as_mut(), &mut book) {
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(%error, "the way to the host is gone");
                    lost = true;
                }
            }
        }
        if lost {
            // Closing takes it out of the epoll.
            (way, best) = (None, false);
        }
        let timeout =
            if best { EpollTimeout::NONE } else { LOOK_AGAIN.try_into().unwrap_or(EpollTimeout::MAX) };
        let mut events = [EpollEvent::empty(); 2];
        match epoll.wait(&mut events, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let _ = wake.read();
        loop {
            match messages.try_recv() {
                Ok(Message::Step(step)) => book.note(&step),
                Ok(Message::Rest(to, until)) => {
                    let port = way.as_ref().and_then(|way| way.to_state());
                    let _ = to.send(state::Acks { port, ..book.to_state() });
                    let _ = until.recv();
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }
}

/// Asks a way for its news, then tells what is to be told.
fn tell(way: &mut dyn Way, book: &mut Book) -> io::Result<()> {
    if way.news()? == News::All {
        book.all_anew();
    }
    for at in book.untold() {
        let all = book.states();
        if !way.tell(all[at], &all)? {
            break;
        }
        book.told(at);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_read() {
        assert_eq!("auto".parse(), Ok(AckMode::Auto));
        assert_eq!("virtio-serial:/dev/pts/1".parse(), Ok(AckMode::VirtioSerial(Some("/dev/pts/1".into()))));
        assert_eq!("file:/run/a".parse(), Ok(AckMode::File("/run/a".into())));
        for bad in ["", "file", "file:a", "serial", "off:"] {
            assert!(bad.parse::<AckMode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_file_has_the_newest_state_of_each_class() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/ack.json");
        let log = Arc::new(Log::default());
        start(&AckMode::File(path.clone()), &log).unwrap();
        let visible = |generation, layer: &str, of| Step::Visible {
            generation,
            layer: layer.to_owned(),
            layer_generation: Some(of),
            changes: 1,
        };
        log.write(visible(1, "service", 1));
        log.write(visible(2, "infrastructure", 7));
        log.write(Step::Hook { hook: "mount".into(), generation: 2, millis: 3, result: "exit 2".into() });
        log.write(Step::HooksDone { generation: 2 });
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let text = std::fs::read(&path).unwrap_or_default();
            let states: Vec<Ack> =
                text.split_inclusive(|byte| *byte == b'\n').map(|line| Ack::parse(line).unwrap()).collect();
            if let [infrastructure, service] = &states[..]
                && let (Some(hooks), Some(_)) = (&infrastructure.hooks, &service.hooks)
            {
                assert_eq!((infrastructure.node(), infrastructure.generation), ("infrastructure", Some(7)));
                assert_eq!(hooks[0].result.as_str(), "exit 2");
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{states:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
