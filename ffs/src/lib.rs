//! The layered file system.
