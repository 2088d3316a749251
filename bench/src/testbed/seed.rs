//! What makes a machine itself: the files of its seed disk, as a function of its place in the testbed.
//!
//! Images hold Debian alone. Name, addresses, keys, our own programs and their settings come in a
//! small read-only disk that the initramfs lays over the image, so a change to them rebuilds nothing.

use std::net::Ipv4Addr;

use sha2::{Digest, Sha256};

use super::address::{Member, Network, PREFIX, Role};
use super::ssh::Keys;
use crate::image::seed::{Content, Seed};

/// Adds a systemd unit, and starts it with the machine when `wanted_by` names a target.
pub fn unit(seed: &mut Seed, name: &str, content: impl Into<String>, wanted_by: Option<&str>) {
    let path = format!("/etc/systemd/system/{name}");
    text(seed, &path, content);
    if let Some(target) = wanted_by {
        seed.symlinks.insert(format!("/etc/systemd/system/{target}.wants/{name}").into(), path.into());
    }
}

/// Adds a text file of mode 0644.
pub fn text(seed: &mut Seed, path: impl AsRef<str>, content: impl Into<String>) {
    seed.put(path.as_ref(), 0o644, Content::Bytes(content.into().into_bytes()));
}

/// What all machines have: name, addresses, keys.
///
/// `after` names the units that "ready" waits for, besides SSH.
pub fn common(name: &str, member: Member, keys: &Keys, names: &[(String, Ipv4Addr)], after: &[&str]) -> Seed {
    let mut seed = Seed::new();
    text(&mut seed, "/etc/hostname", format!("{name}\n"));
    // Two machines from one image must not have one machine-id: addresses are derived from it.
    text(&mut seed, "/etc/machine-id", format!("{}\n", digest(&format!("machine {name}"))));
    let hosts: String = names.iter().map(|(name, address)| format!("{address} {name}\n")).collect();
    text(&mut seed, "/etc/hosts", format!("127.0.0.1 localhost\n{hosts}"));
    seed.put("/root/.ssh/authorized_keys", 0o600, Content::Bytes(keys.client_public.clone().into_bytes()));
    seed.put("/etc/ssh/ssh_host_ed25519_key", 0o600, Content::Bytes(keys.host_private.clone().into_bytes()));
    text(&mut seed, "/etc/ssh/ssh_host_ed25519_key.pub", keys.host_public.clone());
    network(&mut seed, member);
    if !after.is_empty() {
        let units = after.join(" ");
        text(
            &mut seed,
            "/etc/systemd/system/bench-ready.service.d/after.conf",
            format!("[Unit]\nAfter={units}\nWants={units}\n"),
        );
    }
    seed
}

/// Interfaces are eth0, eth1, eth2 in the order of [`Role::networks`]; a host puts those that its
/// guests use on bridges of its own.
fn network(seed: &mut Seed, member: Member) {
    const STATIC: &str = "LinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n";
    for (i, &network) in member.role.networks().iter().enumerate() {
        let address = format!("Address={}/{PREFIX}\n", member.address(network));
        let bridged = member.role == Role::Host && network != Network::Migration;
        if !bridged {
            text(
                seed,
                format!("/etc/systemd/network/20-eth{i}.network"),
                format!("[Match]\nName=eth{i}\n\n[Network]\n{address}{STATIC}"),
            );
            continue;
        }
        let bridge = network.bridge();
        text(
            seed,
            format!("/etc/systemd/network/10-{bridge}.netdev"),
            format!(
                "[NetDev]\nName={bridge}\nKind=bridge\nMACAddress={}\n\n\
                 [Bridge]\nSTP=no\nForwardDelaySec=0\nMulticastSnooping=no\n",
                member.bridge_mac(network)
            ),
        );
        text(
            seed,
            format!("/etc/systemd/network/20-eth{i}.network"),
            format!("[Match]\nName=eth{i}\n\n[Network]\nBridge={bridge}\nLinkLocalAddressing=no\n"),
        );
        text(
            seed,
            format!("/etc/systemd/network/30-{bridge}.network"),
            format!("[Match]\nName={bridge}\n\n[Network]\n{address}{STATIC}"),
        );
    }
}

/// 32 hexadecimal digits that follow from `text`, for identifiers that must differ and not change.
pub fn digest(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// Adds everything of `more` to `seed`; what both have, `more` decides.
pub fn add(seed: &mut Seed, more: &Seed) {
    seed.files.extend(more.files.clone());
    seed.symlinks.extend(more.symlinks.clone());
    seed.directories.extend(more.directories.clone());
}
