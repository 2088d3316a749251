//! Bridges and TAP devices in the bench's network namespace.
//!
//! TAP devices with a virtio header on a bridge pass 64 KiB segments whole, which is what makes
//! the network of emulated machines fast enough to shape (hundreds of Mbit/s instead of tens).

use std::fmt::Write as _;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::address::{Member, Network, PREFIX};

/// What `ip -batch` shall do for these members, one command a line.
pub fn batch(members: &[Member]) -> String {
    let mut lines = String::from("link set lo up\n");
    for network in Network::ALL {
        let bridge = network.bridge();
        // One switch, no loops: spanning tree would only delay the first frames.
        let _ = writeln!(
            lines,
            "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n\
             link set {bridge} up"
        );
    }
    let _ = writeln!(
        lines,
        "addr add {}/{PREFIX} dev {}",
        Network::bench_address(),
        Network::Management.bridge()
    );
    for member in members {
        for &network in member.role.networks() {
            let tap = member.tap(network);
            let bridge = network.bridge();
            let _ = writeln!(
                lines,
                "tuntap add dev {tap} mode tap vnet_hdr\nlink set {tap} master {bridge}\nlink set {tap} up"
            );
        }
    }
    lines
}

/// Why the networks could not be made.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot make the testbed's networks: ip -batch: {0}; it needs CONFIG_TUN and CONFIG_BRIDGE, see `bench doctor`"
)]
pub struct NetworkError(String);

/// Makes the networks; they vanish with the namespace.
///
/// # Errors
/// What `ip` said.
pub async fn up(members: &[Member]) -> Result<(), NetworkError> {
    // Router advertisements and neighbour discovery of 20 interfaces are noise; nothing here speaks IPv6.
    for file in ["/proc/sys/net/ipv6/conf/all/disable_ipv6", "/proc/sys/net/ipv6/conf/default/disable_ipv6"] {
        let _ = std::fs::write(file, "1");
    }
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| NetworkError(format!("cannot run ip: {e}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A failed write shows in ip's own message and exit status.
        let _ = stdin.write_all(batch(members).as_bytes()).await;
    }
    let out = child.wait_with_output().await.map_err(|e| NetworkError(e.to_string()))?;
    if out.status.success() {
        // Frames between bridge ports are nobody's packets to filter.
        let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
        Ok(())
    } else {
        Err(NetworkError(String::from_utf8_lossy(&out.stderr).trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::address::Role;
    use super::*;

    #[test]
    fn a_server_has_no_migration_network() {
        let text = batch(&[Member { role: Role::Server, index: 1 }]);
        assert!(text.contains("tuntap add dev s1-data mode tap vnet_hdr"));
        assert!(!text.contains("s1-mig"));
        assert!(text.contains("addr add 198.18.0.1/24 dev br-mgmt"));
    }
}
