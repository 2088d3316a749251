//! Union file systems side by side: the same trees, the same probes, one program each.
//!
//! [`tree`] writes the layers once, into memory; [`peer`] knows how each file system is started, what it can do and which
//! package has it; [`mounted`] is one that is up; [`probe`] and [`swap`] are what is measured on it, in a process of their own
//! ([`task`]), so that every file system meets the same code on the same processor.

pub mod mounted;
pub mod peer;
pub mod probe;
pub mod swap;
pub mod task;
pub mod tree;
