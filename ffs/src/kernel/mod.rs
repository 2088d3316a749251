//! What the kernel tells of mounts.

pub(crate) mod covers;
pub(crate) mod mountinfo;
