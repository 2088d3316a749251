//! Xen: domains of libvirt's libxl driver, and hosts whose kernel is Xen's first domain.

use super::{Host, MigrationControl, Slot, Slots, Stop};
use crate::doctor::Accelerator;
use crate::image::seed::Seed;
use crate::scenario::{GuestType, Strategy};
use crate::testbed::address::Network;
use crate::testbed::domain::{GUEST_FOLDER, Guest, disk_path};

pub(super) const HOST: Host = Host {
    recipe: "host-xen",
    driver: "xen",
    units: &["xen.service", "libvirtd.socket", "libvirtd-tcp.socket"],
    // What Xen and its guests run with on the emulated processor. With AVX and xsave (`max`) programs in
    // dom0 die of segmentation faults; with rdtscp a PVH guest never gets past that instruction.
    emulated_cpu: "qemu64,+svm,+npt,-rdtscp,+sse4.1,+sse4.2,+ssse3,+popcnt,+cx16,+lahf_lm,+nx,+pdpe1gb",
    console: "hvc0",
    memory_mib: 1024 + XEN_MIB,
    hook: Some("/etc/libvirt/hooks/libxl.d/50-ctx"),
    refusals: Some(
        "grep -v 'No such process\\|Non-existant\\|[Uu]nable to destroy\\|Destruction' /var/log/libvirt/libxl/libxl-driver.log | tail -n 3",
    ),
    packages: &["libvirt-daemon-driver-xen", "xen-hypervisor-4.20-amd64", "qemu-system-xen"],
};

/// Xen's own memory, and what it keeps for a domain besides its memory, in MiB.
const XEN_MIB: u32 = 128;

/// libxl takes no limits and gives no account, and `virDomainAbortJob` is not in it; the program that
/// sends a domain is a child of libvirtd's, and when it ends, the domain goes on where it is.
pub(super) const MIGRATION: MigrationControl = MigrationControl {
    max_downtime_ms: None,
    auto_converge: false,
    accounts: false,
    stop: Stop::Command("pkill -KILL -x libxl-save-help"),
};

/// Xen's command line. It is let to reboot when it panics, which ends its machine, so that the bench hears of it at
/// once. dom0 gets all memory but the guest's and Xen's own, and never gives any back.
pub(super) fn command_line(host_memory_mib: u32, guest_memory_mib: u32) -> String {
    let dom0 = host_memory_mib.saturating_sub(guest_memory_mib + XEN_MIB);
    format!(
        "console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=warning \
         dom0_mem={dom0}M,max:{dom0}M dom0_max_vcpus=1 sched=credit spec-ctrl=no xpti=off"
    )
}

/// libvirt knows a processor by the features that it has at the least. The emulated one shows no VME
/// under Xen, which every model of libvirt's has: so it is given one more model. Real processors need
/// none, and the image's hook only puts the file there.
pub(super) fn seed(accelerator: Accelerator) -> Seed {
    let mut seed = Seed::new();
    if accelerator == Accelerator::Tcg {
        let folder = "/usr/share/libvirt/cpu_map";
        seed.symlinks.insert(format!("{folder}/index.xml").into(), "index-emulated.xml".into());
    }
    seed
}

/// Whether a Xen with this configuration has shadow paging.
pub(super) fn shadow_paging(config: &str) -> bool {
    config.lines().any(|line| line.trim() == "CONFIG_SHADOW_PAGING=y")
}

/// Targets of the guest's root and seed. The first four disks of an HVM guest are emulated as well, on IDE, where none
/// can be read-only or come and go.
pub(super) const fn disks(kind: GuestType) -> [&'static str; 2] {
    match kind {
        GuestType::Pvh | GuestType::Pv => ["xvda", "xvdb"],
        GuestType::Hvm => ["xvde", "xvdf"],
    }
}

/// Context devices: a paravirtual disk that is detached and attached, or, on HVM, an emulated CD-ROM
/// drive whose medium is changed. A PVH guest has no drive.
pub(super) fn slots(kind: GuestType, strategy: Strategy) -> Slots {
    let disk = |target| Slot { device: "disk", driver: "phy", bus: "xen", target };
    let drive = |target| Slot { device: "cdrom", driver: "qemu", bus: "ide", target };
    match (kind, strategy) {
        (GuestType::Hvm, Strategy::Swap | Strategy::Prestage) => {
            Slots { service: disk("xvdg"), infrastructure: drive("hdc"), in_guest: &["xvd*", "sr*"] }
        }
        (GuestType::Hvm, Strategy::Replace) => {
            Slots { service: disk("xvdg"), infrastructure: disk("xvdh"), in_guest: &["xvd*"] }
        }
        (GuestType::Pvh | GuestType::Pv, _) => {
            Slots { service: disk("xvdc"), infrastructure: disk("xvdd"), in_guest: &["xvd*"] }
        }
    }
}

/// The domain's XML for libvirt's libxl driver.
///
/// The guest reads the processor's time-stamp counter itself. Where that counter is not marked as
/// invariant, as on an emulated processor, Xen would trap every reading: a guest that asks for the time
/// as often as Linux does then took 226 s to boot in place of 58 s. Both hosts of a testbed run on
/// one processor, so there is no other frequency to hide from a guest that moves.
pub(super) fn domain_xml(guest: &Guest, append: &str) -> String {
    let disk = |target: &str, serial: &str| {
        format!(
            "    <disk type='block' device='disk'>\n      <driver name='phy'/>\n      \
             <source dev='{}'/>\n      <target dev='{target}' bus='xen'/>\n      <readonly/>\n    </disk>\n",
            disk_path(&format!("guest-{serial}")),
        )
    };
    let [root, seed] = disks(guest.kind);
    let hvm = guest.kind == GuestType::Hvm;
    // Without the model an HVM guest has an emulated interface beside the paravirtual one.
    let model = if hvm { "\n      <model type='netfront'/>" } else { "" };
    let interface = |network: Network| {
        format!(
            "    <interface type='bridge'>\n      <mac address='{}'/>\n      \
             <source bridge='{}'/>{model}\n    </interface>\n",
            guest.member.mac(network),
            network.bridge(),
        )
    };
    let interfaces: String = guest.member.role.networks().iter().map(|&n| interface(n)).collect();
    let (machine, kind) = match guest.kind {
        GuestType::Pvh => ("xenpvh", "xenpvh"),
        GuestType::Hvm => ("xenfv", "hvm"),
        GuestType::Pv => ("xenpv", "linux"),
    };
    let (loader, features, devices) = if hvm {
        (
            "\n    <loader type='rom'>/usr/lib/xen-4.20/boot/hvmloader</loader>",
            "<features><acpi/><apic/></features>\n  ",
            format!(
                "    <emulator>/usr/libexec/xen-qemu-system-i386</emulator>\n\
                 \x20   <serial type='file'><source path='/var/log/{}.console.log'/><target port='0'/></serial>\n\
                 \x20   <video><model type='vga' vram='16384'/></video>\n",
                guest.name
            ),
        )
    } else {
        ("", "", "    <console type='pty'/>\n".to_owned())
    };
    format!(
        "<domain type='xen'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  \
         <memory unit='MiB'>{memory}</memory>\n  <vcpu>{vcpus}</vcpu>\n  \
         <os>\n    <type arch='x86_64' machine='{machine}'>{kind}</type>{loader}\n    \
         <kernel>{GUEST_FOLDER}/vmlinuz</kernel>\n    <initrd>{GUEST_FOLDER}/initrd</initrd>\n    \
         <cmdline>{append}</cmdline>\n  </os>\n  {features}\
         <clock offset='utc'><timer name='tsc' mode='native'/></clock>\n  <on_poweroff>destroy</on_poweroff>\n  <on_reboot>destroy</on_reboot>\n  \
         <on_crash>destroy</on_crash>\n  <devices>\n{root}{seed}{drive}{interfaces}{devices}  </devices>\n</domain>\n",
        name = guest.name,
        uuid = guest.uuid(),
        memory = guest.memory_mib,
        vcpus = guest.vcpus,
        root = disk(root, "root"),
        seed = disk(seed, "seed"),
        drive = guest.drive_xml(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dom0_leaves_room_for_the_guest_and_for_xen() {
        assert!(command_line(1024 + XEN_MIB + 256, 256).contains("dom0_mem=1024M,max:1024M "));
    }

    #[test]
    fn shadow_paging_is_read_from_the_configuration() {
        assert!(shadow_paging("CONFIG_HVM=y\nCONFIG_SHADOW_PAGING=y\n"));
        assert!(!shadow_paging("CONFIG_HVM=y\n# CONFIG_SHADOW_PAGING is not set\n"));
    }

    #[test]
    fn only_an_emulated_processor_gets_a_model_of_its_own() {
        assert_eq!(seed(Accelerator::Kvm), Seed::new());
        assert_eq!(seed(Accelerator::Tcg).symlinks.len(), 1);
    }
}
