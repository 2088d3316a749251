//! Calls that block, each with a deadline.
//!
//! A call of libvirt, a goodbye to ssh, a look into a FUSE mount: when the other side is stuck, the calling thread is, too, and
//! nothing can end that thread. So each such call has a thread of its own, and only its result is waited for. Not
//! `tokio::task::spawn_blocking`: a runtime that shuts down waits for those threads, so that one stuck call would keep the
//! program from ending. A plain thread ends with the process.
//!
//! What a call returns after its deadline is dropped in the thread of the call.

use std::sync::mpsc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// A call that gave no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// It did not return in time. It may still be under way, and may still have its effect.
    #[error("{host}: {what} did not end within {} s", limit.as_secs_f64())]
    Late {
        /// Whom it spoke to.
        host: String,
        /// What was being done, e.g. `connect to libvirt`.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// It panicked.
    #[error("{host}: {what} panicked; this is a bug")]
    Panicked {
        /// Whom it spoke to.
        host: String,
        /// What was being done.
        what: &'static str,
    },
    /// It could not be made.
    #[error("{host}: {what}: cannot start a thread: {source}")]
    Thread {
        /// Whom it would have spoken to.
        host: String,
        /// What was to be done.
        what: &'static str,
        /// The system's error.
        #[source]
        source: std::io::Error,
    },
}

impl CallError {
    /// Whether the call is, or may be, still under way.
    pub fn is_late(&self) -> bool {
        matches!(self, Self::Late { .. })
    }
}

/// A call that is under way in a thread of its own; dropping this value abandons it.
#[derive(Debug)]
pub struct Call<T> {
    host: String,
    what: &'static str,
    end: oneshot::Receiver<T>,
}

impl<T: Send + 'static> Call<T> {
    /// Starts a call that speaks to `host`; `what` says in the imperative what it does, for errors.
    ///
    /// # Errors
    /// [`CallError::Thread`].
    pub fn start(
        host: &str,
        what: &'static str,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Call<T>, CallError> {
        let (sender, end) = oneshot::channel();
        // Nobody waits any more: the result is dropped here.
        spawn(move || drop(sender.send(call()))).map_err(|source| CallError::Thread {
            host: host.to_owned(),
            what,
            source,
        })?;
        Ok(Call { host: host.to_owned(), what, end })
    }

    /// Waits for its result; after [`CallError::Late`] it can be waited for again.
    ///
    /// # Errors
    /// [`CallError::Late`] and [`CallError::Panicked`].
    pub async fn within(&mut self, limit: Duration) -> Result<T, CallError> {
        let (host, what) = (self.host.clone(), self.what);
        match timeout(limit, &mut self.end).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) => Err(CallError::Panicked { host, what }),
            Err(_) => Err(CallError::Late { host, what, limit }),
        }
    }
}

/// Makes a call and waits for its result.
///
/// # Errors
/// Any of [`CallError`].
pub async fn call<T: Send + 'static>(
    host: &str,
    what: &'static str,
    limit: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CallError> {
    Call::start(host, what, call)?.within(limit).await
}

/// The same where there is no runtime, or its thread may be blocked.
///
/// # Errors
/// Any of [`CallError`].
pub fn call_blocking<T: Send + 'static>(
    host: &str,
    what: &'static str,
    limit: Duration,
    call: impl FnOnce() -> T + Send + 'static,
) -> Result<T, CallError> {
    let (sender, end) = mpsc::channel();
    let host = host.to_owned();
    if let Err(source) = spawn(move || drop(sender.send(call()))) {
        return Err(CallError::Thread { host, what, source });
    }
    end.recv_timeout(limit).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => CallError::Late { host, what, limit },
        mpsc::RecvTimeoutError::Disconnected => CallError::Panicked { host, what },
    })
}

/// A value whose drop may block, and is done in a thread of its own: nobody waits for it.
#[derive(Debug)]
pub struct Apart<T: Send + 'static>(Option<T>);

impl<T: Send + 'static> Apart<T> {
    /// Holds a value.
    pub fn new(value: T) -> Apart<T> {
        Apart(Some(value))
    }
}

impl<T: Send + 'static> std::ops::Deref for Apart<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is taken only when this value is dropped")
    }
}

impl<T: Send + 'static> std::ops::DerefMut for Apart<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is taken only when this value is dropped")
    }
}

impl<T: Send + 'static> Drop for Apart<T> {
    fn drop(&mut self) {
        let value = self.0.take();
        // Without a thread it is dropped here, which is what happens without this type.
        let _ = spawn(move || drop(value));
    }
}

fn spawn(body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    std::thread::Builder::new().name("call".into()).spawn(body).map(drop)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(600);

    /// A call that ends when the sender is dropped, and no sooner.
    fn stuck() -> (mpsc::Sender<()>, impl FnOnce() -> &'static str + Send) {
        let (sender, receiver) = mpsc::channel::<()>();
        (sender, move || {
            let _ = receiver.recv();
            "ended"
        })
    }

    #[test]
    fn a_stuck_call_is_given_up_and_does_not_keep_the_runtime() {
        let (hold, body) = stuck();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let error = runtime.block_on(call("a", "ask", SOON, body)).unwrap_err();
        assert!(error.is_late());
        assert_eq!(error.to_string(), "a: ask did not end within 0.02 s");
        // With a thread of the runtime's own this would wait for the sender, which is dropped after it.
        drop(runtime);
        drop(hold);
    }

    #[tokio::test]
    async fn a_call_can_be_waited_for_again() {
        let (hold, body) = stuck();
        let mut call = Call::start("a", "ask", body).unwrap();
        assert!(call.within(SOON).await.unwrap_err().is_late());
        drop(hold);
        assert_eq!(call.within(LONG).await.unwrap(), "ended");
    }

    #[test]
    fn a_stuck_call_is_given_up_without_a_runtime() {
        let (hold, body) = stuck();
        let error = call_blocking("a", "ask", SOON, body).unwrap_err();
        assert_eq!(error.to_string(), "a: ask did not end within 0.02 s");
        drop(hold);
        assert_eq!(call_blocking("a", "ask", LONG, || 7).unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_is_no_silence() {
        let began = Instant::now();
        let error = call("a", "ask", LONG, || panic!("on purpose")).await.unwrap_err();
        assert_eq!(error.to_string(), "a: ask panicked; this is a bug");
        assert!(began.elapsed() < LONG);
    }

    #[test]
    fn a_value_whose_drop_blocks_keeps_nobody() {
        struct Blocks(mpsc::Receiver<()>, mpsc::Sender<()>);
        impl Drop for Blocks {
            fn drop(&mut self) {
                let _ = self.0.recv();
                let _ = self.1.send(());
            }
        }
        let ((hold, wait), (done, ended)) = (mpsc::channel(), mpsc::channel());
        drop(Apart::new(Blocks(wait, done)));
        assert!(ended.try_recv().is_err(), "its drop waits for what comes now");
        drop(hold);
        ended.recv_timeout(LONG).unwrap();
    }
}
