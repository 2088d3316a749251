//! The libvirt domain of a nested guest, as a function of what it shall be.
//!
//! The guest boots from a read-only image that both hosts hold under one path, with its writes in
//! memory, so a migration copies memory alone. It always has a virtio-scsi controller, with or
//! without a context device behind it, so that the arms of a comparison differ in the device only.

use super::address::{Member, Network};

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
}

/// Where a host keeps what its guests boot from.
pub const GUEST_FOLDER: &str = "/usr/lib/bench/guest";

/// Path of a disk that QEMU gave the host, by serial number.
pub fn disk_path(serial: &str) -> String {
    format!("/dev/disk/by-id/virtio-{serial}")
}

impl Guest {
    /// The domain's UUID, from its name: the same in every run.
    pub fn uuid(&self) -> String {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(format!("bench guest {}", self.name).as_bytes());
        let hex: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
        // RFC 9562: version 8 (vendor specific), variant 10.
        format!("{}-{}-8{}-a{}-{}", &hex[0..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..32])
    }

    /// The domain's XML for libvirt's QEMU driver.
    pub fn kvm_xml(&self, append: &str) -> String {
        let disk = |target: &str, serial: &str| {
            format!(
                "    <disk type='block' device='disk'>\n      \
                 <driver name='qemu' type='raw' cache='unsafe' io='threads'/>\n      \
                 <source dev='{}'/>\n      <target dev='{target}' bus='virtio'/>\n      \
                 <serial>{serial}</serial>\n      <readonly/>\n    </disk>\n",
                disk_path(&format!("guest-{serial}")),
            )
        };
        let interface = |network: Network| {
            format!(
                "    <interface type='bridge'>\n      <mac address='{}'/>\n      <source bridge='{}'/>\n      \
                 <model type='virtio'/>\n    </interface>\n",
                self.member.mac(network),
                network.bridge(),
            )
        };
        let interfaces: String = self.member.role.networks().iter().map(|&n| interface(n)).collect();
        format!(
            "<domain type='kvm'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  \
             <memory unit='MiB'>{memory}</memory>\n  <vcpu>{vcpus}</vcpu>\n  \
             <os>\n    <type arch='x86_64' machine='q35'>hvm</type>\n    \
             <kernel>{GUEST_FOLDER}/vmlinuz</kernel>\n    <initrd>{GUEST_FOLDER}/initrd</initrd>\n    \
             <cmdline>{append}</cmdline>\n  </os>\n  \
             <features><acpi/><apic/></features>\n  \
             <cpu mode='host-passthrough' migratable='on'/>\n  \
             <clock offset='utc'/>\n  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>destroy</on_reboot>\n  \
             <on_crash>destroy</on_crash>\n  <devices>\n    \
             <emulator>/usr/bin/qemu-system-x86_64</emulator>\n{root}{seed}    \
             <controller type='scsi' index='0' model='virtio-scsi'/>\n    \
             <controller type='usb' model='none'/>\n{interfaces}    \
             <serial type='file'><source path='/var/log/{name}.console.log'/><target port='0'/></serial>\n    \
             <console type='file'><source path='/var/log/{name}.console.log'/><target type='serial' port='0'/></console>\n    \
             <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\n    \
             <memballoon model='none'/>\n    <video><model type='none'/></video>\n  </devices>\n</domain>\n",
            name = self.name,
            uuid = self.uuid(),
            memory = self.memory_mib,
            vcpus = self.vcpus,
            root = disk("vda", "root"),
            seed = disk("vdb", "seed"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::address::Role;

    fn guest() -> Guest {
        Guest {
            name: "guest".into(),
            member: Member { role: Role::Guest, index: 0 },
            memory_mib: 256,
            vcpus: 1,
        }
    }

    #[test]
    fn the_domain_is_well_formed_and_has_no_context_device_of_its_own() {
        let xml = guest().kvm_xml("console=ttyS0 quiet");
        let document = roxmltree::Document::parse(&xml).unwrap();
        let disks: Vec<_> = document.descendants().filter(|n| n.has_tag_name("disk")).collect();
        assert_eq!(disks.len(), 2);
        assert!(disks.iter().all(|d| d.children().any(|c| c.has_tag_name("readonly"))));
        assert!(document.descendants().any(|n| n.attribute("model") == Some("virtio-scsi")));
    }

    #[test]
    fn the_uuid_is_a_uuid() {
        let uuid = guest().uuid();
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12]);
        assert_ne!(uuid, Guest { name: "other".into(), ..guest() }.uuid());
    }
}
