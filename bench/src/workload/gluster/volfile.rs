//! The volfiles: GlusterFS's translator graphs, bottom up, as text.

use std::fmt::Write as _;

use super::{ClientOptions, Volume};

/// Name of the exported replica: what a client mounts.
const REPLICA: &str = "afr";
/// Name of the exported brick: what the peer replicates to.
const BRICK: &str = "brick";

/// A graph as it is written, one `volume … end-volume` after another.
#[derive(Default)]
struct Graph(String);

impl Graph {
    fn volume(&mut self, name: &str, kind: &str, options: &[(&str, &str)], below: &[&str]) {
        let _ = writeln!(self.0, "volume {name}\n    type {kind}");
        for (key, value) in options {
            let _ = writeln!(self.0, "    option {key} {value}");
        }
        if !below.is_empty() {
            let _ = writeln!(self.0, "    subvolumes {}", below.join(" "));
        }
        self.0.push_str("end-volume\n\n");
    }

    fn connection(&mut self, name: &str, host: &str, port: &str, remote: &str) {
        let options = [
            ("transport-type", "tcp"),
            ("remote-host", host),
            ("remote-port", port),
            ("remote-subvolume", remote),
        ];
        self.volume(name, "protocol/client", &options, &[]);
    }
}

/// The volfile of server `own` (0 or 1, in brick order).
///
/// The two children of the replica stand in brick order in both servers, since AFR's changelog attributes
/// (`afr-pending-xattr`) name bricks by position; each server reads from its own brick.
pub fn server(volume: &Volume, own: usize) -> String {
    let (own, peer) = (own % 2, (own + 1) % 2);
    let port = volume.port.to_string();
    let indices = format!("{}/.glusterfs/indices", volume.brick);
    let mut graph = Graph::default();
    graph.volume(
        "posix",
        "storage/posix",
        &[("directory", &volume.brick), ("volume-id", &volume.uuid())],
        &[],
    );
    graph.volume("locks", "features/locks", &[], &["posix"]);
    graph.volume(
        BRICK,
        "features/index",
        &[
            ("index-base", &indices),
            ("xattrop-dirty-watchlist", "trusted.afr.dirty"),
            ("xattrop-pending-watchlist", "trusted.afr.v-"),
        ],
        &["locks"],
    );
    graph.connection("peer", &volume.servers[peer].to_string(), &port, BRICK);
    let children = if own == 0 { [BRICK, "peer"] } else { ["peer", BRICK] };
    graph.volume(
        REPLICA,
        "cluster/replicate",
        &[("afr-pending-xattr", "v-client-0,v-client-1"), ("read-subvolume", BRICK)],
        &children,
    );
    graph.volume(
        "server",
        "protocol/server",
        &[
            ("transport-type", "tcp"),
            ("transport.socket.listen-port", &port),
            ("auth.addr.brick.allow", &volume.servers[peer].to_string()),
            // Clients come and go with their addresses; the network is the bench's own.
            ("auth.addr.afr.allow", "*"),
        ],
        &[BRICK, REPLICA],
    );
    graph.0
}

/// The volfile of a client that reaches the volume through `server`: an address, or what stands for it in a
/// template.
pub fn client(volume: &Volume, server: &str, options: &ClientOptions) -> String {
    let mut graph = Graph::default();
    graph.connection("connection", server, &volume.port.to_string(), REPLICA);
    let mut below = "connection";
    for &translator in &options.performance {
        graph.volume(translator, &format!("performance/{translator}"), &[], &[below]);
        below = translator;
    }
    graph.0
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn volume() -> Volume {
        Volume::new(
            0x7a0c_2f1e_9b3d_4c5f_8e6a_1d2b_3c4f_5e6d,
            [Ipv4Addr::new(198, 18, 1, 1), Ipv4Addr::new(198, 18, 1, 2)],
        )
    }

    #[test]
    fn the_first_servers_graph() {
        insta::assert_snapshot!(server(&volume(), 0));
    }

    #[test]
    fn the_second_differs_in_peer_and_order_only() {
        let (first, second) = (server(&volume(), 0), server(&volume(), 1));
        let changed: Vec<_> = first.lines().zip(second.lines()).filter(|(a, b)| a != b).collect();
        assert_eq!(first.lines().count(), second.lines().count());
        assert_eq!(
            changed,
            [
                ("    option remote-host 198.18.1.2", "    option remote-host 198.18.1.1"),
                ("    subvolumes brick peer", "    subvolumes peer brick"),
                (
                    "    option auth.addr.brick.allow 198.18.1.2",
                    "    option auth.addr.brick.allow 198.18.1.1"
                ),
            ]
        );
    }

    #[test]
    fn the_clients_graph() {
        insta::assert_snapshot!(client(&volume(), "198.18.1.1", &ClientOptions::default()));
    }
}
