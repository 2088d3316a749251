//! One domain on one host.

use std::ffi::CString;

use virt::error::Error as VirtError;
use virt::sys;

use super::connection::{Connection, at, refused, with_nul};
use super::error::{Error, ErrorKind};
use super::event::DomainId;
use super::ffi;
use super::job::{JobKind, JobStats};
use super::migrate::MigrateOptions;
use super::target::taken;

/// A domain. Clones share libvirt's handle. The domain itself may be gone at any time; calls then
/// fail with [`ErrorKind::NoDomain`].
#[derive(Clone)]
pub struct Domain {
    connection: Connection,
    handle: virt::domain::Domain,
    id: DomainId,
}

/// What a device change applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The running domain.
    Live,
    /// Its persistent definition.
    Config,
    /// Both.
    LiveAndConfig,
}

impl Scope {
    fn bits(self) -> u32 {
        match self {
            Self::Live => sys::VIR_DOMAIN_AFFECT_LIVE,
            Self::Config => sys::VIR_DOMAIN_AFFECT_CONFIG,
            Self::LiveAndConfig => sys::VIR_DOMAIN_AFFECT_LIVE | sys::VIR_DOMAIN_AFFECT_CONFIG,
        }
    }
}

/// How a domain stands (`virDomainState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Its CPUs run.
    Running(Running),
    /// Its CPUs stand still for a migration, to or from here.
    Migrating,
    /// Its CPUs stand still, for another reason (`virDomainPausedReason`).
    Paused(u32),
    /// It is shutting down.
    Shutdown,
    /// There is no process.
    ShutOff,
    /// It crashed.
    Crashed,
    /// Suspended by its own power management.
    PmSuspended,
    /// Another state: blocked (Xen), none.
    Other(u32),
}

/// Why a domain runs (`virDomainRunningReason`), as far as it tells of migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Running {
    /// It has migrated here.
    Migrated,
    /// It was to migrate away, which was cancelled or failed.
    MigrationCancelled,
    /// It runs here while memory is still fetched from the source.
    Postcopy,
    /// Another reason.
    Other(u32),
}

impl Domain {
    pub(super) fn new(connection: Connection, domain: virt::domain::Domain) -> Result<Self, Error> {
        let id = (|| Ok(DomainId { name: domain.name()?, uuid: domain.uuid_string()? }))()
            .map_err(|error: VirtError| at(connection.uri(), None, "read the name", &error))?;
        Ok(Self { connection, handle: domain, id })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.id.name
    }

    /// Its UUID.
    pub fn uuid(&self) -> &str {
        &self.id.uuid
    }

    /// Both.
    pub fn id(&self) -> &DomainId {
        &self.id
    }

    /// The connection it is from.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Its XML as it is now: of the running domain if it runs.
    ///
    /// # Errors
    /// When it is gone or the connection is lost.
    pub fn xml(&self) -> Result<String, Error> {
        self.handle.xml_desc(0).map_err(self.fail("read the XML"))
    }

    /// Its XML in the form that can be given to a migration (`VIR_DOMAIN_XML_MIGRATABLE`).
    ///
    /// # Errors
    /// When it is gone or the connection is lost.
    pub fn migratable_xml(&self) -> Result<String, Error> {
        self.handle.xml_desc(sys::VIR_DOMAIN_XML_MIGRATABLE).map_err(self.fail("read the migratable XML"))
    }

    /// How it stands.
    ///
    /// # Errors
    /// When it is gone or the connection is lost.
    pub fn state(&self) -> Result<State, Error> {
        let (state, reason) = ffi::state(&self.handle).map_err(self.fail("read the state"))?;
        Ok(match state {
            sys::VIR_DOMAIN_RUNNING => State::Running(match reason {
                sys::VIR_DOMAIN_RUNNING_MIGRATED => Running::Migrated,
                sys::VIR_DOMAIN_RUNNING_MIGRATION_CANCELED => Running::MigrationCancelled,
                sys::VIR_DOMAIN_RUNNING_POSTCOPY | sys::VIR_DOMAIN_RUNNING_POSTCOPY_FAILED => {
                    Running::Postcopy
                }
                other => Running::Other(other),
            }),
            sys::VIR_DOMAIN_PAUSED => match reason {
                sys::VIR_DOMAIN_PAUSED_MIGRATION
                | sys::VIR_DOMAIN_PAUSED_POSTCOPY
                | sys::VIR_DOMAIN_PAUSED_POSTCOPY_FAILED => State::Migrating,
                other => State::Paused(other),
            },
            sys::VIR_DOMAIN_SHUTDOWN => State::Shutdown,
            sys::VIR_DOMAIN_SHUTOFF => State::ShutOff,
            sys::VIR_DOMAIN_CRASHED => State::Crashed,
            sys::VIR_DOMAIN_PMSUSPENDED => State::PmSuspended,
            other => State::Other(other),
        })
    }

    /// Attaches a device.
    ///
    /// # Errors
    /// With libvirt's message; and when a disk's target is taken, whatever this version of libvirt does then.
    pub fn attach_device(&self, xml: &str, scope: Scope) -> Result<(), Error> {
        const ACTION: &str = "attach a device";
        self.text(ACTION, xml)?;
        if scope != Scope::Config
            && let Some(target) = taken(&self.xml()?, xml)
        {
            let message = format!("target {target} is taken: detach what is there first");
            return Err(refused(self.connection.uri(), Some(self.name()), ACTION, message));
        }
        self.handle.attach_device_flags(xml, scope.bits()).map_err(self.fail(ACTION))
    }

    /// Asks for a device to be detached. For a running domain that is only the request: the guest
    /// has let go when [`super::EventKind::DeviceRemoved`] arrives.
    ///
    /// # Errors
    /// [`ErrorKind::NoDevice`] when there is no such device.
    pub fn detach_device(&self, xml: &str, scope: Scope) -> Result<(), Error> {
        const ACTION: &str = "detach a device";
        self.text(ACTION, xml)?;
        self.handle.detach_device_flags(xml, scope.bits()).map(drop).map_err(self.fail(ACTION))
    }

    /// The same, by the device's alias.
    ///
    /// # Errors
    /// [`ErrorKind::NoDevice`] when there is no such device.
    pub fn detach_device_by_alias(&self, alias: &str, scope: Scope) -> Result<(), Error> {
        const ACTION: &str = "detach a device";
        let alias =
            CString::new(alias).map_err(|_| with_nul(self.connection.uri(), Some(self.name()), ACTION))?;
        ffi::detach_alias(&self.handle, &alias, scope.bits()).map_err(self.fail(ACTION))
    }

    /// Changes a device, mostly the medium of a CD-ROM. With `force`, a tray that the guest has
    /// locked is opened all the same.
    ///
    /// # Errors
    /// With libvirt's message, for example when the guest has locked the tray.
    pub fn update_device(&self, xml: &str, scope: Scope, force: bool) -> Result<(), Error> {
        const ACTION: &str = "update a device";
        self.text(ACTION, xml)?;
        let force = if force { sys::VIR_DOMAIN_DEVICE_MODIFY_FORCE } else { 0 };
        self.handle.update_device_flags(xml, scope.bits() | force).map(drop).map_err(self.fail(ACTION))
    }

    /// The metadata element of namespace `uri` in the domain's XML as it is now.
    ///
    /// # Errors
    /// [`ErrorKind::NoMetadata`] when it has none.
    pub fn metadata(&self, uri: &str) -> Result<String, Error> {
        const ACTION: &str = "read the metadata";
        self.text(ACTION, uri)?;
        self.handle
            .metadata(METADATA_ELEMENT, Some(uri), sys::VIR_DOMAIN_AFFECT_CURRENT)
            .map_err(self.fail(ACTION))
    }

    /// Sets the metadata element of namespace `uri`, with `prefix` in the XML.
    ///
    /// # Errors
    /// With libvirt's message.
    pub fn set_metadata(&self, xml: &str, prefix: &str, uri: &str, scope: Scope) -> Result<(), Error> {
        const ACTION: &str = "set the metadata";
        [xml, prefix, uri].into_iter().try_for_each(|text| self.text(ACTION, text))?;
        self.handle
            .set_metadata(METADATA_ELEMENT, Some(xml), Some(prefix), Some(uri), scope.bits())
            .map(drop)
            .map_err(self.fail(ACTION))
    }

    /// The statistics of the job that runs now.
    ///
    /// # Errors
    /// [`ErrorKind::NoJob`] when there is none.
    pub fn job_stats(&self) -> Result<JobStats, Error> {
        self.read_job_stats(0, "there is no running job")
    }

    /// The statistics of the last job that ended. After a migration ask the destination, or take
    /// [`super::EventKind::JobCompleted`] on the source. libvirt forgets them when they are read,
    /// unless `keep`.
    ///
    /// # Errors
    /// [`ErrorKind::NoJob`] when there is none.
    pub fn completed_job_stats(&self, keep: bool) -> Result<JobStats, Error> {
        let keep = if keep { sys::VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED } else { 0 };
        self.read_job_stats(sys::VIR_DOMAIN_JOB_STATS_COMPLETED | keep, "there is no ended job to tell of")
    }

    fn read_job_stats(&self, flags: u32, none: &str) -> Result<JobStats, Error> {
        const ACTION: &str = "read the job statistics";
        let stats = ffi::job_stats(&self.handle, flags).map_err(self.fail(ACTION))?;
        if stats.kind == JobKind::None {
            return Err(Error {
                kind: ErrorKind::NoJob,
                action: ACTION,
                uri: self.connection.uri().to_owned(),
                domain: Some(self.name().to_owned()),
                code: None,
                message: none.to_owned(),
            });
        }
        Ok(stats)
    }

    /// Aborts the running job, mostly an outgoing migration.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] when there is none.
    pub fn abort_job(&self) -> Result<(), Error> {
        ffi::abort_job(&self.handle).map_err(self.fail("abort the job"))
    }

    /// The longest that the guest may stand still at the end of a migration, in milliseconds.
    ///
    /// # Errors
    /// When the domain does not run.
    pub fn max_downtime_ms(&self) -> Result<u64, Error> {
        ffi::max_downtime(&self.handle).map_err(self.fail("read the maximum downtime"))
    }

    /// Sets the longest that the guest may stand still at the end of a migration; also while one
    /// is under way.
    ///
    /// # Errors
    /// When the domain does not run.
    pub fn set_max_downtime_ms(&self, downtime: u64) -> Result<(), Error> {
        self.handle
            .migrate_set_max_downtime(downtime, 0)
            .map(drop)
            .map_err(self.fail("set the maximum downtime"))
    }

    /// Migrates to the host of `destination`, driven by this process (`virDomainMigrate3`). The
    /// domain there is returned when it runs there.
    ///
    /// # Errors
    /// With libvirt's message; the domain then still runs here, unless the message says otherwise.
    pub fn migrate(&self, destination: &Connection, options: &MigrateOptions) -> Result<Self, Error> {
        const ACTION: &str = "migrate";
        self.migratable(ACTION, options)?;
        let domain = self
            .handle
            .migrate3(destination.connect(), options.parameters(), options.bits())
            .map_err(self.fail(ACTION))?;
        Self::new(destination.clone(), domain)
    }

    /// Migrates to the libvirt at `uri`, as this domain's own libvirt reaches it, driven by that
    /// one (`virDomainMigrateToURI3`, peer to peer).
    ///
    /// # Errors
    /// With libvirt's message; the domain then still runs here, unless the message says otherwise.
    pub fn migrate_to_uri(&self, uri: &str, options: &MigrateOptions) -> Result<(), Error> {
        const ACTION: &str = "migrate";
        self.text(ACTION, uri)?;
        self.migratable(ACTION, options)?;
        self.handle
            .migrate_to_uri3(Some(uri), options.parameters(), options.bits() | sys::VIR_MIGRATE_PEER2PEER)
            .map(drop)
            .map_err(self.fail(ACTION))
    }

    fn migratable(&self, action: &'static str, options: &MigrateOptions) -> Result<(), Error> {
        if options.text_with_nul() {
            return Err(with_nul(self.connection.uri(), Some(self.name()), action));
        }
        Ok(())
    }

    /// Stops it at once, like pulling the plug.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] when it does not run.
    pub fn destroy(&self) -> Result<(), Error> {
        self.handle.destroy().map(drop).map_err(self.fail("destroy it"))
    }

    /// Stops its CPUs.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] when it does not run.
    pub fn suspend(&self) -> Result<(), Error> {
        self.handle.suspend().map(drop).map_err(self.fail("pause the CPUs"))
    }

    /// Lets its CPUs run again.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidState`] when they do not stand still.
    pub fn resume(&self) -> Result<(), Error> {
        self.handle.resume().map(drop).map_err(self.fail("resume the CPUs"))
    }

    /// Sends a QMP command, a JSON object, to QEMU and gives its answer.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] on another hypervisor.
    pub fn qemu_monitor_command(&self, command: &str) -> Result<String, Error> {
        const ACTION: &str = "send a command to QEMU";
        self.text(ACTION, command)?;
        self.handle.qemu_monitor_command(command, 0).map_err(self.fail(ACTION))
    }

    fn text(&self, action: &'static str, text: &str) -> Result<(), Error> {
        if text.contains('\0') {
            return Err(with_nul(self.connection.uri(), Some(self.name()), action));
        }
        Ok(())
    }

    fn fail(&self, action: &'static str) -> impl Fn(VirtError) -> Error {
        move |error| at(self.connection.uri(), Some(self.name()), action, &error)
    }
}

/// `VIR_DOMAIN_METADATA_ELEMENT`, signed in libvirt's calls.
const METADATA_ELEMENT: i32 = 2;

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Domain")
            .field("name", &self.name())
            .field("uri", &self.connection.uri())
            .finish_non_exhaustive()
    }
}
