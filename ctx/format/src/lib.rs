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
//! | [`read`] | an image from whoever made it, indexed and bounded |
//! | [`sign`] | `/.ctx/manifest.sig`: keys, and who vouches for a manifest |
//! | [`check`](mod@check) | an image against its manifest and the keys |
//! | [`ack`] | the guest's answer: applied or refused, hooks done |
//! | [`xenstore`] | the wire protocol by which that answer travels on Xen |
//!
//! # What is signed, and what that is worth
//!
//! Signed are the manifest's bytes: class, priority, generation, instance, and of every file its path,
//! mode, size and SHA-256. A guest that was given keys refuses an image unless one of them, allowed for
//! the class, has signed it; unless the tree is exactly the manifest's, owners and directory modes
//! included; and unless its generation is above the last one accepted of that class, or the very same
//! manifest again.
//!
//! Somebody who can attach devices, or carries images, *cannot* change, add or remove a file, mode, rank
//! or class, bring an old generation back, or pass one class off as another. He *can* withhold a new
//! generation (the host sees no acknowledgement), detach the device (the layer stays), read what is on
//! it (nothing is encrypted), change what is not covered (times, volume label, Joliet names, padding:
//! none of it is shown but the times), give a guest that has lost its state, or never had one, an old
//! image, and give one guest the image of another that trusts the same key, unless the guest says which
//! `instance` it is. Who has the secret key, or root in the guest, can do anything.

pub mod ack;
pub mod check;
pub mod class;
pub mod data;
pub mod manifest;
pub mod number;
pub mod path;
pub mod read;
pub mod sign;
pub mod write;
pub mod xenstore;

pub use class::{ClassName, Priority};
pub use data::{ContextData, File};
pub use manifest::{InstanceId, Manifest, Mode};
pub use number::Number;
pub use path::RelPath;
pub use write::{ImageOptions, Label, write_iso, write_signed_iso};
