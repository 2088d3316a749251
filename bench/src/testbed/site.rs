//! Sites: what a place knows that its guests should know, the infrastructure class of the experiment.
//!
//! Host `a` stands at the remote server's site and host `b` at the local one's: a guest that
//! migrates from `a` to `b` leaves the first and arrives at the second (paper, Fig. 5).

use std::net::Ipv4Addr;

use super::address::{Member, Network, Role};

/// A place with a host and a file server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// Where the guest starts; its server is far from where the guest will be.
    Remote,
    /// Where the guest goes; its server is near there.
    Local,
}

impl Site {
    /// Both, in the order of the members' indices.
    pub const ALL: [Site; 2] = [Site::Remote, Site::Local];

    /// Name, as links and phases have it.
    pub fn name(self) -> &'static str {
        match self {
            Site::Remote => "remote",
            Site::Local => "local",
        }
    }

    /// Name of its host.
    pub fn host_name(self) -> &'static str {
        match self {
            Site::Remote => "a",
            Site::Local => "b",
        }
    }

    /// Its host.
    pub fn host(self) -> Member {
        Member { role: Role::Host, index: self as u8 }
    }

    /// Its file server.
    pub fn server(self) -> Member {
        Member { role: Role::Server, index: self as u8 }
    }

    /// Address of its file server on the data network.
    pub fn server_address(self) -> Ipv4Addr {
        self.server().address(Network::Data)
    }
}
