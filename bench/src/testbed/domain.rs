//! A nested guest, whatever hypervisor runs it.
//!
//! It boots from a read-only image that both hosts hold under one path, with its writes in
//! memory, so a migration copies memory alone.

use super::address::Member;
use super::hypervisor::Slot;
use crate::scenario::GuestType;

/// A nested guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Name of the domain, also the host name inside.
    pub name: String,
    /// Its place in the address plan.
    pub member: Member,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// How the hypervisor runs it.
    pub kind: GuestType,
    /// An empty drive for its context data, when the medium is what changes.
    pub drive: Option<Slot>,
    /// Whether it shall be able to tell the host what became of its context data, where that takes a device of its own.
    pub acknowledges: bool,
}

/// Where a host keeps what its guests boot from.
pub const GUEST_FOLDER: &str = "/usr/lib/bench/guest";

/// Path of a disk that QEMU gave the host, by serial number.
pub fn disk_path(serial: &str) -> String {
    format!("/dev/disk/by-id/virtio-{serial}")
}

impl Guest {
    /// The XML of its empty drive.
    pub(super) fn drive_xml(&self) -> String {
        self.drive.map(|slot| format!("    {}\n", slot.xml(None))).unwrap_or_default()
    }

    /// The domain's UUID, from its name: the same in every run.
    pub fn uuid(&self) -> String {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(format!("bench guest {}", self.name).as_bytes());
        let hex: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
        // RFC 9562: version 8 (vendor specific), variant 10.
        format!("{}-{}-8{}-a{}-{}", &hex[0..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::address::Role;

    #[test]
    fn the_uuid_is_a_uuid() {
        let member = Member { role: Role::Guest, index: 0 };
        let guest = |name: &str| Guest {
            name: name.into(),
            member,
            memory_mib: 256,
            vcpus: 1,
            kind: GuestType::Hvm,
            drive: None,
            acknowledges: false,
        };
        let uuid = guest("guest").uuid();
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_ne!(uuid, guest("other").uuid());
    }
}
