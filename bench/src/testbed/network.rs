//! Bridges and TAP devices in the bench's network namespace.
//!
//! TAP devices with a virtio header on a bridge pass 64 KiB segments whole, which is what makes
//! the network of emulated machines fast enough to shape (hundreds of Mbit/s instead of tens).

use std::fmt::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;

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

/// How long `ip` may take. Taking an interface up waits for the kernel, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs a program with its standard input to its end.
async fn feed(command: &mut Command, text: &str, limit: Duration) -> Result<Output, NetworkError> {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|e| NetworkError(format!("cannot run ip: {e}")))?;
    let stdin = child.stdin.take();
    let fed = async {
        if let Some(mut stdin) = stdin {
            // A failed write shows in ip's own message and exit status.
            let _ = stdin.write_all(text.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let late = |_| NetworkError(format!("it did not end within {} s", limit.as_secs_f64()));
    timeout(limit, fed).await.map_err(late)?.map_err(|e| NetworkError(e.to_string()))
}

/// Makes the networks; they vanish with the namespace.
///
/// # Errors
/// What `ip` said.
pub async fn up(members: &[Member]) -> Result<(), NetworkError> {
    // Router advertisements and neighbour discovery of 20 interfaces are noise; nothing here speaks IPv6.
    for file in ["/proc/sys/net/ipv6/conf/all/disable_ipv6", "/proc/sys/net/ipv6/conf/default/disable_ipv6"] {
        let _ = std::fs::write(file, "1");
    }
    let out = feed(Command::new("ip").args(["-batch", "-"]), &batch(members), LIMIT).await?;
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

    #[tokio::test]
    async fn a_program_that_does_not_read_and_does_not_end_is_given_up() {
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; while :; do sleep 1; done"]);
        let error = feed(&mut command, &"x".repeat(1 << 20), Duration::from_millis(50)).await.unwrap_err();
        assert!(error.to_string().contains("ip -batch: it did not end within 0.05 s"), "{error}");
    }

    #[test]
    fn a_server_has_no_migration_network() {
        let text = batch(&[Member { role: Role::Server, index: 1 }]);
        assert!(text.contains("tuntap add dev s1-data mode tap vnet_hdr"));
        assert!(!text.contains("s1-mig"));
        assert!(text.contains("addr add 198.18.0.1/24 dev br-mgmt"));
    }
}
