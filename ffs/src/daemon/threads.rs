//! The threads that only wait, and pass on what comes.

use std::io;
use std::sync::mpsc::Sender;

use nix::sys::signal::{SigSet, Signal};

use super::Message;
use crate::mount::Session;
use crate::uevent::Uevents;

/// Starts one thread for each thing that is waited for; they end with the process.
///
/// # Errors
/// What starting a thread returns.
pub(super) fn start(
    tx: &Sender<Message>,
    signals: SigSet,
    session: Session,
    uevents: Option<Uevents>,
    gone: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
    };
    let to = tx.clone();
    spawn(
        "signals",
        Box::new(move || {
            while let Ok(signal) = signals.wait() {
                let _ = to.send(if signal == Signal::SIGHUP { Message::Reload } else { Message::Stop });
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
            Ok(()) => drop(to.send(Message::Stop)),
            Err(error) => tracing::error!(%error, "an unmount by somebody else will not be noticed"),
        }),
    )?;
    let Some(uevents) = uevents else { return Ok(()) };
    let to = tx.clone();
    spawn(
        "uevents",
        Box::new(move || {
            loop {
                match uevents.next() {
                    Ok(event) => drop(to.send(Message::Uevent(event))),
                    Err(error) => return tracing::error!(%error, "no more events about devices"),
                }
            }
        }),
    )
}
