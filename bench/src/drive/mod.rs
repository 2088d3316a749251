//! Doing the trials of a plan on a testbed.

pub mod arrivals;
pub mod beats;
pub mod guest;
