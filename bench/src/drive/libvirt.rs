//! The libvirt of one host, as the bench calls it: no call outlasts its deadline.
//!
//! libvirt's keep-alive notices a daemon that is dead within 20 s, and not one that is stuck: that answers keep-alives and no
//! call. So each call has a thread and a deadline ([`crate::deadline`]), and a connection under which a call did not end
//! is not used again. Handles of libvirt's (connections, domains) stay in such threads, since dropping the last of them
//! speaks to the daemon, too.

use std::sync::Arc;
use std::time::Duration;

use ctx::libvirt::Connection;
use tokio::sync::Mutex;

use super::guest::GuestError;
use crate::deadline::{Apart, Call, call};

/// How long connecting may take. The daemon is started by its socket, on a host that may be busy with a migration.
const CONNECT: Duration = Duration::from_secs(120);
/// How long a call may take that asks something, or changes a device. Longer than libvirt itself waits for QEMU or libxl.
pub const ANSWER: Duration = Duration::from_secs(180);

/// A connection, whose last clone is not dropped where it may block somebody.
pub type Shared = Arc<Apart<Connection>>;

/// One host's libvirt.
pub struct Libvirt {
    host: String,
    uri: String,
    /// None before the first call, and after one that did not end.
    connection: Mutex<Option<Shared>>,
}

impl Libvirt {
    /// The libvirt of a host; the first call connects.
    pub fn new(host: &str, uri: String) -> Libvirt {
        Libvirt { host: format!("host {host}"), uri, connection: Mutex::new(None) }
    }

    /// Its host, as errors name it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The connection, made anew when it was lost: a libvirtd that has died is started again by its socket.
    ///
    /// # Errors
    /// When libvirt does not answer.
    pub async fn connection(&self) -> Result<Shared, GuestError> {
        self.connection_within(CONNECT).await
    }

    async fn connection_within(&self, limit: Duration) -> Result<Shared, GuestError> {
        let mut held = self.connection.lock().await;
        let (before, uri) = (held.clone(), self.uri.clone());
        let made = call(&self.host, "connect to libvirt", limit, move || match before {
            Some(before) if before.is_alive() => Ok(before),
            _ => Connection::open(&uri).map(|connection| Arc::new(Apart::new(connection))),
        })
        .await;
        match made {
            Ok(Ok(connection)) => {
                *held = Some(connection.clone());
                Ok(connection)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(error) => {
                *held = None;
                Err(error.into())
            }
        }
    }

    /// Lets go of the connection: a call under it hangs. The next call makes a new one.
    pub async fn forget(&self) {
        *self.connection.lock().await = None;
    }

    /// Starts a call; `what` says in the imperative what it does.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn start<T: Send + 'static>(
        &self,
        what: &'static str,
        body: impl FnOnce(&Connection) -> Result<T, ctx::libvirt::Error> + Send + 'static,
    ) -> Result<Call<Result<T, ctx::libvirt::Error>>, GuestError> {
        let connection = self.connection().await?;
        Ok(Call::start(&self.host, what, move || body(&connection))?)
    }

    /// Makes a call and waits for its result.
    ///
    /// # Errors
    /// What the call returned, or that it did not within `limit`.
    pub async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        limit: Duration,
        body: impl FnOnce(&Connection) -> Result<T, ctx::libvirt::Error> + Send + 'static,
    ) -> Result<T, GuestError> {
        let done = self.start(what, body).await?.within(limit).await;
        if done.as_ref().is_err_and(crate::deadline::CallError::is_late) {
            self.forget().await;
        }
        Ok(done??)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;

    const SOON: Duration = Duration::from_millis(50);

    #[test]
    fn a_daemon_that_accepts_and_says_nothing_is_given_up() {
        let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
        let uri = format!("qemu+tcp://{}/system", deaf.local_addr().unwrap());
        let libvirt = Libvirt::new("a", uri);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let error = runtime.block_on(libvirt.connection_within(SOON)).unwrap_err();
        assert_eq!(error.to_string(), "host a: connect to libvirt did not end within 0.05 s");
        // The call still hangs in its thread, and neither of these waits for it.
        drop(libvirt);
        drop(runtime);
    }

    #[tokio::test]
    async fn after_a_call_that_hung_the_next_has_a_connection_of_its_own() {
        let libvirt = Libvirt::new("a", "test:///default".into());
        let first = libvirt.connection().await.unwrap();
        let same = libvirt.connection().await.unwrap();
        assert!(std::ptr::eq(first.uri(), same.uri()), "one connection serves all calls");
        let (hold, wait) = mpsc::channel::<()>();
        let error = libvirt
            .call("read the state", SOON, move |_| {
                let _ = wait.recv();
                Ok(())
            })
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "host a: read the state did not end within 0.05 s");
        let next = libvirt.connection().await.unwrap();
        assert!(!std::ptr::eq(first.uri(), next.uri()), "the one that hung is not used again");
        let name = libvirt.call("find it", ANSWER, |c| Ok(c.domain("test")?.name().to_owned())).await;
        assert_eq!(name.unwrap(), "test");
        drop(hold);
    }
}
