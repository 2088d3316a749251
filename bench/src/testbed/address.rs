//! Who has which address: a pure function of role, index and network, so that nothing is written twice.
//!
//! All addresses come from 198.18.0.0/15, the range that RFC 2544 sets aside for benchmarks of
//! network devices; MAC addresses are QEMU's (52:54:00), with network, role and index behind it.

use std::net::Ipv4Addr;

/// A network of the testbed, one bridge each. Only [`Network::Data`] is ever shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Network {
    /// SSH, libvirt, heartbeats; the bench itself is on it.
    Management,
    /// The stream of a live migration.
    Migration,
    /// What guests and file servers exchange.
    Data,
}

impl Network {
    /// All networks, in the order of a machine's interfaces: eth0, eth1, eth2.
    pub const ALL: [Network; 3] = [Network::Management, Network::Migration, Network::Data];

    /// Short name, in names of bridges and TAP devices.
    pub fn name(self) -> &'static str {
        match self {
            Network::Management => "mgmt",
            Network::Migration => "mig",
            Network::Data => "data",
        }
    }

    /// Name of the bridge, the same in the namespace and inside a host.
    pub fn bridge(self) -> String {
        format!("br-{}", self.name())
    }

    fn index(self) -> u8 {
        self as u8
    }

    /// The bench's own address, which it has on the management network alone.
    pub fn bench_address() -> Ipv4Addr {
        Ipv4Addr::new(198, 18, 0, 1)
    }
}

/// Prefix length of every network.
pub const PREFIX: u8 = 24;

/// What a machine is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A host that runs guests.
    Host,
    /// A file server beside the hosts; it never migrates.
    Server,
    /// A guest that migrates between hosts.
    Guest,
}

impl Role {
    fn first_octet(self) -> u8 {
        match self {
            Role::Host => 11,
            Role::Server => 21,
            Role::Guest => 41,
        }
    }

    /// Networks on which a machine of this role has an interface, in interface order.
    pub fn networks(self) -> &'static [Network] {
        match self {
            Role::Host => &Network::ALL,
            Role::Server | Role::Guest => &[Network::Management, Network::Data],
        }
    }
}

/// One machine of the testbed, by role and index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// What it is for.
    pub role: Role,
    /// Its number among its kind, from 0.
    pub index: u8,
}

impl Member {
    /// Its address on a network.
    pub fn address(self, network: Network) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, network.index(), self.role.first_octet() + self.index)
    }

    /// The MAC address of its interface on a network.
    pub fn mac(self, network: Network) -> String {
        format!("52:54:00:{:02x}:{:02x}:{:02x}", network.index(), self.role.first_octet(), self.index)
    }

    /// The MAC address of the bridge that it has on a network: without one of its own, two hosts
    /// from one image would derive the same from their machine-id, and nothing would pass.
    pub fn bridge_mac(self, network: Network) -> String {
        format!("52:54:01:{:02x}:{:02x}:{:02x}", network.index(), self.role.first_octet(), self.index)
    }

    /// Name of its TAP device in the namespace (at most 15 bytes, IFNAMSIZ).
    pub fn tap(self, network: Network) -> String {
        let role = match self.role {
            Role::Host => "h",
            Role::Server => "s",
            Role::Guest => "g",
        };
        format!("{role}{}-{}", self.index, network.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_interfaces_share_an_address() {
        let mut addresses = BTreeSet::new();
        let mut macs = BTreeSet::new();
        let mut count = 0;
        for role in [Role::Host, Role::Server, Role::Guest] {
            for index in 0..8 {
                for &network in role.networks() {
                    let member = Member { role, index };
                    addresses.insert(member.address(network));
                    macs.insert(member.mac(network));
                    macs.insert(member.bridge_mac(network));
                    assert!(member.tap(network).len() < 16, "longer than IFNAMSIZ allows");
                    count += 1;
                }
            }
        }
        assert_eq!(addresses.len(), count);
        assert_eq!(macs.len(), 2 * count);
        assert!(addresses.iter().all(|a| a.octets()[..2] == [198, 18]));
        assert!(!addresses.contains(&Network::bench_address()));
    }
}
