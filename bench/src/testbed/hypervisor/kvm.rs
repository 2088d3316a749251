//! KVM: domains of libvirt's QEMU driver.
//!
//! A domain always has a virtio-scsi controller, with or without a context device behind it, so
//! that the arms of a comparison differ in the device only.

use ctx_format::ack::PORT;

use super::{Host, MigrationControl, Slot, Slots, Stop};
use crate::scenario::Migration;
use crate::testbed::address::Network;
use crate::testbed::domain::{GUEST_FOLDER, Guest, disk_path};

pub(super) const HOST: Host = Host {
    recipe: "host-kvm",
    driver: "qemu",
    units: &["libvirtd.socket", "libvirtd-tcp.socket"],
    // `max` shows the emulated SVM with nested paging to the host's own KVM; 5-level paging (LA57) only
    // slows the emulator down.
    emulated_cpu: "max,-la57",
    console: "ttyS0",
    memory_mib: 1024,
    hook: None,
    refusals: None,
    packages: &["libvirt-daemon", "qemu-system-x86"],
};

pub(super) const SLOTS: Slots =
    Slots { service: drive("sda"), infrastructure: drive("sdb"), in_guest: &["sr*"] };

const fn drive(target: &'static str) -> Slot {
    Slot { device: "cdrom", driver: "qemu", bus: "scsi", target }
}

pub(super) fn migration(asked: &Migration) -> MigrationControl {
    let limit = asked.max_downtime.duration().as_millis();
    MigrationControl {
        max_downtime_ms: Some(u64::try_from(limit).unwrap_or(u64::MAX)),
        auto_converge: asked.auto_converge,
        accounts: true,
        stop: Stop::AbortJob,
    }
}

/// The port on which the guest acknowledges. The socket's path is libvirt's own: on each host another.
fn channel(guest: &Guest) -> String {
    if !guest.acknowledges {
        return String::new();
    }
    format!("    <channel type='unix'><target type='virtio' name='{PORT}'/></channel>\n")
}

/// The domain's XML for libvirt's QEMU driver.
pub(super) fn domain_xml(guest: &Guest, append: &str) -> String {
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
            guest.member.mac(network),
            network.bridge(),
        )
    };
    let interfaces: String = guest.member.role.networks().iter().map(|&n| interface(n)).collect();
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
         <emulator>/usr/bin/qemu-system-x86_64</emulator>\n{root}{seed}{drive}    \
         <controller type='scsi' index='0' model='virtio-scsi'/>\n    \
         <controller type='usb' model='none'/>\n{interfaces}{channel}    \
         <serial type='file'><source path='/var/log/{name}.console.log'/><target port='0'/></serial>\n    \
         <console type='file'><source path='/var/log/{name}.console.log'/><target type='serial' port='0'/></console>\n    \
         <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\n    \
         <memballoon model='none'/>\n    <video><model type='none'/></video>\n  </devices>\n</domain>\n",
        name = guest.name,
        uuid = guest.uuid(),
        memory = guest.memory_mib,
        vcpus = guest.vcpus,
        root = disk("vda", "root"),
        seed = disk("vdb", "seed"),
        drive = guest.drive_xml(),
        channel = channel(guest),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::GuestType;
    use crate::testbed::address::{Member, Role};

    fn guest(acknowledges: bool) -> Guest {
        let member = Member { role: Role::Guest, index: 0 };
        let (name, kind) = ("guest".into(), GuestType::Hvm);
        Guest { name, member, memory_mib: 256, vcpus: 1, kind, drive: None, acknowledges }
    }

    #[test]
    fn the_domain_is_well_formed_and_has_no_context_device_of_its_own() {
        let xml = domain_xml(&guest(false), "console=ttyS0 quiet");
        let document = roxmltree::Document::parse(&xml).unwrap();
        let disks: Vec<_> = document.descendants().filter(|n| n.has_tag_name("disk")).collect();
        assert_eq!(disks.len(), 2);
        assert!(disks.iter().all(|d| d.children().any(|c| c.has_tag_name("readonly"))));
        assert!(document.descendants().any(|n| n.attribute("model") == Some("virtio-scsi")));
        assert!(!document.descendants().any(|n| n.has_tag_name("channel")));
    }

    #[test]
    fn a_guest_that_acknowledges_has_a_port_for_it() {
        let xml = domain_xml(&guest(true), "console=ttyS0 quiet");
        let document = roxmltree::Document::parse(&xml).unwrap();
        let channel = document.descendants().find(|n| n.has_tag_name("channel")).unwrap();
        let target = channel.children().find(|n| n.has_tag_name("target")).unwrap();
        assert_eq!(target.attribute("name"), Some(PORT));
        // As libvirt fills it in when the domain starts: what the recontextualizer finds it by.
        let source = "<channel type='unix'><source mode='bind' path='/run/ack'/>";
        let running = xml.replace("<channel type='unix'>", source);
        let found = ctx::recontext::ack::Channel::of(&running);
        assert_eq!(found, Some(ctx::recontext::ack::Channel::VirtioSerial("/run/ack".into())));
    }
}
