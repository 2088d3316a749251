//! What this machine can do, found out by doing it.
