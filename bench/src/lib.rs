//! The bench: boots its own hosts, migrates guests between them for real, and measures what
//! recontextualization costs and gains.
//!
//! Data goes one way, and nothing goes back:
//!
//! ```text
//! scenario → plan → drive (testbed, workload, shape) → observe, store → derive → stats → figures → report
//! ```
//!
//! [`scenario`] is what a person writes, [`plan`] the trials in the order drawn from its seed,
//! [`drive`] does them on a [`testbed`], [`observe`] dates what is seen and [`store`] keeps it, [`mod@derive`] makes values of it,
//! and everything after that is a pure function of the stored files.
//!
//! Scenarios whose trial is a list of steps are read by [`language`], compiled by [`compile`] to a [`model`] with the verbs of
//! [`step`], and checked; they cannot be run yet (`bench/docs/scenarios-as-data.md`).

pub mod cli;
pub mod compile;
pub mod deadline;
pub mod derive;
pub mod doctor;
pub mod drive;
pub mod exec;
pub mod figures;
pub mod gate;
pub mod image;
pub mod language;
pub mod metric;
pub mod model;
pub mod observe;
pub mod plan;
mod program;
pub mod progress;
pub mod provenance;
pub mod report;
pub mod scenario;
pub mod shape;
pub mod stats;
pub mod step;
pub mod store;
#[cfg(test)]
mod synthetic;
pub mod testbed;
pub mod workload;
