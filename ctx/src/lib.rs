//! Context data for virtual machines: built, and replaced while they run.
//!
//! [`recontext`] is the daemon that gives a domain this host's data when it has migrated here;
//! [`libvirt`] is the layer below it, of use to others too; [`source`] and [`config`] say where data
//! come from. What is on an image is the crate `ctx_format`'s.

pub mod clock;
pub mod config;
pub mod keys;
pub mod libvirt;
pub mod recontext;
pub mod source;
