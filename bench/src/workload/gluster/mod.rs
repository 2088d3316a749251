//! A replicated GlusterFS volume that a client reaches through one server.
//!
//! The paper's client has one setting that recontextualization replaces: the address of its server.
//! GlusterFS's usual replication is the client's work, so every write would go to both sites wherever the
//! client is. Here the *servers* replicate: each exports its brick and, above it, the replica made of its own brick
//! and the peer's; a client that mounts the replica through one server talks to that server only.
//!
//! ```text
//! client ── protocol/client ──► server A: afr ── brick A
//!                                          └──── protocol/client ──► server B: brick B
//! ```
//!
//! Plain volfiles, no glusterd: the graph that is measured is the text in the run's folder. [`volfile`] writes
//! them, [`script`] has the commands, [`hook`] the guest's reaction to a new context, [`state`] what is read back,
//! and [`drive`] does it all over an executor.

use std::net::Ipv4Addr;

pub mod drive;
pub mod hook;
pub mod script;
pub mod state;
pub mod volfile;

pub use drive::{
    GlusterError, attach, await_peer, heal, prepare_server, remount, start_server, stop_server, unmount,
    verify_bricks, write_address,
};
pub use hook::Client;
pub use state::{ClientState, Difference, Heal};

/// Its name as a service.
pub const SERVICE: &str = "gluster";

/// The volume: what both servers and the client agree on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its id: 16 bytes in the brick's extended attribute `trusted.glusterfs.volume-id`.
    pub id: u128,
    /// Addresses of the servers, in brick order, the same for both: AFR's changelog counts by it.
    pub servers: [Ipv4Addr; 2],
    /// TCP port of the servers.
    pub port: u16,
    /// Folder of the brick in a server. It is a file system of its own, in memory: what is measured is the network, and
    /// a brick on an overlay root could not hold `trusted.` attributes safely.
    pub brick: String,
    /// Size of that file system, in MiB.
    pub brick_mib: u32,
}

impl Volume {
    /// A volume on `servers` with the usual places.
    pub fn new(id: u128, servers: [Ipv4Addr; 2]) -> Self {
        Self { id, servers, port: 24_100, brick: "/srv/gluster/brick".into(), brick_mib: 96 }
    }

    /// The id as RFC 9562 writes it.
    pub fn uuid(&self) -> String {
        let hex = format!("{:032x}", self.id);
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }
}

/// Options of the client's mount that decide what a benchmark sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientOptions {
    /// Bypass the guest's page cache, so that a read is a read from the server (`--direct-io-mode`).
    pub direct_io: bool,
    /// How long the kernel trusts a name, in s (`--entry-timeout`).
    pub entry_timeout: u32,
    /// How long the kernel trusts a file's attributes, in s (`--attribute-timeout`).
    pub attribute_timeout: u32,
    /// Translators above the connection, from the bottom, e.g. `write-behind`; the rest of GlusterFS's usual stack
    /// answers reads from memory.
    pub performance: Vec<&'static str>,
}

impl Default for ClientOptions {
    /// GlusterFS's own time-outs, direct I/O, its write-behind and its cache of attributes.
    ///
    /// The kernel asks for the parent's attributes after every create and delete, which changed them (seen in
    /// a trace of the client): a round trip each, that `md-cache` is there to answer from the reply before.
    fn default() -> Self {
        Self {
            direct_io: true,
            entry_timeout: 1,
            attribute_timeout: 1,
            performance: vec!["write-behind", "md-cache"],
        }
    }
}
