//! The threads that only wait, and pass on what comes.
//!
//! They take nothing but from inside of the [`Door`]: what they leave outside waits where it is.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::Message;
use crate::door::Door;
use crate::mount::Session;
use crate::uevent::{Heard, Uevents};

/// Starts one thread for each thing that is waited for; they end with the process. `signals` are
/// blocked in all threads.
///
/// # Errors
/// What starting a thread or making a descriptor returns.
pub(super) fn start(
    tx: &Sender<Message>,
    door: &Door,
    signals: &SigSet,
    session: Session,
    uevents: Option<Arc<Uevents>>,
    gone: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
    };
    let (to, inside) = (tx.clone(), door.clone());
    let signals = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    spawn(
        "signals",
        Box::new(move || {
            loop {
                match poll(&mut [PollFd::new(signals.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return tracing::error!(%error, "signals are not heard any more"),
                }
                let _inside = inside.enter();
                while let Ok(Some(signal)) = signals.read_signal() {
                    let reload = signal.ssi_signo == Signal::SIGHUP as u32;
                    let _ = to.send(if reload { Message::Reload } else { Message::Stop });
                }
            }
        }),
    )?;
    let to = tx.clone();
    spawn(
        "session-end",
        Box::new(move || {
            let _ = to.send(Message::SessionEnded(session.wait()));
        }),
    )?;
    let to = tx.clone();
    spawn(
        "unmounted",
        Box::new(move || match gone() {
            Ok(()) => drop(to.send(Message::Gone)),
            Err(error) => tracing::error!(%error, "an unmount by somebody else will not be noticed"),
        }),
    )?;
    let Some(uevents) = uevents else { return Ok(()) };
    let (to, inside) = (tx.clone(), door.clone());
    spawn(
        "uevents",
        Box::new(move || {
            loop {
                let heard = uevents.wait().and_then(|()| {
                    let _inside = inside.enter();
                    loop {
                        match uevents.next()? {
                            Heard::Event(event) => drop(to.send(Message::Uevent(Some(event)))),
                            Heard::Lost => drop(to.send(Message::Uevent(None))),
                            Heard::Nothing => return Ok(()),
                        }
                    }
                });
                if let Err(error) = heard {
                    return tracing::error!(%error, "no more events about devices");
                }
            }
        }),
    )
}
