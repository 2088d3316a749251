//! Doing the trials of a plan on a testbed.
//!
//! [`run`] goes through the plan; [`migration`] and [`gluster`] each are one trial, read from top to
//! bottom; [`lab`] is what they work with.

pub mod arrivals;
pub mod beats;
pub mod guest;
pub mod lab;
pub mod measure;
pub mod migration;

pub mod run;

pub mod tools;
