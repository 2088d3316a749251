//! What runs in the guest: a GlusterFS client, and Bonnie++ on its mount.
//!
//! [`gluster`] makes a replicated volume on two servers and re-attaches its client when the
//! infrastructure's context names another server; [`bonnie`] runs Bonnie++ and reads its results.

// "GlusterFS" is a name, not an item.
#![allow(clippy::doc_markdown)]

pub mod bonnie;
pub mod gluster;
