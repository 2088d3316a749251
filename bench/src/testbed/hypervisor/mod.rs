//! All that differs between hypervisors, in one place: images, URIs, units and domains.
//!
//! Whatever is above this module speaks of hosts, guests and migrations; a scenario chooses with
//! one word.

mod kvm;

use super::address::Network;
use super::domain::Guest;
use super::site::Site;
pub use crate::scenario::Hypervisor;

/// Why a hypervisor cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this bench boots no {0} hosts yet: set `testbed.hypervisor = \"kvm\"`")]
pub struct Unsupported(pub &'static str);

impl Hypervisor {
    /// Whether hosts with it can be booted.
    ///
    /// # Errors
    /// [`Unsupported`], with what to do.
    pub fn supported(self) -> Result<(), Unsupported> {
        match self {
            Hypervisor::Kvm => Ok(()),
            Hypervisor::Xen => Err(Unsupported("Xen")),
        }
    }

    /// Name of the recipe of its hosts' image.
    pub fn host_recipe(self) -> &'static str {
        match self {
            Hypervisor::Kvm => "host-kvm",
            Hypervisor::Xen => "host-xen",
        }
    }

    /// Units that a host waits for before it says that it is ready.
    pub fn host_units(self) -> &'static [&'static str] {
        match self {
            Hypervisor::Kvm | Hypervisor::Xen => &["libvirtd.socket", "libvirtd-tcp.socket"],
        }
    }

    /// URI of the libvirt of a site's host, for the bench and for the other host.
    pub fn libvirt_uri(self, site: Site) -> String {
        let driver = match self {
            Hypervisor::Kvm => "qemu",
            Hypervisor::Xen => "xen",
        };
        format!("{driver}+tcp://{}/system", site.host().address(Network::Management))
    }

    /// Where a site's host listens for the stream of a migration.
    pub fn migration_uri(self, site: Site) -> String {
        format!("tcp://{}", site.host().address(Network::Migration))
    }

    /// The XML of a guest's domain.
    ///
    /// # Errors
    /// [`Unsupported`].
    pub fn domain_xml(self, guest: &Guest, append: &str) -> Result<String, Unsupported> {
        self.supported()?;
        Ok(kvm::domain_xml(guest, append))
    }
}
