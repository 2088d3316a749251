//! All that differs between hypervisors, in one place: images, processors, URIs, units, domains,
//! devices, and what a migration can be told.
//!
//! Whatever is above this module speaks of hosts, guests and migrations; a scenario chooses with
//! one word.

mod kvm;
mod xen;

use super::address::Network;
use super::domain::Guest;
use super::machine::Multiboot;
use super::plain::PlainPath;
use super::site::Site;
use crate::doctor::Accelerator;
use crate::image::Image;
use crate::image::seed::Seed;
pub use crate::scenario::Hypervisor;
use crate::scenario::{GuestType, Migration, Strategy};

/// What all hosts with a hypervisor have in common.
#[derive(Debug, PartialEq, Eq)]
pub struct Host {
    /// Name of the recipe of their image.
    pub recipe: &'static str,
    /// Name of libvirt's driver in a URI.
    driver: &'static str,
    /// Units that a host waits for before it says that it is ready.
    pub units: &'static [&'static str],
    /// The processor that the emulator shows them, with flags.
    pub emulated_cpu: &'static str,
    /// Their own console, as the kernel names it.
    pub console: &'static str,
    /// Memory besides their guests', in MiB.
    pub memory_mib: u32,
    /// Where libvirt looks for a hook of its driver; none where a migration needs none of ours, since an image
    /// that is missing at the destination is left behind.
    pub hook: Option<&'static str>,
    /// Command that prints why the host refused a guest that was to arrive, where libvirt's error at the source does
    /// not say.
    pub refusals: Option<&'static str>,
    /// Packages whose versions a run records.
    pub packages: &'static [&'static str],
}

/// What a migration can be told, and what is known of it afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationControl {
    /// The limit on the downtime, in milliseconds, where one can be set.
    pub max_downtime_ms: Option<u64>,
    /// Whether the hypervisor may slow the guest down.
    pub auto_converge: bool,
    /// Whether libvirt accounts for a migration that has ended: its time, downtime and memory.
    pub accounts: bool,
    /// Whether libvirt can stop one that runs. Where it cannot, this stops it on the source's host, by
    /// ending the program that sends; the guest then goes on there.
    pub stop: Stop,
}

/// How a migration that takes too long is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// By libvirt's `virDomainAbortJob`.
    AbortJob,
    /// By a command on the source's host.
    Command(&'static str),
}

/// A device with context data, as a guest of some kind can have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// `cdrom` or `disk`.
    device: &'static str,
    /// Name of libvirt's disk driver: `qemu` or `phy`.
    driver: &'static str,
    /// Its bus.
    pub bus: &'static str,
    /// Its target.
    pub target: &'static str,
}

impl Slot {
    /// The XML of the device, with an image in it or without.
    pub fn xml(&self, image: Option<&str>) -> String {
        let source = image.map(|path| format!("<source file='{path}'/>")).unwrap_or_default();
        format!(
            "<disk type='file' device='{}'><driver name='{}' type='raw'/>{source}\
             <target dev='{}' bus='{}'/><readonly/></disk>",
            self.device, self.driver, self.target, self.bus
        )
    }
}

/// The devices with context data of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slots {
    /// With the service class, which nobody replaces.
    pub service: Slot,
    /// With the infrastructure class.
    pub infrastructure: Slot,
    /// Names of devices in the guest that may hold them, as patterns.
    pub in_guest: &'static [&'static str],
}

impl Slots {
    /// The drive that a guest must have from its start, empty, so that a medium can be put in.
    pub fn drive(&self, strategy: Strategy) -> Option<Slot> {
        (strategy == Strategy::Swap).then_some(self.infrastructure)
    }
}

/// Why guests of a type cannot migrate live between hosts with an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Immovable {
    /// Xen follows the writes of a PV guest in shadow page tables alone.
    #[error(
        "live migration of a PV guest needs shadow paging in the hosts' Xen, and the Xen of image {image} was built \
         without it: set guest.type = \"pvh\" or \"hvm\""
    )]
    NoShadowPaging {
        /// Name of the hosts' image.
        image: String,
    },
    /// The image's configuration of Xen cannot be read.
    #[error("cannot read the configuration of Xen in image {image}: {reason}")]
    Unreadable {
        /// Name of the hosts' image.
        image: String,
        /// The system's error, in words.
        reason: String,
    },
}

impl Hypervisor {
    /// Whether guests of a type can migrate live between hosts with this image.
    ///
    /// # Errors
    /// [`Immovable`], with what to do.
    pub fn movable(self, kind: GuestType, host: &Image) -> Result<(), Immovable> {
        let (Hypervisor::Xen, GuestType::Pv) = (self, kind) else { return Ok(()) };
        let image = host.manifest.name.clone();
        let config = host.hypervisor_config().unwrap_or_default();
        match ctx_io::bounded::read_to_string(&config, ctx_io::bounded::CONFIG) {
            Ok(config) if xen::shadow_paging(&config) => Ok(()),
            Ok(_) => Err(Immovable::NoShadowPaging { image }),
            Err(error) => Err(Immovable::Unreadable { image, reason: error.to_string() }),
        }
    }

    /// What its hosts have in common.
    pub fn host(self) -> &'static Host {
        match self {
            Hypervisor::Kvm => &kvm::HOST,
            Hypervisor::Xen => &xen::HOST,
        }
    }

    /// What a host starts before its kernel.
    ///
    /// `file` is the hypervisor of the host's image, where that has one.
    pub fn multiboot(
        self,
        file: Option<PlainPath>,
        host_memory_mib: u32,
        guest_memory_mib: u32,
    ) -> Option<Multiboot> {
        match self {
            Hypervisor::Kvm => None,
            Hypervisor::Xen => file.map(|image| Multiboot {
                image,
                append: xen::command_line(host_memory_mib, guest_memory_mib),
            }),
        }
    }

    /// What a host's seed has because of the hypervisor and of what runs the host.
    pub fn seed(self, accelerator: Accelerator) -> Seed {
        match self {
            Hypervisor::Kvm => Seed::new(),
            Hypervisor::Xen => xen::seed(accelerator),
        }
    }

    /// URI of the libvirt of a site's host, for the bench and for the other host.
    pub fn libvirt_uri(self, site: Site) -> String {
        format!("{}+tcp://{}/system", self.host().driver, site.host().address(Network::Management))
    }

    /// URI of libvirt for programs on the host itself.
    pub fn local_uri(self) -> String {
        format!("{}:///system", self.host().driver)
    }

    /// Where a site's host listens for the stream of a migration.
    pub fn migration_uri(self, site: Site) -> String {
        format!("tcp://{}", site.host().address(Network::Migration))
    }

    /// What a migration can be told of what a scenario asks for.
    pub fn migration(self, asked: &Migration) -> MigrationControl {
        match self {
            Hypervisor::Kvm => kvm::migration(asked),
            Hypervisor::Xen => xen::MIGRATION,
        }
    }

    /// The console of a guest, as its kernel names it.
    pub fn guest_console(self, kind: GuestType) -> &'static str {
        match (self, kind) {
            (Hypervisor::Xen, GuestType::Pvh | GuestType::Pv) => "hvc0",
            (Hypervisor::Kvm, _) | (Hypervisor::Xen, GuestType::Hvm) => "ttyS0",
        }
    }

    /// Where a host keeps what a guest wrote on its console.
    pub fn guest_console_log(self, guest: &Guest) -> String {
        match (self, guest.kind) {
            (Hypervisor::Xen, GuestType::Pvh | GuestType::Pv) => {
                format!("/var/log/xen/console/guest-{}.log", guest.name)
            }
            (Hypervisor::Kvm, _) | (Hypervisor::Xen, GuestType::Hvm) => {
                format!("/var/log/{}.console.log", guest.name)
            }
        }
    }

    /// Words of the guest's kernel command line that name its disks, where they have no serial numbers.
    pub fn guest_disks(self, kind: GuestType) -> String {
        match self {
            Hypervisor::Kvm => String::new(),
            Hypervisor::Xen => {
                let [root, seed] = xen::disks(kind);
                format!("bench.root=/dev/{root} bench.seed=/dev/{seed}")
            }
        }
    }

    /// The XML of a guest's domain.
    pub fn domain_xml(self, guest: &Guest, append: &str) -> String {
        match self {
            Hypervisor::Kvm => kvm::domain_xml(guest, append),
            Hypervisor::Xen => xen::domain_xml(guest, append),
        }
    }

    /// The devices that carry a guest's context data.
    pub fn slots(self, kind: GuestType, strategy: Strategy) -> Slots {
        match self {
            Hypervisor::Kvm => kvm::SLOTS,
            Hypervisor::Xen => xen::slots(kind, strategy),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::address::{Member, Role};

    #[test]
    fn every_guest_is_a_well_formed_domain_of_read_only_disks() {
        let member = Member { role: Role::Guest, index: 0 };
        for (hypervisor, kind) in [
            (Hypervisor::Kvm, GuestType::Hvm),
            (Hypervisor::Xen, GuestType::Pvh),
            (Hypervisor::Xen, GuestType::Hvm),
            (Hypervisor::Xen, GuestType::Pv),
        ] {
            let guest = Guest {
                name: "guest".into(),
                member,
                memory_mib: 256,
                vcpus: 1,
                kind,
                drive: None,
                acknowledges: true,
            };
            let xml = hypervisor.domain_xml(&guest, "console=x quiet");
            let document = roxmltree::Document::parse(&xml).unwrap();
            let disks: Vec<_> = document
                .descendants()
                .filter(|n| n.has_tag_name("disk") && n.attribute("device") == Some("disk"))
                .collect();
            assert_eq!(disks.len(), 2, "{hypervisor} {kind}");
            assert!(disks.iter().all(|d| d.children().any(|c| c.has_tag_name("readonly"))));
        }
    }

    #[test]
    fn context_devices_of_one_guest_have_targets_of_their_own() {
        for (hypervisor, kind, strategy) in [
            (Hypervisor::Kvm, GuestType::Hvm, Strategy::Replace),
            (Hypervisor::Xen, GuestType::Pvh, Strategy::Replace),
            (Hypervisor::Xen, GuestType::Hvm, Strategy::Replace),
            (Hypervisor::Xen, GuestType::Hvm, Strategy::Swap),
        ] {
            let slots = hypervisor.slots(kind, strategy);
            assert_ne!(slots.service.target, slots.infrastructure.target);
            for slot in [slots.service, slots.infrastructure] {
                let xml = slot.xml(Some("/x.iso"));
                assert!(roxmltree::Document::parse(&xml).is_ok(), "{xml}");
            }
        }
    }
}
