//! Context data for virtual machines: built, and replaced while they run.

pub mod clock;
pub mod libvirt;
