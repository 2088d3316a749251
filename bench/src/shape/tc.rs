//! The tc commands that shape one client's traffic in a server's machine.
//!
//! Towards the client: a root `prio` qdisc whose every priority maps to its first band, which is left
//! unshaped; netem sits in the second, and one flower filter sends the client's address there. From the
//! client: an ingress filter redirects the client's packets to an ifb device, whose root is
//! netem. Nothing else on the interface is touched: not replication between the servers, not
//! management, not ARP.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::link::{Link, Netem};

/// The shaping of one client's traffic at one interface of a server.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// The server's data interface, e.g. `eth0`.
    pub device: String,
    /// Address of the client.
    pub client: Ipv4Addr,
    /// The link it shall see, already dilated.
    pub link: Link,
}

/// Handle of the root qdisc.
pub(super) const ROOT: &str = "1:";
/// Band of the root qdisc that is shaped.
pub(super) const BAND: &str = "1:2";
/// Handle of the netem towards the client.
pub(super) const TO_CLIENT: &str = "20:";
/// Handle of the netem from the client, on the ifb device.
pub(super) const FROM_CLIENT: &str = "30:";
/// Handle of the ingress qdisc: the kernel has only this one.
pub(super) const INGRESS: &str = "ffff:";
/// The ifb device that takes the client's packets.
pub(super) const IFB: &str = "ifb-shape";

impl Shape {
    /// The script that makes this shaping, whatever shaping of ours was there before.
    ///
    /// When a command fails all of it is taken away again: never half a shaping.
    pub fn apply(&self) -> String {
        let Self { device, client, link } = self;
        let netem = netem_words(&link.direction());
        let mut script = clear(device);
        let _ = write!(
            script,
            "set -e
trap 'test $? = 0 || {{ tc qdisc del dev {device} root; tc qdisc del dev {device} ingress; ip link del {IFB}; }} 2>/dev/null' EXIT
tc qdisc add dev {device} root handle {ROOT} prio bands 2 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
tc qdisc add dev {device} parent {BAND} handle {TO_CLIENT} {netem}
tc filter add dev {device} parent {ROOT} protocol ip prio 1 flower dst_ip {client} classid {BAND}
ip link add {IFB} type ifb
ip link set {IFB} up
tc qdisc add dev {IFB} root handle {FROM_CLIENT} {netem}
tc qdisc add dev {device} handle {INGRESS} ingress
tc filter add dev {device} parent {INGRESS} protocol ip prio 1 flower src_ip {client} action mirred egress redirect dev {IFB}
"
        );
        script
    }

    /// The script that prints the kernel's idea of this shaping, one JSON document a line: qdiscs of the
    /// device, qdiscs of the ifb, filters towards the client, filters from it. With statistics, so that
    /// it also says how much the client sent and received.
    pub fn read(&self) -> String {
        let device = &self.device;
        format!(
            "set -e
tc -j -s qdisc show dev {device} | tr -d '\\n'; echo
tc -j -s qdisc show dev {IFB} | tr -d '\\n'; echo
tc -j filter show dev {device} parent {ROOT} | tr -d '\\n'; echo
tc -j filter show dev {device} parent {INGRESS} | tr -d '\\n'; echo
"
        )
    }
}

/// The script that takes our shaping away from `device`; nothing there is no error.
pub fn clear(device: &str) -> String {
    format!(
        "ip link show dev {device} >/dev/null || exit 1
tc qdisc del dev {device} root 2>/dev/null
tc qdisc del dev {device} ingress 2>/dev/null
ip link del {IFB} 2>/dev/null
:
"
    )
}

/// `netem limit … delay … rate …`, times in whole nanoseconds.
fn netem_words(netem: &Netem) -> String {
    let ns = |time: Duration| format!("{}ns", time.as_nanos());
    let mut words = format!("netem limit {}", netem.limit);
    let _ = write!(words, " delay {}", ns(netem.delay));
    // netem takes a distribution only with a jitter.
    if netem.jitter > Duration::ZERO {
        let _ = write!(words, " {} {}%", ns(netem.jitter), netem.correlation * 100.0);
        if let Some(table) = netem.distribution.table() {
            let _ = write!(words, " distribution {table}");
        }
    }
    let _ = write!(words, " rate {}bit", netem.rate * 8);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            device: "eth0".into(),
            client: Ipv4Addr::new(198, 18, 1, 3),
            link: Link::paper_remote().dilated(5.0).unwrap(),
        }
    }

    #[test]
    fn commands_for_the_remote_link_at_dilation_five() {
        insta::assert_snapshot!(shape().apply());
    }

    #[test]
    fn commands_that_read_it_back() {
        insta::assert_snapshot!(shape().read());
    }

    #[test]
    fn a_link_without_variation_has_no_distribution() {
        let link = Link { variation: 0.0, ..shape().link };
        assert_eq!(netem_words(&link.direction()), "netem limit 1000 delay 25000000ns rate 5000000bit");
    }

    #[test]
    fn the_scripts_are_valid_shell() {
        for script in [shape().apply(), shape().read(), clear("eth0")] {
            let status = std::process::Command::new("sh").args(["-n", "-c", &script]).status().unwrap();
            assert!(status.success(), "{script}");
        }
    }
}
