//! The testbed: hosts, file servers and networks that the bench boots for itself.
//!
//! Everything above this module sees machines that answer SSH and libvirt, on a site (`remote` or
//! `local`). Below it, every machine is a QEMU process in the bench's own namespaces
//! ([`namespace`]), boots from a read-only image with its writes in memory, and gets what
//! makes it itself (name, addresses, keys, our programs) from a small seed disk ([`seed`]).

pub mod address;
pub mod console;
pub mod domain;
pub mod hypervisor;
pub mod machine;
pub mod namespace;
pub mod network;
pub mod node;
pub mod plain;
pub mod qmp;
pub mod seed;
pub mod site;
pub mod ssh;
pub mod tsc;
pub mod up;
