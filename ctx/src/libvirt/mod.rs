//! Libvirt, as far as context data and its measurement need it, with typed events and errors.
//!
//! The crate `virt` wraps libvirt's plain calls but neither its events nor its close callback, and
//! some of its calls hide failures. This module adds what is missing and checks what is not. All
//! `unsafe` code of the crate is in the private module `ffi`.
//!
//! Handles are cheap to clone and can be used from any thread. Every call blocks for as long as
//! libvirt takes (a migration: as long as the migration), so call it from
//! `tokio::task::spawn_blocking`. Events arrive on a channel of tokio.
//!
//! ```no_run
//! # fn main() -> Result<(), ctx::libvirt::Error> {
//! use ctx::libvirt::Connection;
//!
//! let connection = Connection::open("qemu:///system")?;
//! let mut events = connection.subscribe()?;
//! for domain in connection.running_domains()? {
//!     println!("{} {:?}", domain.name(), domain.state()?);
//! }
//! while let Some(event) = events.blocking_recv() {
//!     println!("{event:?}");
//! }
//! # Ok(())
//! # }
//! ```

mod connection;
mod domain;
mod error;
mod event;
mod ffi;
mod job;
mod migrate;
mod target;

pub use connection::{Connection, KeepAlive};
pub use domain::{Domain, Running, Scope, State};
pub use error::{Error, ErrorKind};
pub use event::{
    CloseReason, DomainEvent, DomainId, Event, EventKind, Lifecycle, Resumed, Started, Stopped, Suspended,
    Tray,
};
pub use job::{JobKind, JobOperation, JobStats};
pub use migrate::{MigrateFlags, MigrateOptions};
