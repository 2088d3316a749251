//! How a command that has machines ends: by itself, or because somebody stops it (Ctrl-C, SIGTERM).
//!
//! The bench is the first process of its namespaces, to which the kernel delivers no signal without a handler; and SIGTERM to the
//! process outside that the user started does not reach it by itself ([`namespace::enter`]). So signals
//! are listened to from the first moment, on a thread of the runtime and not on the one that works: that one may be in a call
//! that blocks. While nothing is to be put in order, a signal ends the process at once, and the namespaces with it. While
//! trials run, they are told first, which closes the run's folder in order; when that takes too long, or somebody
//! asks again, the process ends all the same.

use std::future::Future;
use std::process::exit;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ctx_io::errln;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::testbed::namespace;

/// How long a command that was stopped may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// How often the process outside is looked at.
const OUTSIDE: Duration = Duration::from_millis(500);
/// How long the runtime's own threads may take at the end. They write consoles, on a disk that may be full or stuck.
const END: Duration = Duration::from_secs(2);

/// What a command is about, and its signals.
pub(super) struct Stoppable {
    /// There until this value is dropped.
    runtime: Option<Runtime>,
    shared: Arc<Shared>,
}

struct Shared {
    /// What to say when the command is stopped.
    said: Mutex<String>,
    /// Whether it wants to be told, and whether it was.
    told: watch::Sender<Told>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// A signal ends the process.
    Nobody,
    /// A signal is told to whoever waits.
    Listens,
    /// It was.
    Yes,
}

impl Stoppable {
    /// Listens from now on.
    ///
    /// # Errors
    /// No threads can be started, or no signals listened to.
    pub(super) fn begin() -> std::io::Result<Stoppable> {
        let runtime = Runtime::new()?;
        let shared =
            Arc::new(Shared { said: Mutex::new("stopped".into()), told: watch::Sender::new(Told::Nobody) });
        let signals = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        runtime.spawn(watch(signals, Arc::clone(&shared)));
        Ok(Stoppable { runtime: Some(runtime), shared })
    }

    /// What is said from now on when the command is stopped.
    pub(super) fn says(&self, text: String) {
        *self.shared.said.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// Does something until it is done or somebody stops it; none when it was stopped, and what it had is dropped.
    pub(super) fn until_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut told = self.shared.told.subscribe();
        self.shared.told.send_replace(Told::Listens);
        let runtime = self.runtime.as_ref().expect("it is taken only when this value is dropped");
        let done = runtime.block_on(async {
            tokio::select! {
                done = work => Some(done),
                _ = told.wait_for(|told| *told == Told::Yes) => None,
            }
        });
        // Not after a signal: what is dropped and written behind it has the grace that runs.
        self.shared.told.send_if_modified(|told| {
            let listens = *told == Told::Listens;
            if listens {
                *told = Told::Nobody;
            }
            listens
        });
        done
    }

    /// What is said when the command is stopped.
    pub(super) fn said(&self) -> String {
        self.shared.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Stoppable {
    /// The runtime's threads are not waited for without end, as when it is dropped: one may be in a call that never ends.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(END);
        }
    }
}

async fn watch((mut interrupt, mut terminate): (Signal, Signal), shared: Arc<Shared>) {
    let (mut signalled, mut outside) = (false, false);
    loop {
        let from_outside = tokio::select! {
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
            () = terminated_outside(), if !outside => true,
        };
        outside |= from_outside;
        // Whoever signals a whole group means one thing by it.
        if from_outside && signalled {
            continue;
        }
        signalled = true;
        let mut first = false;
        shared.told.send_if_modified(|told| {
            first = *told == Told::Listens;
            if first {
                *told = Told::Yes;
            }
            first
        });
        if !first {
            leave(&shared);
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            tokio::time::sleep(GRACE).await;
            leave(&shared);
        });
    }
}

/// Waits until SIGTERM was sent to the process outside that the user started.
async fn terminated_outside() {
    while !namespace::terminated() {
        tokio::time::sleep(OUTSIDE).await;
    }
}

fn leave(shared: &Shared) -> ! {
    errln!("bench: {}", shared.said.lock().unwrap_or_else(PoisonError::into_inner));
    exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One after the other: a signal reaches all of a process.
    #[test]
    fn what_is_done_is_given_back_and_what_is_stopped_is_not_waited_for() {
        let stoppable = Stoppable::begin().unwrap();
        let (hold, wait) = std::sync::mpsc::channel::<()>();
        let done = stoppable.until_stopped(async {
            drop(tokio::task::spawn_blocking(move || wait.recv()));
            7
        });
        assert_eq!(done, Some(7));
        // Dropping a runtime would wait for the thread, which waits for what is dropped after it.
        drop(stoppable);
        drop(hold);

        let stoppable = Stoppable::begin().unwrap();
        stoppable.says("stopped on purpose".into());
        let stopped = stoppable.until_stopped(async {
            nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGTERM).unwrap();
            std::future::pending::<()>().await;
        });
        assert_eq!(stopped, None);
        assert_eq!(stoppable.said(), "stopped on purpose");
    }
}
