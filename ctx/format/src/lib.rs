//! What host and guest agree on.

pub mod read;
