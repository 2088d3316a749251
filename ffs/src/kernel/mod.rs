//! What this program does with the kernel's mounts, apart from the FUSE session.
//!
//! | module | one idea |
//! |---|---|
//! | [`mountinfo`] | the mount table, read as bytes; pure |
//! | [`mounting`] | two mounts of one file system: a private one and a read-only one for everybody |
//! | `session` | which of the ways to mount is taken |
//! | [`guard`] | the mount table, watched: unmounts, and mounts that somebody made writable |
//! | `peer` | whether who asks over the control socket may change the mount |
//! | [`unmount`] | unmounts that take away nothing that others mounted |
//! | `covers` | what is mounted on a mount of ours |

pub(crate) mod covers;
pub mod guard;
pub mod mountinfo;
pub mod mounting;
pub(crate) mod peer;
pub(crate) mod session;
pub mod unmount;
