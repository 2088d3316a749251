//! Context data for virtual machines.
