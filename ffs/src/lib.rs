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

pub mod diff;
mod fs;
pub mod generation;
pub mod layer;
pub mod merge;
pub mod mount;
pub mod sealed;
pub mod sys;
mod table;
