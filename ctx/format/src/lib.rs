//! What host and guest agree on.
