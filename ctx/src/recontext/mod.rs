//! The recontextualizer: gives a domain new context data while it runs.
//!
//! When a domain has migrated here, its context device still holds the data of the place it left
//! (paper, section "Design and architecture"). A run replaces it in four phases, the paper's: *resolve*
//! what the domain is and wants, *detach* the device, *build* an image of this host's data, *attach* it.
//!
//! | module | one idea |
//! |---|---|
//! | [`trigger`] | which events ask for a run |
//! | [`device`] | which device carries a class on which machine, and how it can be replaced |
//! | [`domain`] | what a domain's XML says: the devices it wants replaced, the ones it has |
//! | [`plan`] | the steps of a run, as a pure machine that survives a crash at any point |
//! | [`state`] | what must be known after a crash, on disk |
//! | [`run`] | the effects: one run against libvirt, timed |
//! | `change` | the effects on the device: detach, attach, eject, insert, each confirmed |
//! | [`record`] | what a run did, as a line in the event log |
//! | [`ack`] | what the guest answers, where it can |
//! | [`queue`] | order and coalescing of the runs of each domain |
//! | [`daemon`] | events in, runs out, until told to stop |
//! | [`control`] | the socket on which runs are asked for |
//! | [`edit`] | XML changed in a few places and in no other byte |
//! | `xen_disk` | a disk as Xen itself has it, where libvirt does not tell |
//! | [`hook`] | libvirt's hook: an image for a device that arrives without its own |

pub mod ack;
mod change;
pub mod control;
pub mod daemon;
pub mod device;
pub mod domain;
pub mod edit;
pub mod hook;
pub mod plan;
pub mod queue;
pub mod record;
pub mod run;
pub mod state;
pub mod trigger;
mod xen_disk;

pub use record::{Outcome, Phase, Record};
pub use trigger::Trigger;
