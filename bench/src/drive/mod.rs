//! Doing the trials of a plan on a testbed.
//!
//! [`run`] goes through the plan; [`migration`] and [`gluster`] each are one trial, read from top to
//! bottom; [`lab`] is what they work with, made by [`setup`] from the scenario.

pub mod estimate;
pub mod gluster;
pub mod guest;
pub mod lab;
pub mod layers;
pub mod libvirt;
pub mod limits;
mod links;
pub mod migration;
pub mod news;
pub mod recontextualizer;
pub mod run;
pub mod setup;
pub mod tools;
pub mod whereabouts;
