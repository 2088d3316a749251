//! Hosts, servers and networks of the bench's own.
