//! What the host (`ctx`) and the guest (`ffs`) agree on.
//!
//! Context data is a set of files of one *class* (service, infrastructure, …). It travels on a
//! virtual CD-ROM: an ISO 9660 image with the files under `/data` and a manifest that names, sizes
//! and hashes each of them. Everything here is a function of values; nothing talks to libvirt or to
//! a kernel, so both sides can depend on it.
//!
//! | module | one idea |
//! |---|---|
//! | [`class`] | a class has a name and a priority |
//! | [`path`] | a path that cannot leave the tree |
//! | [`manifest`] | `/.ctx/manifest.json`: what the image claims, and how to check it |
//! | [`data`] | the files of one class, in memory |
//! | [`write`](mod@write) | data in, the same image bytes out, every time |

pub mod class;
pub mod data;
pub mod manifest;
pub mod path;
pub mod read;
pub mod write;

pub use class::{ClassName, Priority};
pub use data::{ContextData, File};
pub use manifest::{InstanceId, Manifest, Mode};
pub use path::RelPath;
pub use write::{ImageOptions, Label, write_atomically, write_iso};
