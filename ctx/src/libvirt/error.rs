//! What libvirt said, and of which domain on which connection.

use std::fmt;

/// The kinds of failure that callers tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No such domain on this host (any more).
    NoDomain,
    /// The domain has no such device.
    NoDevice,
    /// The domain has no metadata of that namespace.
    NoMetadata,
    /// The domain has no job, and none that ended, to tell statistics of.
    NoJob,
    /// This driver cannot do that, or not in this combination.
    Unsupported,
    /// Not in the state that the domain is in, for example not running.
    InvalidState,
    /// The call was aborted, for example a migration by `abort_job`.
    Aborted,
    /// libvirt waited for too long, mostly for another job of the same domain.
    Timeout,
    /// The connection could not be made or is gone.
    Connection,
    /// Anything else; the message says what.
    Other,
}

/// A libvirt call that failed.
#[derive(Debug, Clone)]
pub struct Error {
    pub(super) kind: ErrorKind,
    pub(super) action: &'static str,
    pub(super) uri: String,
    pub(super) domain: Option<String>,
    pub(super) code: Option<u32>,
    pub(super) message: String,
}

impl Error {
    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was tried, as "attach a device".
    pub fn action(&self) -> &'static str {
        self.action
    }

    /// The connection's URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// The name of the domain, when the call was about one.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// libvirt's error number (`virErrorNumber`), when the error is libvirt's.
    pub fn code(&self) -> Option<u32> {
        self.code
    }

    /// libvirt's own words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it, where something general can be said.
    pub fn advice(&self) -> Option<&'static str> {
        match self.kind {
            ErrorKind::Connection => {
                Some("check that libvirtd (or virtqemud) runs there and that the URI is right")
            }
            ErrorKind::NoDomain => Some("list what is there with `virsh list --all`"),
            ErrorKind::NoJob => Some(
                "libvirt keeps the statistics of a job that ended until they are read once: read them \
                 right after the job, on the destination of a migration",
            ),
            ErrorKind::Timeout => {
                Some("another job of this domain is still running: try again when it has ended")
            }
            _ => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(domain) = &self.domain {
            write!(f, "domain `{domain}` on ")?;
        }
        write!(f, "{}: cannot {}: {}", self.uri, self.action, self.message)?;
        if let Some(code) = self.code {
            write!(f, " (libvirt error {code})")?;
        }
        if let Some(advice) = self.advice() {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Error numbers of libvirt (`virterror.h`) that mean something to callers.
pub(super) fn kind_of(code: u32) -> ErrorKind {
    use virt::sys;
    match code {
        sys::VIR_ERR_NO_DOMAIN => ErrorKind::NoDomain,
        sys::VIR_ERR_DEVICE_MISSING => ErrorKind::NoDevice,
        sys::VIR_ERR_NO_DOMAIN_METADATA => ErrorKind::NoMetadata,
        sys::VIR_ERR_NO_SUPPORT
        | sys::VIR_ERR_ARGUMENT_UNSUPPORTED
        | sys::VIR_ERR_OPERATION_UNSUPPORTED
        | sys::VIR_ERR_CONFIG_UNSUPPORTED => ErrorKind::Unsupported,
        sys::VIR_ERR_OPERATION_INVALID => ErrorKind::InvalidState,
        sys::VIR_ERR_OPERATION_ABORTED => ErrorKind::Aborted,
        sys::VIR_ERR_OPERATION_TIMEOUT => ErrorKind::Timeout,
        sys::VIR_ERR_NO_CONNECT
        | sys::VIR_ERR_RPC
        | sys::VIR_ERR_SYSTEM_ERROR
        | sys::VIR_ERR_AUTH_FAILED
        | sys::VIR_ERR_INVALID_CONN => ErrorKind::Connection,
        _ => ErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_action_domain_host_message_and_code() {
        let error = Error {
            kind: ErrorKind::NoDomain,
            action: "read the state",
            uri: "qemu+tcp://198.18.0.11/system".into(),
            domain: Some("g1".into()),
            code: Some(42),
            message: "Domain not found".into(),
        };
        assert_eq!(
            error.to_string(),
            "domain `g1` on qemu+tcp://198.18.0.11/system: cannot read the state: Domain not found \
             (libvirt error 42); list what is there with `virsh list --all`"
        );
    }
}
