//! What a trial leaves: events and streams, each dated on the bench's clock, written down as they are seen.
//!
//! Nothing here is a result. A result is derived from a [`Trace`](trace::Trace) by [`crate::derive`], from what a run has
//! just seen or from what it stored years ago.
//!
//! * [`trace`]: the events of a trial, and how they get into the run's log.
//! * [`beats`] and [`pings`]: signs of life of the guest, which come all the time; [`stream`] is how they are stored.
//! * [`arrivals`]: values that arrive from machines; [`moment`]: the bench's clock; [`clock`]: the clocks of the machines.

pub mod arrivals;
pub mod beats;
pub mod clock;
pub mod moment;
pub mod pings;
pub mod stream;
pub mod trace;
