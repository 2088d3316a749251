//! A read-only union of layers that changes atomically under running programs.
//!
//! Layers (directories, ISO images, discs in drives) are read into immutable snapshots, merged into
//! an immutable generation, and shown through FUSE. A change builds the next generation aside and
//! swaps one pointer: programs see all of it or nothing.
//!
//! | module | one idea |
//! |---|---|
//! | [`layer`] | one source, read once |
//! | [`sealed`] | memory that cannot change |
//! | [`merge`](mod@merge) | layers in, one tree out; pure |
//! | [`diff`](mod@diff) | what a switch changed; pure |
//! | [`generation`] | all layers of one moment |
//! | [`mount`] | the kernel session and the switch |
//! | `watch` | real inotify events for what changed |
//! | [`uevent`], [`follow`] | what the kernel tells of drives, and what to do about it |
//! | [`hooks`] | what is run when paths change |
//! | [`trust`] | which images are taken |
//! | [`ack`] | how the host is told what became of an image |
//! | [`daemon`] | one loop that owns every change |
//! | [`control`], [`config`], [`events`], [`notify`](mod@notify) | how it is told and what it tells |

pub mod ack;
pub mod config;
pub mod control;
pub mod daemon;
pub mod diff;
pub mod events;
pub mod follow;
mod fs;
pub mod generation;
pub mod hooks;
pub mod layer;
pub mod merge;
pub mod mount;
pub mod notify;
pub mod sealed;
pub mod sys;
mod table;
pub mod trust;
pub mod uevent;
mod watch;
