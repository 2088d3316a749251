//! A connection to the libvirt of one host.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use virt::connect::Connect;
use virt::error::Error as VirtError;
use virt::sys;

use super::domain::Domain;
use super::error::{Error, ErrorKind, kind_of};
use super::event::Event;
use super::ffi;

/// How a dead peer is noticed: after `count` messages without an answer, `interval_s` seconds
/// apart. Only connections to a daemon have it; for others it is ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// Seconds between two messages.
    pub interval_s: i32,
    /// Messages without an answer until the connection counts as lost.
    pub count: u32,
}

impl Default for KeepAlive {
    /// Lost after 15 to 20 seconds: long enough for a host that is busy with a migration.
    fn default() -> Self {
        Self { interval_s: 5, count: 3 }
    }
}

/// A connection to libvirt. Clones share it; it is closed when the last of them and of the domains
/// from it is dropped.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    uri: String,
    // Before `connect`, so that the callbacks are taken back while the connection is open.
    registration: Mutex<Option<ffi::Registration>>,
    connect: Connect,
    hub: Arc<ffi::Hub>,
}

impl Connection {
    /// Connects with [`KeepAlive::default`].
    ///
    /// # Errors
    /// [`ErrorKind::Connection`] mostly, with libvirt's message.
    pub fn open(uri: &str) -> Result<Self, Error> {
        Self::open_with(uri, KeepAlive::default())
    }

    /// Connects.
    ///
    /// # Errors
    /// [`ErrorKind::Connection`] mostly, with libvirt's message.
    pub fn open_with(uri: &str, keep_alive: KeepAlive) -> Result<Self, Error> {
        let fail = |error: VirtError| at(uri, None, "connect", &error);
        if uri.contains('\0') {
            return Err(with_nul(uri, None, "connect"));
        }
        ffi::start_event_loop().map_err(fail)?;
        let connect = Connect::open(Some(uri)).map_err(fail)?;
        if let Err(error) = connect.set_keep_alive(keep_alive.interval_s, keep_alive.count) {
            // Drivers inside the process have no peer that could die.
            if kind_of(error.code().to_raw()) != ErrorKind::Unsupported {
                return Err(at(uri, None, "set keepalive", &error));
            }
        }
        let hub = ffi::Hub::new(uri);
        let shared = Shared { uri: uri.to_owned(), registration: Mutex::new(None), connect, hub };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The URI that it was opened with.
    pub fn uri(&self) -> &str {
        &self.shared.uri
    }

    /// Events of all domains from now on, and the loss of the connection. Every subscriber gets
    /// every event; dropping the receiver ends the subscription.
    ///
    /// # Errors
    /// When the driver cannot tell of lifecycle events.
    pub fn subscribe(&self) -> Result<UnboundedReceiver<Event>, Error> {
        let (sender, receiver) = unbounded_channel();
        self.shared.hub.add(sender);
        let mut registration = self.shared.registration.lock().unwrap_or_else(PoisonError::into_inner);
        if registration.is_none() {
            let registered = ffi::register(&self.shared.connect, &self.shared.hub)
                .map_err(|error| self.fail("register for events", &error))?;
            *registration = Some(registered);
        }
        Ok(receiver)
    }

    /// Whether the connection can still be used.
    pub fn is_alive(&self) -> bool {
        self.shared.connect.is_alive().unwrap_or(false)
    }

    /// The host's own name for itself.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn hostname(&self) -> Result<String, Error> {
        self.shared.connect.hostname().map_err(|error| self.fail("read the host name", &error))
    }

    /// The driver, as `QEMU` or `Xen`.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn driver(&self) -> Result<String, Error> {
        self.shared.connect.driver_type().map_err(|error| self.fail("read the driver", &error))
    }

    /// The version of libvirt there, as `(major, minor, release)`.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn libvirt_version(&self) -> Result<(u32, u32, u32), Error> {
        let version =
            self.shared.connect.lib_version().map_err(|error| self.fail("read the version", &error))?;
        Ok((version / 1_000_000, version / 1000 % 1000, version % 1000))
    }

    /// The version of the hypervisor there, as `(major, minor, release)`.
    ///
    /// # Errors
    /// When the connection is lost or the driver has no hypervisor.
    pub fn hypervisor_version(&self) -> Result<(u32, u32, u32), Error> {
        let version = self
            .shared
            .connect
            .hyp_version()
            .map_err(|error| self.fail("read the hypervisor's version", &error))?;
        Ok((version / 1_000_000, version / 1000 % 1000, version % 1000))
    }

    /// The domains that have a process or its like: running, paused, waiting for a migration.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn running_domains(&self) -> Result<Vec<Domain>, Error> {
        self.shared
            .connect
            .list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            .map_err(|error| self.fail("list the domains", &error))?
            .into_iter()
            .map(|domain| Domain::new(self.clone(), domain))
            .collect()
    }

    /// The domain of that name, running or only defined.
    ///
    /// # Errors
    /// [`ErrorKind::NoDomain`] when there is none.
    pub fn domain(&self, name: &str) -> Result<Domain, Error> {
        const ACTION: &str = "find it";
        if name.contains('\0') {
            return Err(with_nul(self.uri(), None, ACTION));
        }
        let domain = self
            .shared
            .connect
            .lookup_domain_by_name(name)
            .map_err(|error| at(self.uri(), Some(name), ACTION, &error))?;
        Domain::new(self.clone(), domain)
    }

    /// The domain of that UUID.
    ///
    /// # Errors
    /// [`ErrorKind::NoDomain`] when there is none.
    pub fn domain_by_uuid(&self, uuid: &str) -> Result<Domain, Error> {
        const ACTION: &str = "find it";
        if uuid.contains('\0') {
            return Err(with_nul(self.uri(), None, ACTION));
        }
        let domain = self
            .shared
            .connect
            .lookup_domain_by_uuid_string(uuid)
            .map_err(|error| at(self.uri(), Some(uuid), ACTION, &error))?;
        Domain::new(self.clone(), domain)
    }

    /// Starts a transient domain: it is gone when it stops.
    ///
    /// # Errors
    /// With libvirt's message, for example on XML that it does not take.
    pub fn create(&self, xml: &str) -> Result<Domain, Error> {
        self.create_with(xml, 0)
    }

    /// Starts a transient domain whose CPUs have not run yet, until [`Domain::resume`]: not even its firmware
    /// touches its devices.
    ///
    /// # Errors
    /// As of [`Connection::create`].
    pub fn create_paused(&self, xml: &str) -> Result<Domain, Error> {
        self.create_with(xml, sys::VIR_DOMAIN_START_PAUSED)
    }

    fn create_with(&self, xml: &str, flags: sys::virDomainCreateFlags) -> Result<Domain, Error> {
        const ACTION: &str = "create a domain";
        if xml.contains('\0') {
            return Err(with_nul(self.uri(), None, ACTION));
        }
        let domain =
            self.shared.connect.create_domain_xml(xml, flags).map_err(|error| self.fail(ACTION, &error))?;
        Domain::new(self.clone(), domain)
    }

    pub(super) fn connect(&self) -> &Connect {
        &self.shared.connect
    }

    fn fail(&self, action: &'static str, error: &VirtError) -> Error {
        at(self.uri(), None, action, error)
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connection").field(&self.uri()).finish()
    }
}

pub(super) fn at(uri: &str, domain: Option<&str>, action: &'static str, error: &VirtError) -> Error {
    let code = error.code().to_raw();
    Error {
        kind: kind_of(code),
        action,
        uri: uri.to_owned(),
        domain: domain.map(str::to_owned),
        code: Some(code),
        message: error.message().to_owned(),
    }
}

/// `virt` panics on text that C cannot hold; so it is refused before.
pub(super) fn with_nul(uri: &str, domain: Option<&str>, action: &'static str) -> Error {
    let uri = uri.replace('\0', "\\0");
    refused(&uri, domain, action, "the text given holds a NUL character".into())
}

/// An error of our own, before libvirt was asked.
pub(super) fn refused(uri: &str, domain: Option<&str>, action: &'static str, message: String) -> Error {
    Error {
        kind: ErrorKind::Other,
        action,
        uri: uri.to_owned(),
        domain: domain.map(str::to_owned),
        code: None,
        message,
    }
}
