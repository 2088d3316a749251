//! What is measured: in the guest a GlusterFS client with Bonnie++ on its mount, and here union file systems.
//!
//! [`gluster`] makes a replicated volume on two servers and re-attaches its client when the
//! infrastructure's context names another server; [`bonnie`] runs Bonnie++ and reads its results.
//! [`layers`] mounts file systems side by side and probes them.

// "GlusterFS" is a name, not an item.
#![allow(clippy::doc_markdown)]

pub mod bonnie;
pub mod definitions;
pub mod gluster;
pub mod layers;

/// The services that the bench knows how to start and to check.
pub const SERVICES: [&str; 1] = [gluster::SERVICE];
