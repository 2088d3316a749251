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
//! | [`projection`] | the tree as a `ConfigMap` volume; pure |
//! | [`generation`] | all layers of one moment |
//! | [`mount`] | the kernel session and the switch |
//! | `readers` | threads that wait for disks |
//! | `prefetch` | the kernel's caches, filled before they are asked |
//! | `announced` | names that are answered in a way of their own: those about to change, those covered by other mounts |
//! | `kernel` | what the kernel tells of mounts |
//! | `watch` | real inotify events for what changed |
//! | `teller` | the thread that gives them, behind the switches |
//! | [`uevent`], [`follow`] | what the kernel tells of drives, and what to do about it |
//! | [`kernel`] | mounts: how they are made, watched and read from the mount table |
//! | `attrs` | extended attributes that tell of the mount and take commands; pure |
//! | [`fstab`] | what mount(8) tells its helper; pure |
//! | [`hooks`] | what is run when paths change |
//! | [`edit`] | what a request makes of the layers; pure |
//! | [`dirs`] | directories that are followed |
//! | [`memory`] | how much images may hold |
//! | [`trust`], `ledger` | which images are taken, and what was accepted |
//! | [`ack`] | how the host is told what became of an image |
//! | [`daemon`] | one loop that owns every change |
//! | `handover`, `door` | another program takes over a mount in use |
//! | [`control`], [`status`], [`config`], [`events`], [`notify`](mod@notify) | how it is told and what it tells |

pub mod ack;
mod announced;
mod attrs;
pub mod config;
pub mod control;
pub mod daemon;
pub mod diff;
pub mod dirs;
mod door;
pub mod edit;
mod escape;
pub mod events;
pub mod follow;
mod fs;
pub mod fstab;
pub mod generation;
mod handover;
pub mod hooks;
pub mod kernel;
pub mod layer;
mod ledger;
pub mod memory;
pub mod merge;
pub mod mount;
pub mod notify;
mod prefetch;
pub mod projection;
mod readers;
mod rest;
pub mod sealed;
pub mod status;
pub mod sys;
mod table;
mod teller;
pub mod trust;
pub mod uevent;
mod watch;
